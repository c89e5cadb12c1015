"""Audio with a transcript beside each file, of the same name: `.txt`, `.lab` and the like, at any depth."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from audiollm.files import is_audio

from .clips import DEFAULT_SPLIT, BadClip, Clip, CorpusError
from .folder_paths import AudioRoot, Folder, PathError, split_in, walk
from .folder_rows import FolderReader
from .manifests import encoding_of, printable, shown, text_problem

#: What a transcript's name has in place of audio's ending: plain, HTK, and LibriTTS' two.
TRANSCRIPT_SUFFIXES = (".txt", ".lab", ".normalized.txt", ".original.txt")
#: A longer file is no transcript of one recording.
MAX_TRANSCRIPT_BYTES = 2**20
#: Texts that lie in folders of recordings and are no transcripts, by their names in small letters without ending.
NOT_TRANSCRIPTS = frozenset(
    [
        "readme",
        "license",
        "licence",
        "copying",
        "copyright",
        "changelog",
        "changes",
        "notes",
        "about",
        "citation",
        "requirements",
        "sha256sums",
        "md5sums",
        "checksums",
        "speakers",
        "speaker-info",
        "filelist",
    ]
)


@dataclass(frozen=True)
class Pair:
    """Audio with its transcript, by paths relative to the tree; `problem` where one lacks the other."""

    audio: str
    transcript: str
    problem: str = ""


def pairs(root: AudioRoot, suffix: str) -> Iterator[Pair]:
    """Every recording and transcript of a tree, in an order that never changes."""
    for folder in walk(root):
        yield from (Pair(path, "", reason) for path, reason in folder.problems)
        yield from _pairs_of(folder, suffix)


def suffixes_seen(root: AudioRoot) -> tuple[list[str], int]:
    """Endings of transcripts that lie beside audio of a tree, in the order of the constant, and how much audio there is."""
    seen, audio = set(), 0
    for folder in walk(root):
        stems = {_key(os.path.splitext(name)[0]) for name in folder.files if is_audio(name)}
        audio += len(stems)
        for suffix in TRANSCRIPT_SUFFIXES:
            found = (_stem(name, suffix) for name in folder.files)
            if suffix not in seen and any(stem is not None and _key(stem) in stems for stem in found):
                seen.add(suffix)
    return [suffix for suffix in TRANSCRIPT_SUFFIXES if suffix in seen], audio


def digest(root: AudioRoot, suffix: str) -> tuple[str, int]:
    """
    A sha256 over the names of recordings and the content of transcripts, and how many clips and problems they make.

    Recordings themselves do not count, so that one which was damaged can be mended and tried again.
    """
    digested, count = hashlib.sha256(), 0
    for pair in pairs(root, suffix):
        count += 1
        try:
            content = _bytes_of(root.locate(pair.transcript))
        except (PathError, OSError):
            content = b""
        for part in (os.fsencode(pair.audio), os.fsencode(pair.transcript), hashlib.sha256(content).digest()):
            digested.update(part + b"\0")
    return digested.hexdigest(), count


def sidecar_clips(root: AudioRoot, suffix: str, reader: FolderReader) -> Iterator[Clip | BadClip]:
    """The clips of a tree of recordings with transcripts beside them."""
    for pair in pairs(root, suffix):
        path = pair.audio or pair.transcript
        identity = root.identify(path)
        split = reader.split or split_in(os.path.dirname(path)) or DEFAULT_SPLIT
        try:
            if pair.problem:
                raise PathError(f"{path!r} {pair.problem}")
            recording = root.locate(pair.audio)
            text = _transcript(root.locate(pair.transcript), pair.transcript, reader.encoding)
        except PathError as error:
            yield BadClip(
                identity if pair.audio and not pair.problem else printable(path), printable(str(error)), split
            )
        else:
            yield Clip(identity, recording, text, split)


def _pairs_of(folder: Folder, suffix: str) -> Iterator[Pair]:
    recordings: dict[str, list[str]] = {}
    transcripts: dict[str, str] = {}
    for name in folder.files:
        if is_audio(name):
            recordings.setdefault(_key(os.path.splitext(name)[0]), []).append(name)
    for name in folder.files:
        stem = _stem(name, suffix)
        if stem is not None and (_key(stem) in recordings or not _is_another_text(name, stem, recordings)):
            transcripts[_key(stem)] = name
    for key in sorted({*recordings, *transcripts}, key=os.fsencode):
        here = [os.path.join(folder.path, name) for name in recordings.get(key, [])]
        text = os.path.join(folder.path, transcripts[key]) if key in transcripts else ""
        if not here:
            yield Pair("", text, "is a transcript without a recording: there is no audio of its name beside it")
        elif not text:
            wanted = os.path.splitext(here[0])[0] + suffix
            yield from (Pair(path, "", f"has no transcript: there is no {wanted!r}") for path in here)
        else:
            yield Pair(here[0], text)
            yield from (
                Pair(path, "", f"would have the same transcript as {here[0]!r}; keep one") for path in here[1:]
            )


def _key(stem: str) -> str:
    """What names of audio and transcript have in common, whichever Unicode form each was written in."""
    return unicodedata.normalize("NFC", stem)


def _stem(name: str, suffix: str) -> str | None:
    return name[: -len(suffix)] if name.lower().endswith(suffix.lower()) and len(name) > len(suffix) else None


def _is_another_text(name: str, stem: str, recordings: dict[str, list[str]]) -> bool:
    """Whether a text without audio of its name is none to report: a README, or another kind of transcript."""
    kinds = (_stem(name, suffix) for suffix in TRANSCRIPT_SUFFIXES)
    return stem.lower() in NOT_TRANSCRIPTS or any(kind is not None and _key(kind) in recordings for kind in kinds)


def _bytes_of(path: str) -> bytes:
    """A transcript's bytes, and one more than it may have of a longer file."""
    with open(path, "rb") as file:
        return file.read(MAX_TRANSCRIPT_BYTES + 1)


def _transcript(path: str, name: str, encoding: str | None) -> str:
    """The text of a file in one line."""
    try:
        used = encoding_of(path, encoding)
        data = _bytes_of(path)
        text = data.decode(used, "surrogateescape")
    except (OSError, UnicodeError, CorpusError) as error:
        raise PathError(f"the transcript {name!r} cannot be read: {error}") from None
    if len(data) > MAX_TRANSCRIPT_BYTES:
        raise PathError(f"the transcript {name!r} is longer than {MAX_TRANSCRIPT_BYTES:,} bytes")
    problem = text_problem(text, encoding)
    if problem:
        raise PathError(f"the transcript {name!r}: {problem}")
    words = " ".join(text.split())
    if not words:
        raise PathError(f"the transcript {name!r} has no words: {shown(text)}")
    return words


__all__ = ["TRANSCRIPT_SUFFIXES", "digest", "sidecar_clips", "suffixes_seen"]
