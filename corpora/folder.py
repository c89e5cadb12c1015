"""
`audiollm prepare folder`: a folder of audio with its transcripts.

    audiollm prepare folder recordings
    audiollm prepare folder recordings --manifest list.csv --columns audio=clip text=words

Transcripts lie in a text file beside each recording (a.wav, a.txt), or in a table, which is read as `audiollm prepare
huggingface` reads datasets: CSV, TSV, JSON or JSON Lines such as NeMo's, or the metadata of an audiofolder. `audiollm
prepare lhotse` reads Kaldi, LJSpeech, Common Voice and many more.
"""

import codecs
import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.command_line.files import is_audio, is_inside
from audiollm.command_line.option_parser import option

from .clips import DEFAULT_SPLIT, SPLIT_KEYWORDS, STATE_FOLDER, BadClip, Clip, ClipSource, CorpusError, split_in
from .columns import WER_UNITS, parse_overrides
from .dataset_places import FILE_BUILDERS, Place
from .huggingface import HuggingFaceArguments, HuggingFaceSource
from .values import counted, printable

#: Suffixes of transcripts beside audio: plain, HTK's, and LibriTTS' two.
TRANSCRIPT_SUFFIXES = (".txt", ".lab", ".normalized.txt", ".original.txt")
#: A longer file is no transcript of one recording.
MAX_TRANSCRIPT_BYTES = 2**20
#: Depth below the folder to which tables are looked for.
TABLE_DEPTH = 3


@dataclass
class FolderArguments:
    """A folder, and how to read it where looking at it does not tell."""

    folder: str = field(metadata={"help": "Folder of audio, with transcripts or tables in it."})
    manifest: str | None = option(None, "Table to read, relative to the folder or the working directory.")
    columns: list[str] = option(
        [],
        "Which column of a table is which field: text=sentence audio=path. Default: by usual names. `text=` leaves a "
        "field out, remark=note keeps a further column.",
    )
    transcript_suffix: str | None = option(
        None, "Suffix of transcripts beside audio, such as .txt. Default: found by looking."
    )
    split: str | None = option(None, "Split of all clips. Default: by names of columns, files and folders.")
    wer_unit: str | None = option(None, "Unit of the word errors in the column wer.", choices=[*WER_UNITS])

    def __post_init__(self):
        parse_overrides(self.columns)
        if self.transcript_suffix is not None and (self.manifest or self.columns):
            raise ValueError("--transcript_suffix is for transcripts beside audio, not for a table.")
        for name in ("transcript_suffix", "split"):
            if getattr(self, name) == "":
                raise ValueError(f"--{name} is empty.")


def open_source(arguments: FolderArguments) -> "SidecarSource | HuggingFaceSource":
    """Return the clips of a folder's table, or of the text beside its recordings; raise CorpusError if neither is clear."""
    if not os.path.isdir(arguments.folder):
        raise CorpusError(f"The folder {arguments.folder!r} is not a folder.")
    top = os.path.realpath(arguments.folder)
    if arguments.transcript_suffix is not None:
        return SidecarSource(top, arguments.transcript_suffix, arguments)
    if arguments.manifest is not None:
        path = os.path.join(top, arguments.manifest)
        path = os.path.realpath(path if os.path.exists(path) else arguments.manifest)
        if not os.path.isfile(path) or os.path.splitext(path)[1].lower() not in FILE_BUILDERS:
            endings = ", ".join(FILE_BUILDERS)
            raise CorpusError(f"--manifest {arguments.manifest!r} is no file that ends in one of {endings}.")
        return _table_source(top, {_split_of(path, top, arguments): path}, arguments)
    candidates, suffixes, audio = [], set(), 0
    for folder, files, _ in walk(top):
        stems = {_key(os.path.splitext(name)[0]) for name in files if is_audio(name)}
        audio += len(stems)
        suffixes |= {one for name in files for one in TRANSCRIPT_SUFFIXES if _stem(name, one) in stems}
        for name in files if len(Path(folder).parts) <= TABLE_DEPTH else ():
            stem, suffix = os.path.splitext(name)
            if suffix in FILE_BUILDERS and _key(stem) not in stems:
                candidates.append(os.path.join(top, folder, name))
    tables: dict[str, str] = {}
    reasons = []
    for path in candidates:
        split = _split_of(path, top, arguments)
        try:
            _table_source(top, {split: path}, arguments)
        except CorpusError as error:
            reasons.append(str(error))
            continue
        if split in tables:
            raise CorpusError(f"Both {tables[split]!r} and {path!r} list recordings; choose one with --manifest.")
        tables[split] = path
    beside = [suffix for suffix in TRANSCRIPT_SUFFIXES if suffix in suffixes and not arguments.columns]
    if len(beside) > 1 or (beside and tables):
        found = ", ".join([*(f"*{suffix} beside audio" for suffix in beside), *tables.values()])
        raise CorpusError(f"{top!r} has {found}. Choose with --transcript_suffix or --manifest.")
    if beside:
        return SidecarSource(top, beside[0], arguments)
    if tables:
        return _table_source(top, tables, arguments)
    raise CorpusError(
        f"{top!r} has no transcripts that can be read. It has {audio:,} audio files. Expected text beside the audio "
        "(a.wav, a.txt), or a CSV, TSV, JSON or JSON Lines table; name it with --manifest and its columns with --columns. "
        + " ".join(reasons)
    )


