"""
`audiollm prepare librispeech`: LibriSpeech (Panayotov et al. 2015), downloaded from OpenSLR or at hand.

    audiollm prepare librispeech --splits dev-clean train-clean-100 --output data/librispeech
    audiollm prepare librispeech --source_path /corpora/LibriSpeech

Archives are downloaded from several mirrors, verified, and unpacked once. Their tree is
LibriSpeech/dev-clean/84/121123/84-121123-0000.flac, ..., 84-121123.trans.txt.
"""

import gzip
import hashlib
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from audiollm.base_models import audiollm_cache_dir
from audiollm.command_line.downloads import ChecksumError, download, verify_checksum
from audiollm.command_line.files import appearing_whole, naming_the_disk, sha256_of
from audiollm.command_line.interruption import interruptible
from audiollm.command_line.option_parser import option
from filelock import FileLock
from tqdm.auto import tqdm

from .clips import BadClip, Clip, ClipSource, CorpusError, FieldValue
from .letter_case import LETTER_CASES
from .values import check_known

#: Downloaded where no split is asked for: the smallest of the original ones that is clean speech.
DEFAULT_DOWNLOAD = "dev-clean"
OPENSLR_FILE = Path(__file__).parent / "openslr.yaml"
ROOT_NAME = "LibriSpeech"
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
RECORDING_SUFFIX, TRANSCRIPT_SUFFIX = ".flac", ".trans.txt"
LAYOUT = (
    "LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac beside <speaker>-<chapter>.trans.txt"
)
LANGUAGE = "en"
#: Levels of a chapter's file below the split's parent: split, speaker, chapter, file.
LEVELS = 4
#: Largest file that is unpacked; a clip of 35 s, uncompressed, is 1 MB.
MAX_MEMBER_BYTES = 1 << 28
BLOCK_BYTES = 1 << 20
#: Digits of a checksum in the name of the folder that an archive is unpacked to.
DIGITS = 8


@dataclass(frozen=True)
class PublishedArchive:
    """One split as OpenSLR publishes it: its resource on a mirror, size, and md5."""

    resource: int
    bytes: int
    md5: str


@lru_cache(maxsize=1)
def openslr() -> tuple[tuple[str, ...], dict[str, PublishedArchive]]:
    """Return the mirrors, and the splits by name."""
    table = yaml.safe_load(OPENSLR_FILE.read_text(encoding="utf-8"))
    return tuple(table["mirrors"]), {name: PublishedArchive(**row) for name, row in table["splits"].items()}


@dataclass
class LibriSpeechArguments:
    """Part of LibriSpeech, and where it comes from."""

    splits: list[str] = option(
        [],
        "Splits, separated by spaces or commas: dev-clean, dev-other, test-clean, test-other, train-clean-100, "
        "train-clean-360, train-other-500; of Mini LibriSpeech dev-clean-2, train-clean-5. Default: all of "
        f"--source_path, or {DEFAULT_DOWNLOAD} as a download.",
    )
    source_path: str | None = option(
        None,
        "A folder with the unpacked LibriSpeech/ tree, a folder with archives named <split>.tar.gz, or one "
        "archive. Without it the archives are downloaded.",
    )
    archives: str | None = option(
        None,
        "Folder that archives are downloaded and unpacked to. Default: corpora/librispeech in AudioLLM's cache.",
    )
    mirrors: list[str] = option(
        [], "Base URLs to download from, in the order to try, as https://www.openslr.org/resources."
    )
    letter_case: str = option(
        "sentence",
        "Case of the transcripts, which are all capitals: sentence (lower case, but for the first letter, I, and "
        "words such as London), lower, or keep.",
        choices=[*LETTER_CASES],
    )

    def __post_init__(self):
        self.splits = list(dict.fromkeys(name for given in self.splits for name in given.split(",") if name))
        self.mirrors = [url.rstrip("/") for given in self.mirrors for url in given.split(",") if url]
        if self.source_path is not None:
            if self.mirrors:
                raise ValueError(f"--mirrors is for downloads; --source_path {self.source_path!r} needs none.")
            return
        if self.splits:
            check_known("splits", self.splits, openslr()[1])
        plain = [url for url in self.mirrors if not url.startswith(("http://", "https://"))]
        if plain:
            raise ValueError(f"--mirrors has {plain[0]!r}; expected URLs that start with http:// or https://.")


