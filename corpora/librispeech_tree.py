"""
LibriSpeech's tree of splits, speakers and chapters as clips, from a folder or from archives, which are never unpacked.

    LibriSpeech/dev-clean/84/121123/84-121123-0000.flac, ..., 84-121123.trans.txt      LibriSpeech/SPEAKERS.TXT

Clips come chapter by chapter, sorted within each. A folder gives its splits as they are asked for and its chapters sorted;
an archive, which is read from front to back, gives chapters in the order in which it holds them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .archives import iterate
from .clips import BadClip, Clip, CorpusError, FieldValue
from .letter_case import letter_case_named

SPEAKERS_NAME = "SPEAKERS.TXT"
RECORDING_SUFFIX, TRANSCRIPT_SUFFIX = ".flac", ".trans.txt"
LAYOUT = (
    "LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac beside <speaker>-<chapter>.trans.txt"
)
LANGUAGE = "en"
#: Columns of SPEAKERS.TXT: id, sex, subset, minutes and name, which may hold the separator.
SPEAKER_SEPARATOR, SPEAKER_COLUMNS, SEX_COLUMN, NAME_COLUMN = "|", 5, 1, 4
#: Levels of a chapter's file below the split's parent: split, speaker, chapter, file.
LEVELS = 4
#: Largest chapter that is held in memory until its transcripts are there: 128 clips of 35 s, uncompressed, are 143 MB.
MAX_CHAPTER_BYTES = 1 << 30


@dataclass(frozen=True)
class PublishedArchive:
    """One split as OpenSLR publishes it: where on a mirror, how large, its md5, and how many clips it holds."""

    resource: int
    bytes: int
    md5: str
    clips: int


def read_speakers(content: bytes) -> dict[str, tuple[str, str]]:
    """Sex and name of each reader by id, from SPEAKERS.TXT, whose comments are passed over."""
    speakers = {}
    for line in content.decode("utf-8", "replace").splitlines():
        columns = [column.strip() for column in line.split(SPEAKER_SEPARATOR, SPEAKER_COLUMNS - 1)]
        if len(columns) == SPEAKER_COLUMNS and columns[0].isalnum():
            speakers[columns[0]] = (columns[SEX_COLUMN], columns[NAME_COLUMN])
    return speakers


@dataclass
class Chapter:
    """One chapter's folder: recordings by file name without ending, its transcript file, and what is wrong so far."""

    split: str
    speaker: str
    name: str
    recordings: dict[str, Any] = field(default_factory=dict)
    transcript: bytes | None = None
    problems: list[BadClip] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{self.split}/{self.speaker}/{self.name}"

    def bad(self, identity: str, reason: str) -> None:
        self.problems.append(BadClip(identity, reason, self.split))

    def add(self, file: str, content: Any) -> None:
        """One of its files: a recording as `Clip` has it, or the bytes of the transcript file."""
        if file.endswith(TRANSCRIPT_SUFFIX):
            if self.transcript is not None:
                self.bad(f"{self.where}/{file}", "is a second transcript file of its chapter")
            else:
                self.transcript = content
            return
        identity = file.removesuffix(RECORDING_SUFFIX)
        if not identity.startswith(f"{self.speaker}-{self.name}-"):
            self.bad(f"{self.where}/{file}", f"is not named {self.speaker}-{self.name}-<number>{RECORDING_SUFFIX}")
        elif identity in self.recordings:
            self.bad(identity, "is twice in the archive")
        else:
            self.recordings[identity] = content

    def texts(self) -> dict[str, str]:
        """Transcripts by clip; what is wrong with the file joins the problems."""
        try:
            lines = (self.transcript or b"").decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 text: {error.reason} at byte {error.start}"
            self.bad(f"{self.where}/{self.speaker}-{self.name}{TRANSCRIPT_SUFFIX}", reason)
            return {}
        texts: dict[str, str] = {}
        for line in filter(str.strip, lines):
            identity, _, text = line.strip().partition(" ")
            if identity in texts:
                self.bad(identity, "has two lines in its transcript file")
            texts.setdefault(identity, text.strip())
        return texts

    def clips(self, speakers: Mapping[str, tuple[str, str]], letter_case: str) -> list[Clip | BadClip]:
        """Sorted by id; what lacks a recording or a transcript is bad."""
        restore, texts = letter_case_named(letter_case), self.texts()
        sex, reader = speakers.get(self.speaker, (None, None))
        fields: dict[str, FieldValue] = {
            "speaker": self.speaker,
            "speaker_sex": sex,
            "speaker_name": reader,
            "chapter": self.name,
            "language": LANGUAGE,
        }
        good = []
        for identity in self.recordings.keys() | texts.keys():
            if identity not in self.recordings:
                self.bad(identity, "has a transcript and no recording")
            elif not texts.get(identity):
                self.bad(identity, "has a recording and no transcript")
            else:
                text = restore(texts[identity])
                good.append(Clip(identity, self.recordings[identity], text, self.split, fields))
        return sorted([*good, *self.problems], key=lambda clip: (clip.id, isinstance(clip, BadClip)))