def _split_of(path: str, top: str, arguments: FolderArguments) -> str:
    """Return the split of a table, by option or by its name."""
    inside = os.path.relpath(path, top) if is_inside(path, top) else os.path.basename(path)
    return arguments.split or split_in(inside) or DEFAULT_SPLIT


def _table_source(top: str, tables: Mapping[str, str], arguments: FolderArguments) -> HuggingFaceSource:
    """Return tables, by split, as a dataset whose recordings lie in a folder."""
    columns = [*arguments.columns, *(["split="] if arguments.split else [])]
    splits = sorted(tables, key=lambda split: ([*SPLIT_KEYWORDS, split].index(split), split))
    options = HuggingFaceArguments(top, splits=splits, columns=columns, wer_unit=arguments.wer_unit)
    return HuggingFaceSource(options, place=Place(printable(top), "file", top, tables=tables))


class SidecarSource(ClipSource):
    """Recordings with a text file beside each; names and texts are its identity, not what the recordings hold."""

    def __init__(self, folder: str, suffix: str, arguments: FolderArguments):
        if arguments.wer_unit is not None:
            raise CorpusError(f"--wer_unit {arguments.wer_unit} is given, but there is no column of word errors.")
        self.name = printable(folder)
        self._top, self._suffix, self._split = folder, suffix, arguments.split
        digest, self._count = hashlib.sha256(), 0
        for clip in self.clips():
            self._count += 1
            digest.update(repr((clip.id, clip.text if isinstance(clip, Clip) else None)).encode())
        self.identity: dict[str, Any] = {
            "source": "folder",
            "folder": self.name,
            "split": self._split,
            "transcripts": suffix,
            "files": digest.hexdigest(),
        }
        self.summary = f"{self.name}: read as: {counted(self._count, 'file')} with *{suffix} beside the audio"

    def count(self) -> int:
        """Return how many recordings there are."""
        return self._count

    def every(self) -> Iterator[Clip | BadClip]:
        """Yield each recording with the transcript of its name, in a fixed order; no audio is decoded."""
        for folder, files, links in walk(self._top):
            split = self._split or split_in(folder) or DEFAULT_SPLIT
            for name in links:
                path = printable(os.path.join(folder, name))
                yield BadClip(path, f"{path!r} is a link that leads out of the folder; name that folder itself", split)
            texts = {stem: name for name in files if (stem := _stem(name, self._suffix))}
            for name in filter(is_audio, files):
                path, stem = os.path.join(folder, name), os.path.splitext(name)[0]
                identity = printable(os.path.splitext(path)[0].replace(os.sep, "/"))
                try:
                    if _key(stem) not in texts:
                        raise ValueError(f"{path!r} has no transcript: there is no {stem + self._suffix!r}")
                    text = self._transcript(os.path.join(folder, texts[_key(stem)]))
                    yield Clip(identity, self._located(path), text, split)
                except ValueError as error:
                    yield BadClip(identity, printable(str(error)), split)

    def _located(self, path: str) -> str:
        """Return the absolute path of a file; raise ValueError where a link leads out of the folder."""
        real = os.path.realpath(os.path.join(self._top, path))
        if not is_inside(real, self._top):
            raise ValueError(f"{path!r} is a link that leads out of {self._top!r}")
        return real

    def _transcript(self, name: str) -> str:
        """Return the text of a file in one line."""
        try:
            with open(self._located(name), "rb") as file:
                data = file.read(MAX_TRANSCRIPT_BYTES + 1)
            is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"the transcript {name!r} cannot be read: {error}; save it as UTF-8") from None
        if len(data) > MAX_TRANSCRIPT_BYTES:
            raise ValueError(f"the transcript {name!r} is longer than {MAX_TRANSCRIPT_BYTES:,} bytes")
        if not text.split():
            raise ValueError(f"the transcript {name!r} has no words")
        return " ".join(text.split())


def _key(stem: str) -> str:
    """Return what names of audio and transcript have in common, whichever Unicode form each has."""
    return unicodedata.normalize("NFC", stem)


def _stem(name: str, suffix: str) -> str:
    """Return the key of a name without a suffix; "" if it has another."""
    return _key(name[: -len(suffix)]) if name.lower().endswith(suffix.lower()) else ""


def walk(top: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """
    Yield every folder of a tree in a fixed order: its relative path, its files, and its links to folders elsewhere.

    Hidden files, and folders that a corpus was prepared in, are passed over; links to folders are not followed.
    """

    def refuse(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(top, onerror=refuse):
        if here != top and STATE_FOLDER in folders:
            folders.clear()
            continue
        folders[:] = _sorted(folders)
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        elsewhere = [name for name in links if not is_inside(os.path.realpath(os.path.join(here, name)), top)]
        yield "" if here == top else os.path.relpath(here, top), _sorted(files), elsewhere


def _sorted(names: list[str]) -> list[str]:
    """Return names that are not hidden, by their bytes."""
    return sorted((name for name in names if not name.startswith(".")), key=os.fsencode)