def open_source(
    arguments: LibriSpeechArguments, table: Mapping[str, PublishedArchive] | None = None, progress: bool = True
) -> "LibriSpeech":
    """
    Return LibriSpeech as a source of clips, after downloading, verifying and unpacking what is missing.

    The published archives are OpenSLR's, or those of `table`. Raises as `download` and [`unpack`]; FileNotFoundError or
    CorpusError where `source_path` does not exist, or does not hold the splits.
    """
    published, splits = openslr()[1] if table is None else table, arguments.splits
    kept = Path(arguments.archives) if arguments.archives else audiollm_cache_dir() / "corpora" / "librispeech"
    if arguments.source_path is None:
        splits = splits or [DEFAULT_DOWNLOAD]
        folders = [_downloaded(split, published[split], arguments.mirrors, kept, progress) for split in splits]
        return LibriSpeech(folders, splits, arguments.letter_case)
    source = Path(arguments.source_path)
    if not source.exists():
        raise FileNotFoundError(f"--source_path {arguments.source_path!r} does not exist.")
    archives = [source]
    if source.is_dir():
        root = source / ROOT_NAME if (source / ROOT_NAME).is_dir() else source
        named = {_stem(path): path for path in sorted(source.iterdir()) if path.name.endswith(ARCHIVE_SUFFIXES)}
        if root != source or not named:
            return LibriSpeech([root.absolute()], splits, arguments.letter_case)
        missing = [split for split in splits if split not in named]
        if missing:
            raise CorpusError(f"{source} holds no archive {missing[0]}.tar.gz, but those of {', '.join(named)}.")
        archives = [named[split] for split in splits or named]
    folders = [_at_hand(path, published.get(_stem(path)), kept, progress) for path in archives]
    return LibriSpeech(folders, splits, arguments.letter_case)


def _downloaded(split: str, row: PublishedArchive, mirrors: Sequence[str], kept: Path, progress: bool) -> Path:
    """Return the folder of a published archive; what has been unpacked is not asked for again."""
    folder, name = kept / f"{split}-{row.md5[:DIGITS]}", f"{split}.tar.gz"
    if not folder.exists():
        urls = [f"{mirror}/{row.resource}/{name}" for mirror in mirrors or openslr()[0]]
        unpack(download(urls, kept / name, f"md5:{row.md5}", row.bytes, progress), folder, progress)
    return folder


def _at_hand(path: Path, row: PublishedArchive | None, kept: Path, progress: bool) -> Path:
    """Return the folder of a user's archive, which is verified if it has a published one's name."""
    status = path.stat()
    digest = sha256_of(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}".encode())
    if row is not None:
        advice = f"It is not the published archive, or damaged: delete it and download it again, or rename your own {path.name}."
        if status.st_size != row.bytes:
            raise ChecksumError(f"{path}: expected {row.bytes} bytes, found {status.st_size}. {advice}")
        verify_checksum(path, f"md5:{row.md5}", advice, progress)
        digest = row.md5
    folder = kept / f"{_stem(path)}-{digest[:DIGITS]}"
    unpack(path, folder, progress)
    return folder


def _stem(path: Path) -> str:
    """Return an archive's name without its suffix: its split."""
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


def _is_chapter_file(name: str) -> bool:
    return name.endswith((RECORDING_SUFFIX, TRANSCRIPT_SUFFIX)) and not name.startswith(".")