# ------------------------------------------------------------------------------------------------------------ folder


class LibriSpeechFolder:
    """
    An unpacked tree.

    Args:
        root: the folder that holds the splits' folders. These may be links; nothing below them may lead out of them.
        splits: which, in this order; all, sorted, if there are none.
        letter_case: a name of `LETTER_CASES`.

    Raises:
        CorpusError: it lacks a split, or holds no such tree.
    """

    def __init__(self, root: Path, splits: Sequence[str], letter_case: str):
        self.root, self.letter_case = root.absolute(), letter_case
        there = [
            folder.name
            for folder in sorted(root.iterdir())
            if folder.is_dir() and any(map(_is_chapter_file, folder.glob("*/*/*")))
        ]
        if not there:
            raise CorpusError(f"{root} holds no LibriSpeech tree; expected {LAYOUT}.")
        missing = [split for split in splits if split not in there]
        if missing:
            raise CorpusError(f"{root} holds no split {missing[0]!r}; it holds {', '.join(there)}.")
        self.splits = list(splits) or there
        self.name = f"LibriSpeech in {root}"
        # A digest of all files' places and sizes: with a file more or less the order is another.
        listing = hashlib.sha256()
        for _, _, _, file in self._files():
            listing.update(
                f"{file.relative_to(self.root)}\0{file.lstat().st_size}\0".encode("utf-8", "surrogateescape")
            )
        self.identity: dict[str, Any] = {
            "corpus": "librispeech",
            "folder": str(self.root),
            "files": listing.hexdigest(),
            "splits": self.splits,
            "letter_case": letter_case,
        }

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """All clips from the `start`-th on; recordings are paths, none is opened."""
        return islice(self._all(), start, None)

    def count(self) -> int:
        """How many there are, bad ones as well: reads the transcript files."""
        return sum(1 for _ in self._all())

    def _all(self) -> Iterator[Clip | BadClip]:
        table = self.root / SPEAKERS_NAME
        speakers = read_speakers(table.read_bytes()) if table.is_file() else {}
        chapter = None
        for split, speaker, name, file in self._files():
            if chapter is None or (chapter.split, chapter.speaker, chapter.name) != (split, speaker, name):
                if chapter is not None:
                    yield from chapter.clips(speakers, self.letter_case)
                chapter = Chapter(split, speaker, name)
            if not file.resolve().is_relative_to((self.root / split).resolve()):
                chapter.bad(f"{chapter.where}/{file.name}", f"is a link that leads out of {self.root / split}")
            elif file.name.endswith(TRANSCRIPT_SUFFIX):
                chapter.add(file.name, file.read_bytes())
            else:
                chapter.add(file.name, str(file))
        if chapter is not None:
            yield from chapter.clips(speakers, self.letter_case)

    def _files(self) -> Iterator[tuple[str, str, str, Path]]:
        """Split, speaker, chapter and path of every recording and transcript file, in order."""
        for split in self.splits:
            for speaker in _folders(self.root / split):
                for chapter in _folders(speaker):
                    for file in filter(_is_chapter_file, sorted(chapter.iterdir())):
                        yield split, speaker.name, chapter.name, file


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


