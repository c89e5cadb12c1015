"""
`audiollm prepare librispeech`: LibriSpeech (Panayotov et al. 2015), downloaded from OpenSLR or at hand.

    audiollm prepare librispeech --splits dev-clean train-clean-100 --output data/librispeech
    audiollm prepare librispeech --source_path /corpora/LibriSpeech

Archives are downloaded from several mirrors, verified, and never unpacked to disk. Their tree is
LibriSpeech/dev-clean/84/121123/84-121123-0000.flac, ..., 84-121123.trans.txt.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import yaml
from audiollm.base_models import audiollm_cache_dir
from audiollm.command_line.downloads import ChecksumError, download, verify_checksum
from audiollm.command_line.option_parser import option

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
#: Largest file that is unpacked into memory; a clip of 35 s, uncompressed, is 1 MB.
MAX_MEMBER_BYTES = 1 << 28
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedArchive:
    """One split as OpenSLR publishes it: its resource on a mirror, size, md5, and number of clips."""

    resource: int
    bytes: int
    md5: str
    clips: int


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
        None, "Folder of downloaded archives. Default: corpora/librispeech in AudioLLM's cache."
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
            useless = [name for name in ("archives", "mirrors") if getattr(self, name)]
            if useless:
                raise ValueError(f"--{useless[0]} is for downloads; --source_path {self.source_path!r} needs none.")
            return
        if self.splits:
            check_known("splits", self.splits, openslr()[1])
        plain = [url for url in self.mirrors if not url.startswith(("http://", "https://"))]
        if plain:
            raise ValueError(f"--mirrors has {plain[0]!r}; expected URLs that start with http:// or https://.")


def open_source(
    arguments: LibriSpeechArguments, table: Mapping[str, PublishedArchive] | None = None, progress: bool = True
) -> ClipSource:
    """
    Return LibriSpeech as a source of clips, after downloading and verifying what is missing.

    The published archives are OpenSLR's, or those of `table`.

    Raises:
        FileNotFoundError, CorpusError: `source_path` does not exist, or does not hold the splits.
        ChecksumError: an archive with a published one's name is another, or damaged.
        DownloadError: no mirror gave an archive.
    """
    published = openslr()[1] if table is None else table
    splits = arguments.splits
    if arguments.source_path is None:
        folder = Path(arguments.archives) if arguments.archives else audiollm_cache_dir() / "corpora" / "librispeech"
        splits = splits or [DEFAULT_DOWNLOAD]
        paths = []
        for split in splits:
            row, name = published[split], f"{split}.tar.gz"
            urls = [f"{mirror}/{row.resource}/{name}" for mirror in arguments.mirrors or openslr()[0]]
            paths.append(download(urls, folder / name, f"md5:{row.md5}", row.bytes, progress))
        return LibriSpeechArchives(paths, splits, arguments.letter_case, published)
    source = Path(arguments.source_path)
    if not source.exists():
        raise FileNotFoundError(f"--source_path {arguments.source_path!r} does not exist.")
    paths = [source]
    if source.is_dir():
        root = source / ROOT_NAME if (source / ROOT_NAME).is_dir() else source
        archives = {_stem(path): path for path in sorted(source.iterdir()) if path.name.endswith(ARCHIVE_SUFFIXES)}
        if root != source or not archives:
            return LibriSpeechFolder(root, splits, arguments.letter_case)
        splits = splits or list(archives)
        missing = [split for split in splits if split not in archives]
        if missing:
            there = ", ".join(archives)
            raise CorpusError(f"{source} holds no archive {missing[0]}.tar.gz, but those of {there}.")
        paths = [archives[split] for split in splits]
    for path in paths:
        known = published.get(_stem(path))
        if known is not None:
            advice = f"It is not the published archive, or damaged: delete it and download it again, or rename your own {path.name}."
            if path.stat().st_size != known.bytes:
                raise ChecksumError(f"{path}: expected {known.bytes} bytes, found {path.stat().st_size}. {advice}")
            verify_checksum(path, f"md5:{known.md5}", advice, progress)
    return LibriSpeechArchives(paths, splits, arguments.letter_case, published)


def _stem(path: Path) -> str:
    """Return an archive's name without its suffix: its split."""
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