class LibriSpeech(ClipSource):
    """
    Unpacked trees: folders that hold the splits' folders. Without names of splits all are read, sorted.

    CorpusError is raised if they lack a split, or hold no such tree.
    """

    def __init__(self, roots: Sequence[Path], splits: Sequence[str], letter_case: str):
        self.roots, self.letter_case = roots, letter_case
        self.name = f"LibriSpeech in {', '.join(map(str, roots))}"
        folders = sorted(
            (folder for root in roots for folder in root.iterdir() if folder.is_dir()), key=lambda one: one.name
        )
        there = [each.name for each in folders if any(_is_chapter_file(file.name) for file in each.glob("*/*/*"))]
        if not there:
            raise CorpusError(f"{self.name}: there is no LibriSpeech tree; expected {LAYOUT}.")
        missing = [split for split in splits if split not in there]
        if missing:
            raise CorpusError(f"{self.name}: there is no split {missing[0]!r}; found {', '.join(there)}.")
        self.splits = list(splits) or list(dict.fromkeys(there))
        listing = hashlib.sha256()
        for chapter in self._chapters():
            for file in sorted(chapter.iterdir()):
                line = f"{'/'.join(file.parts[-LEVELS:])}\0{file.lstat().st_size}\0"
                listing.update(line.encode("utf-8", "surrogateescape") if _is_chapter_file(file.name) else b"")
        self.identity = {
            "corpus": "librispeech",
            "files": listing.hexdigest(),
            "splits": self.splits,
            "letter_case": letter_case,
        }

    def _chapters(self) -> Iterator[Path]:
        """Yield the folders of all chapters in order."""
        for split in self.splits:
            chapters = (chapter for root in self.roots for chapter in (root / split).glob("*/*") if chapter.is_dir())
            yield from sorted(chapters, key=lambda path: path.parts[-2:])

    def count(self) -> int:
        """Return how many there are; reads the transcript files."""
        return sum(1 for _ in self.every())

    def every(self) -> Iterator[Clip | BadClip]:
        """Yield all clips; recordings are paths, none is opened."""
        return (clip for chapter in self._chapters() for clip in self._clips_of(chapter))

    def _clips_of(self, chapter: Path) -> list[Clip | BadClip]:
        """Return the clips of a chapter, sorted by id."""
        split, speaker, number = chapter.parts[1 - LEVELS :]
        recordings: dict[str, str] = {}
        texts: dict[str, str] = {}
        clips: list[Clip | BadClip] = []
        for file in filter(lambda file: _is_chapter_file(file.name), chapter.iterdir()):
            if file.suffix == RECORDING_SUFFIX:
                recordings[file.stem] = str(file)
                continue
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                reason = f"is not UTF-8 text: {error.reason} at byte {error.start}"
                clips.append(BadClip("/".join(file.parts[-LEVELS:]), reason, split))
            else:
                found = (line.strip().partition(" ") for line in lines if line.strip())
                texts |= {identity: text.strip() for identity, _, text in found}
        fields: dict[str, FieldValue] = {"speaker": speaker, "chapter": number, "language": LANGUAGE}
        for identity in recordings.keys() | texts.keys():
            if identity not in recordings:
                clips.append(BadClip(identity, "has a transcript and no recording", split))
            elif not texts.get(identity):
                clips.append(BadClip(identity, "has a recording and no transcript", split))
            else:
                text = LETTER_CASES[self.letter_case](texts[identity])
                clips.append(Clip(identity, recordings[identity], text, split, fields))
        return sorted(clips, key=lambda clip: clip.id)


class ArchiveError(CorpusError):
    """An archive that cannot be read to its end, or must not be; the message names it and the member."""


def unpack(path: Path, folder: Path, progress: bool = True) -> None:
    """
    Unpack the chapters of a tar or tar.gz archive to a folder of splits, which appears whole; nothing if it is there.

    ArchiveError is raised if it is damaged, or holds a huge file or what `tarfile.data_filter` refuses: paths and links
    that lead out of it, devices.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")), naming_the_disk(folder):
        if folder.exists():
            return
        for left in folder.parent.glob(f".{folder.name}.partial-*"):  # by a run that was killed
            shutil.rmtree(left)
        with appearing_whole(folder) as partial:
            _extract(path, partial, progress)


def _extract(path: Path, folder: Path, progress: bool) -> None:
    last = ""
    shown = {"desc": f"Unpacking {path.name}", "total": path.stat().st_size, "leave": False, "disable": not progress}
    try:
        with open(path, "rb") as file, tqdm.wrapattr(file, "read", **shown) as counted:
            is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=counted) if is_gzip else counted
            with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as tar:
                for member in interruptible(tar):
                    last = member.name
                    tarfile.data_filter(member, ".")
                    parts = posixpath.normpath(last).split("/")[-LEVELS:]  # without "..", which might lead out
                    is_wanted = member.isfile() and len(parts) == LEVELS and _is_chapter_file(parts[-1])
                    if member.issparse() or (is_wanted and member.size > MAX_MEMBER_BYTES):
                        raise tarfile.FilterError(f"it is sparse, or larger than {MAX_MEMBER_BYTES} bytes")
                    content = tar.extractfile(member) if is_wanted else None
                    if content is not None:
                        target = folder.joinpath(*parts)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(content.read())
                    tar.members = []  # type: ignore[attr-defined]  # or it would keep a record of every member
            while stream.read(BLOCK_BYTES):  # up to the checksum of gzip
                pass
    except tarfile.FilterError as error:
        raise ArchiveError(f"Archive {path} is refused at member {last!r}: {error}.") from error
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError, RecursionError) as error:
        where = f"at member {last!r}" if last else "at its start"
        raise ArchiveError(f"Archive {path} is damaged {where}: {error}; delete it and download it again.") from error