def _is_chapter_file(path: Path) -> bool:
    return path.name.endswith((RECORDING_SUFFIX, TRANSCRIPT_SUFFIX)) and not path.name.startswith(".")


# ---------------------------------------------------------------------------------------------------------- archives


class LibriSpeechArchives:
    """
    Archives of such trees, one after the other.

    Args:
        paths: the archives, in order.
        splits: which of their splits; all if there are none.
        letter_case: a name of `LETTER_CASES`.
        verified: which of the archives are published ones, byte by byte, of a split that is wanted.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        splits: Sequence[str],
        letter_case: str,
        verified: Mapping[Path, PublishedArchive],
    ):
        self.paths, self.splits, self.letter_case, self.verified = list(paths), list(splits), letter_case, verified
        self.name = f"LibriSpeech in {', '.join(path.name for path in paths)}"
        self.identity: dict[str, Any] = {
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
        """How many clips published archives hold; None where one is of the user's own."""
        if all(path in self.verified for path in self.paths):
            return sum(self.verified[path].clips for path in self.paths)
        return None

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """
        All clips from the `start`-th on, recordings as bytes; one chapter is held at a time.

        Raises:
            ArchiveError: an archive is damaged, or holds what no corpus needs; what came before it was good.
            CorpusError: no archive has a split that was asked for, or a chapter's files are scattered.
        """
        found: set[str] = set()
        for path in self.paths:
            if path in self.verified and start >= self.verified[path].clips:
                start -= self.verified[path].clips
                found.update(self.splits or [path.name])  # what was skipped was there when it was read
                continue
            for clip in self._of(path, found):
                if start:
                    start -= 1
                else:
                    yield clip
        missing = [split for split in self.splits if split not in found]
        if missing or not found:
            wanted = f"no split {missing[0]!r}" if missing else f"no LibriSpeech tree; expected {LAYOUT}"
            there = f"; found {', '.join(sorted(found))}" if found else ""
            raise CorpusError(f"{self.name}: there is {wanted}{there}.")

    def _of(self, path: Path, found: set[str]) -> Iterator[Clip | BadClip]:
        def wanted(name: str) -> bool:
            place = _place(name)
            if place is not None:
                found.add(place[0])
            return place is not None and (not self.splits or place[0] in self.splits)

        speakers = _speakers_of(path)
        chapter, held_bytes = None, 0
        finished: set[str] = set()
        for member, data in iterate(path, wanted):
            split, speaker, name, file = _place(member) or ("", "", "", "")
            if chapter is None or (chapter.split, chapter.speaker, chapter.name) != (split, speaker, name):
                if chapter is not None:
                    yield from chapter.clips(speakers, self.letter_case)
                    finished.add(chapter.where)
                chapter, held_bytes = Chapter(split, speaker, name), 0
            held_bytes += len(data)
            if chapter.where in finished or held_bytes > MAX_CHAPTER_BYTES:
                reason = "are scattered over it" if chapter.where in finished else f"exceed {MAX_CHAPTER_BYTES} bytes"
                raise CorpusError(
                    f"Archive {path}: the files of chapter {chapter.where} {reason}; unpack it and give the folder "
                    "as --source_path instead."
                )
            chapter.add(file, data if file.endswith(TRANSCRIPT_SUFFIX) else {"bytes": data, "path": member})
        if chapter is not None:
            yield from chapter.clips(speakers, self.letter_case)


def _place(member: str) -> tuple[str, str, str, str] | None:
    """Split, speaker, chapter and file name of an archive's member, if it is one of a chapter's files."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    if len(parts) < LEVELS or not _is_chapter_file(Path(parts[-1])):
        return None
    split, speaker, chapter, file = parts[-LEVELS:]
    return split, speaker, chapter, file


def _speakers_of(path: Path) -> dict[str, tuple[str, str]]:
    """The archive's table of speakers, which published ones have at their start; else all of it is searched."""
    with closing(iterate(path, lambda name: name.split("/")[-1] == SPEAKERS_NAME)) as tables:  # type: ignore[type-var]
        return next((read_speakers(content) for _, content in tables), {})


__all__ = ["LibriSpeechArchives", "LibriSpeechFolder", "PublishedArchive", "read_speakers"]