# ------------------------------------------------------------------------------------------------------------ chapters


def _is_chapter_file(name: str) -> bool:
    return name.endswith((RECORDING_SUFFIX, TRANSCRIPT_SUFFIX)) and not name.startswith(".")


#: Split, speaker, chapter, file name, and the content, or the file that has it.
ChapterFile = tuple[str, str, str, str, bytes | Path]


def _clips_of(files: Iterable[ChapterFile], letter_case: str) -> Iterator[Clip | BadClip]:
    """Yield the clips of chapters, each of which is held while its files come, sorted by id."""
    for (split, speaker, number), chapter in groupby(files, key=lambda file: file[:3]):
        recordings: dict[str, Any] = {}
        texts: dict[str, str] = {}
        clips: list[Clip | BadClip] = []
        for *_, name, content in chapter:
            if name.endswith(RECORDING_SUFFIX):
                stored = str(content) if isinstance(content, Path) else {"bytes": content, "path": name}
                recordings[name.removesuffix(RECORDING_SUFFIX)] = stored
                continue
            data = content.read_bytes() if isinstance(content, Path) else content
            try:
                lines = data.decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                reason = f"is not UTF-8 text: {error.reason} at byte {error.start}"
                clips.append(BadClip(f"{split}/{speaker}/{number}/{name}", reason, split))
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
                text = LETTER_CASES[letter_case](texts[identity])
                clips.append(Clip(identity, recordings[identity], text, split, fields))
        yield from sorted(clips, key=lambda clip: clip.id)


# ------------------------------------------------------------------------------------------------------------- sources


