"""
LibriSpeech (Panayotov et al. 2015): which part of it is wanted, and where from. Archives are downloaded from OpenSLR's
mirrors and verified, or are at hand, or have been unpacked into a folder.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml
from audiollm.base_models import audiollm_cache_dir
from audiollm.downloads import ChecksumError, download, verify_checksum

from .clips import CorpusError
from .letter_case import LETTER_CASES
from .librispeech_tree import LibriSpeechArchives, LibriSpeechFolder, PublishedArchive

DEFAULT_TASKS = ("transcribe",)
DEFAULT_OUTPUT = "data/librispeech"
#: What is downloaded where no split is asked for: the smallest of the original ones that is clean speech.
DEFAULT_DOWNLOAD = "dev-clean"

OPENSLR_FILE = Path(__file__).parent / "openslr.yaml"
ROOT_NAME = "LibriSpeech"
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
HUB_PREFIX = "hub:"


@lru_cache(maxsize=1)
def openslr() -> tuple[tuple[str, ...], dict[str, PublishedArchive]]:
    """Mirrors, and splits by name."""
    table = yaml.safe_load(OPENSLR_FILE.read_text(encoding="utf-8"))
    return tuple(table["mirrors"]), {name: PublishedArchive(**row) for name, row in table["splits"].items()}


@dataclass
class LibriSpeechArguments:
    """Which part of LibriSpeech, and where from."""

    splits: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Splits, separated by spaces or commas: dev-clean, dev-other, test-clean, test-other, "
            "train-clean-100, train-clean-360, train-other-500, or of Mini LibriSpeech dev-clean-2, train-clean-5. "
            f"Default: all that --source_path holds, or {DEFAULT_DOWNLOAD} where it is downloaded."
        },
    )
    source_path: str | None = field(
        default=None,
        metadata={
            "help": "A folder with the unpacked LibriSpeech/ tree, a folder with archives named <split>.tar.gz, or one "
            "archive. Without it the archives are downloaded."
        },
    )
    archives: str | None = field(
        default=None,
        metadata={"help": "Where downloaded archives are kept. Default: corpora/librispeech in AudioLLM's cache."},
    )
    mirrors: list[str] = field(
        default_factory=list,
        metadata={"help": "Base URLs to download from, in the order to try, as https://www.openslr.org/resources."},
    )
    letter_case: str = field(
        default="sentence",
        metadata={
            "help": "What becomes of the transcripts, which are all capitals: sentence (lower case, but for the first "
            "letter, I, and words such as London), lower, or keep."
        },
    )

    def __post_init__(self):
        self.splits = list(dict.fromkeys(name for given in self.splits for name in given.split(",") if name))
        self.mirrors = [url.rstrip("/") for given in self.mirrors for url in given.split(",") if url]
        if self.letter_case not in LETTER_CASES:
            raise ValueError(
                f"There is no --letter_case {self.letter_case!r}; expected one of {', '.join(LETTER_CASES)}. "
                "Capitals and punctuation as Whisper hears them come of --copy_punctuation, beside any of these."
            )
        if self.source_path is None:
            known = openslr()[1]
            unknown = [name for name in self.splits if name not in known]
            if unknown:
                raise ValueError(f"LibriSpeech has no split {unknown[0]!r}; expected some of {', '.join(known)}.")
            plain = [url for url in self.mirrors if not url.startswith(("http://", "https://"))]
            if plain:
                raise ValueError(f"--mirrors has {plain[0]!r}; expected URLs that start with http:// or https://.")
        else:
            if self.source_path.startswith(HUB_PREFIX):
                raise ValueError(
                    f"--source_path {self.source_path!r} is a dataset of the Hub; for the Hub's LibriSpeech use "
                    "`audiollm prepare huggingface --dataset librispeech`."
                )
            useless = [name for name in ("archives", "mirrors") if getattr(self, name)]
            if useless:
                raise ValueError(
                    f"--{useless[0]} is about downloading, and --source_path {self.source_path!r} needs none."
                )


def open_source(
    arguments: LibriSpeechArguments, table: Mapping[str, PublishedArchive] | None = None, progress: bool = True
) -> LibriSpeechFolder | LibriSpeechArchives:
    """
    LibriSpeech as a source of clips; whatever is missing of it is downloaded and verified first.

    Args:
        arguments: which part, and where from.
        table: what is published, by split; OpenSLR's own by default.
        progress: show bars.

    Raises:
        FileNotFoundError: `source_path` is not there.
        CorpusError: it does not hold the splits.
        ChecksumError: an archive with a published one's name is another, or damaged; the message names it.
        DownloadError: no mirror gave an archive.
    """
    published = openslr()[1] if table is None else table
    if arguments.source_path is None:
        return _downloaded(arguments, published, progress)
    source = Path(arguments.source_path)
    if not source.exists():
        raise FileNotFoundError(f"--source_path {arguments.source_path!r} does not exist.")
    if source.is_file():
        _verify(source, published, progress)
        return _from_archives([source], arguments.splits, arguments, published)
    root = source / ROOT_NAME if (source / ROOT_NAME).is_dir() else source
    archives = _archives_in(source)
    if root != source or not archives:
        return LibriSpeechFolder(root, arguments.splits, arguments.letter_case)
    splits = arguments.splits or list(archives)
    missing = [split for split in splits if split not in archives]
    if missing:
        raise CorpusError(
            f"{source} holds no archive {missing[0]}.tar.gz; it holds those of {', '.join(archives)}. Ask for one of "
            "these, or name one archive itself as --source_path."
        )
    for split in splits:
        _verify(archives[split], published, progress)
    return _from_archives([archives[split] for split in splits], arguments.splits, arguments, published)


def _downloaded(
    arguments: LibriSpeechArguments, published: Mapping[str, PublishedArchive], progress: bool
) -> LibriSpeechArchives:
    folder = Path(arguments.archives) if arguments.archives else audiollm_cache_dir() / "corpora" / "librispeech"
    splits = arguments.splits or [DEFAULT_DOWNLOAD]
    mirrors = arguments.mirrors or openslr()[0]
    paths = []
    for split in splits:
        row, name = published[split], f"{split}.tar.gz"
        urls = [f"{mirror}/{row.resource}/{name}" for mirror in mirrors]
        paths.append(download(urls, folder / name, f"md5:{row.md5}", row.bytes, progress))
    return _from_archives(paths, splits, arguments, published)


def _from_archives(
    paths: list[Path],
    splits: list[str],
    arguments: LibriSpeechArguments,
    published: Mapping[str, PublishedArchive],
) -> LibriSpeechArchives:
    stems = {path: _stem(path) for path in paths}
    verified = {
        path: published[stem]
        for path, stem in stems.items()
        if stem in (splits or stems.values()) and stem in published
    }
    return LibriSpeechArchives(paths, splits, arguments.letter_case, verified)


def _verify(path: Path, published: Mapping[str, PublishedArchive], progress: bool) -> None:
    """Compares an archive that has the name of a published one with its md5."""
    row = published.get(_stem(path))
    if row is None:
        return
    advice = (
        f"It is not the published archive of {_stem(path)}, or damaged: delete it and download it again (or rename it, "
        "if it is one of your own)."
    )
    size = path.stat().st_size
    if size != row.bytes:
        raise ChecksumError(f"{path}: expected {row.bytes} bytes, found {size}. {advice}")
    verify_checksum(path, f"md5:{row.md5}", advice, progress)


def _stem(path: Path) -> str:
    """An archive's name without its ending: its split."""
    endings = [suffix for suffix in ARCHIVE_SUFFIXES if path.name.endswith(suffix)]
    return path.name.removesuffix(endings[0]) if endings else path.name


def _archives_in(folder: Path) -> dict[str, Path]:
    """Archives right in a folder by their splits, in order."""
    names = [name for name in sorted(os.listdir(folder)) if name.endswith(ARCHIVE_SUFFIXES)]
    return {_stem(folder / name): folder / name for name in names if (folder / name).is_file()}


__all__ = ["DEFAULT_OUTPUT", "DEFAULT_TASKS", "LibriSpeechArguments", "open_source", "openslr"]