class LibriSpeechFolder(ClipSource):
    """
    An unpacked tree: the folder that holds the splits' folders. Without names of splits all are read, sorted.

    CorpusError is raised if it lacks a split, or holds no such tree.
    """

    def __init__(self, root: Path, splits: Sequence[str], letter_case: str):
        self.root, self.letter_case = root.absolute(), letter_case
        folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
        there = [each.name for each in folders if any(_is_chapter_file(file.name) for file in each.glob("*/*/*"))]
        if not there:
            raise CorpusError(f"{root} holds no LibriSpeech tree; expected {LAYOUT}.")
        missing = [split for split in splits if split not in there]
        if missing:
            raise CorpusError(f"{root} holds no split {missing[0]!r}; it holds {', '.join(there)}.")
        self.splits = list(splits) or there
        self.name = f"LibriSpeech in {root}"
        listing = hashlib.sha256()
        for *_, file in self._files():
            line = f"{file.relative_to(self.root)}\0{file.lstat().st_size}\0"
            listing.update(line.encode("utf-8", "surrogateescape"))
        self.identity = {
            "corpus": "librispeech",
            "folder": str(self.root),
            "files": listing.hexdigest(),
            "splits": self.splits,
            "letter_case": letter_case,
        }

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Yield all clips from the `start`-th on; recordings are paths, none is opened."""
        return islice(_clips_of(self._files(), self.letter_case), start, None)

    def count(self) -> int:
        """Return how many there are, bad ones included; reads the transcript files."""
        return sum(1 for _ in self.clips())

    def _files(self) -> Iterator[tuple[str, str, str, str, Path]]:
        """Yield the files of all chapters in order."""
        for split in self.splits:
            for chapter in sorted((self.root / split).glob("*/*"), key=lambda path: (path.parent.name, path.name)):
                for file in sorted(chapter.iterdir()) if chapter.is_dir() else ():
                    if _is_chapter_file(file.name):
                        yield split, chapter.parent.name, chapter.name, file.name, file


class LibriSpeechArchives(ClipSource):
    """
    Archives of such trees, one after the other. Without names of splits all are read.

    Those among them that are published have been verified.
    """

    def __init__(
        self, paths: Sequence[Path], splits: Sequence[str], letter_case: str, published: Mapping[str, PublishedArchive]
    ):
        self.paths, self.splits, self.letter_case = list(paths), list(splits), letter_case
        stems = {path: _stem(path) for path in paths}
        wanted = self.splits or stems.values()
        self.verified = {path: published[one] for path, one in stems.items() if one in wanted and one in published}
        self.name = f"LibriSpeech in {', '.join(path.name for path in paths)}"
        self.identity = {
            "corpus": "librispeech",
            "archives": [self._fingerprint(path) for path in paths],
            "splits": self.splits,
            "letter_case": letter_case,
        }

    def _fingerprint(self, path: Path) -> dict[str, Any]:
        if path in self.verified:
            return {"name": path.name, "md5": self.verified[path].md5}
        status = path.stat()
        return {"path": str(path.absolute()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}

    def count(self) -> int | None:
        """Return how many clips published archives hold; None if one is the user's own."""
        is_known = all(path in self.verified for path in self.paths)
        return sum(row.clips for row in self.verified.values()) if is_known else None

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """
        Yield all clips from the `start`-th on, recordings as bytes; one chapter is held at a time.

        CorpusError is raised where an archive is damaged, hostile or lacks a split.
        """
        found: set[str] = set()
        for path in self.paths:
            if path in self.verified and start >= self.verified[path].clips:
                start -= self.verified[path].clips
                found.update(self.splits or [path.name])  # they were there when it was read
                continue
            for clip in _clips_of(self._files(path, found), self.letter_case):
                if start:
                    start -= 1
                else:
                    yield clip
        missing = [split for split in self.splits if split not in found]
        if missing or not found:
            wanted = f"no split {missing[0]!r}" if missing else f"no LibriSpeech tree; expected {LAYOUT}"
            there = f"; found {', '.join(sorted(found))}" if found else ""
            raise CorpusError(f"{self.name}: there is {wanted}{there}.")

    def _files(self, path: Path, found: set[str]) -> Iterator[ChapterFile]:
        """Yield an archive's files of the wanted splits; add all splits to `found`."""

        def place(name: str) -> list[str]:
            """Return split, speaker, chapter and file name of a member; nothing if it is not wanted."""
            parts = [part for part in name.split("/") if part not in ("", ".")][-LEVELS:]
            if len(parts) < LEVELS or not _is_chapter_file(parts[-1]):
                return []
            found.add(parts[0])
            return parts if not self.splits or parts[0] in self.splits else []

        for member, data in archive_members(path, lambda name: bool(place(name))):
            split, speaker, chapter, file = place(member)
            yield split, speaker, chapter, file, data


# ------------------------------------------------------------------------------------------------------------ archives


class ArchiveError(CorpusError):
    """An archive that cannot be read to its end, or must not be; the message names it and the member."""


def archive_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """
    Yield name and bytes of the files in a tar or tar.gz archive that are wanted, in the archive's own order.

    Raises:
        ArchiveError: it is no archive, is damaged or cut off, or holds what must not be unpacked, by the rules of
            `tarfile.data_filter` (absolute paths and those with `..`, links out of it, devices), or a huge file. What
            came before was good.
    """
    last = ""
    try:
        with open(path, "rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_gzip else open(path, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as tar:
                for member in tar:
                    last = member.name
                    tarfile.data_filter(member, ".")
                    if member.issparse() or (wanted(last) and member.size > MAX_MEMBER_BYTES):
                        raise tarfile.FilterError(f"it is sparse, or larger than {MAX_MEMBER_BYTES} bytes")
                    if member.isfile() and wanted(last):
                        content = tar.extractfile(member)
                        yield last, content.read() if content else b""
                    tar.members = []  # type: ignore[attr-defined]  # or it would keep a record of every member
            while stream.read(BLOCK_BYTES):  # up to the checksum of gzip
                pass
    except tarfile.FilterError as error:
        raise ArchiveError(f"Archive {path} is refused at member {last!r}: {error}.") from error
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, RecursionError) as error:
        where = f"at member {last!r}" if last else "at its start"
        raise ArchiveError(f"Archive {path} is damaged {where}: {error}; delete it and download it again.") from error
