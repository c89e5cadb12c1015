"""Clips of manifests that have one row for each: tables, LJSpeech, Common Voice, NeMo, JSON lines, audiofolder."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from audiollm.files import AUDIO_SUFFIXES

from .clips import DEFAULT_SPLIT, BadClip, Clip
from .folder_paths import AudioRoot, PathError, split_in, split_named
from .manifest_columns import Columns, Reading, RowError
from .manifests import (
    DELIMITERS,
    GZIP_SUFFIX,
    PARQUET_SUFFIX,
    Row,
    column_names,
    first_line,
    json_rows,
    parquet_names,
    parquet_rows,
    printable,
    split_columns,
    table_rows,
)

#: LJSpeech has no header (keithito.com/LJ-Speech-Dataset): id, transcript, and the same with numbers written out.
LJSPEECH_NAMES = ("id", "text", "normalized_text")
LJSPEECH_DELIMITER = "|"
#: Folders beside a manifest that paths of a layout start in, where they are there.
AUDIO_FOLDERS = {"ljspeech": "wavs", "commonvoice": "clips"}
#: Layouts that may leave the ending of audio files out.
WITHOUT_ENDINGS = ("ljspeech", "commonvoice")
#: What quotation marks mean by default: in tables with tabs both kinds are found, often in one file.
LENIENT_DELIMITERS = ("\t",)


@dataclass(frozen=True)
class Manifest:
    """
    One list of recordings in a folder.

    Attributes:
        layout: which of the usual shapes it has.
        path: of the file; of the folder, for Kaldi and for audio with transcripts beside it.
        name: what messages call it.
        split: what its name says; None where it says nothing.
        companion: the recordings that Lhotse's supervisions speak of.
    """

    layout: str
    path: str
    name: str
    split: str | None = None
    companion: str = ""


@dataclass(frozen=True)
class FolderReader:
    """
    What all layouts are read with.

    Attributes:
        root: where recordings may lie.
        fixed_start: whether relative paths start there, instead of where their manifest lies.
        columns: how rows are read.
        encoding, quotes: as the user said.
        split: of all clips; None for what names and columns say.
    """

    root: AudioRoot
    fixed_start: bool = False
    columns: Columns = field(default_factory=Columns)
    encoding: str | None = None
    quotes: str | None = None
    split: str | None = None

    def start_of(self, manifest: Manifest) -> str:
        """Where a manifest's relative paths start."""
        return self.root.folder if self.fixed_start else _start_beside(manifest, self.root.folder)

    def clip(self, reading: Reading, manifest: Manifest, where: str) -> Clip | BadClip:
        """The clip that a row means, or why it cannot be one."""
        start = self.start_of(manifest)
        split = self.split_of(reading.split, manifest, self.root.identify(reading.audio, start))
        endings = AUDIO_SUFFIXES if manifest.layout in WITHOUT_ENDINGS else ()
        identity = reading.id or self.identify(reading, start, manifest)
        try:
            recording = self.root.locate(reading.audio, start, endings)
        except PathError as error:
            return BadClip(identity, printable(f"{manifest.name}, {where}: {error}"), split)
        return Clip(identity, recording, reading.text, split, reading.fields, reading.start, reading.end)

    def identify(self, reading: Reading, start: str, manifest: Manifest) -> str:
        """The id of a clip whose manifest gives none: its path, and the part of the recording in seconds."""
        root = AudioRoot(start) if manifest.layout in AUDIO_FOLDERS else self.root
        path = root.identify(reading.audio, start)
        if not reading.start and reading.end is None:
            return path
        return f"{path}@{reading.start:g}-{'' if reading.end is None else format(reading.end, 'g')}"

    def split_of(self, stated: str, manifest: Manifest, path: str) -> str:
        """The split of a clip: what the user, its row, its manifest's name or its folder says, in this order."""
        named = split_named(stated) if stated else manifest.split
        return self.split or named or split_in(os.path.dirname(path)) or DEFAULT_SPLIT

    def bad(self, manifest: Manifest, where: str, reason: str) -> BadClip:
        """Something in a manifest that has no id."""
        split = self.split or manifest.split or DEFAULT_SPLIT
        return BadClip(f"{manifest.name}, {where}", printable(f"{manifest.name}, {where}: {reason}"), split)


@lru_cache(maxsize=64)
def _start_beside(manifest: Manifest, folder: str) -> str:
    """Where paths start that are relative to a manifest; to the folder, for a manifest that lies outside it."""
    here = manifest.path if os.path.isdir(manifest.path) else os.path.dirname(manifest.path)
    if os.path.commonpath([folder, here]) != folder:
        here = folder
    below = os.path.join(here, AUDIO_FOLDERS.get(manifest.layout, ""))
    return below if os.path.isdir(below) else here


def row_clips(manifest: Manifest, reader: FolderReader) -> Iterator[Clip | BadClip]:
    """
    The clips of a manifest with one row for each, in its order.

    Raises:
        CorpusError: it cannot be read, or lacks columns.
    """
    columns, rows = open_rows(manifest, reader)
    for row in rows:
        if row.problem:
            yield reader.bad(manifest, row.where, row.problem)
            continue
        try:
            reading = columns.read(row.values)
        except RowError as error:
            yield reader.bad(manifest, row.where, str(error))
            continue
        if manifest.layout == "ljspeech":
            reading = replace(reading, id=printable(reading.audio))
        yield reader.clip(reading, manifest, row.where)


def open_rows(manifest: Manifest, reader: FolderReader) -> tuple[Columns, Iterator[Row]]:
    """
    How to read the rows of a manifest, and the rows.

    Raises:
        CorpusError: it cannot be read, or lacks columns.
    """
    names = header_of(manifest, reader)
    columns = reader.columns
    if names is None:  # JSON, where every row has its own
        return columns, json_rows(manifest.path, reader.encoding)
    if manifest.layout == "ljspeech":
        columns = Columns((("audio", "id"), *columns.given), columns.encoding)
    columns.check(names, manifest.name)
    if manifest.path.endswith(PARQUET_SUFFIX):
        return columns, parquet_rows(manifest.path)
    if manifest.layout == "ljspeech":
        quotes = reader.quotes or "none"
        return columns, table_rows(manifest.path, LJSPEECH_DELIMITER, reader.encoding, quotes, LJSPEECH_NAMES)
    delimiter, quotes, _ = table_form(manifest.path, reader)
    return columns, table_rows(manifest.path, delimiter, reader.encoding, quotes)


def header_of(manifest: Manifest, reader: FolderReader) -> list[str] | None:
    """The columns of a manifest; None for JSON, where every row has its own. Raises as [`open_rows`]."""
    if manifest.path.endswith(PARQUET_SUFFIX):
        return parquet_names(manifest.path)
    if manifest.layout == "ljspeech":
        return list(LJSPEECH_NAMES)
    if is_json(manifest.path, reader.encoding):
        return None
    return column_names(table_form(manifest.path, reader)[2], manifest.name)


def is_json(path: str, encoding: str | None) -> bool:
    """Whether a text file begins as JSON does."""
    return first_line(path, encoding).lstrip().startswith(("{", "["))


def table_form(path: str, reader: FolderReader) -> tuple[str, str, list[str]]:
    """
    Delimiter, meaning of quotation marks, and header of a table: with the delimiter that yields known columns, else
    most columns.
    """
    line = first_line(path, reader.encoding)
    forms = []
    for delimiter in DELIMITERS:
        quotes = reader.quotes or ("lenient" if delimiter in LENIENT_DELIMITERS else "csv")
        header = [name.strip() for name in split_columns(line, delimiter, quotes)]
        forms.append((delimiter, quotes, header))
    return max(forms, key=lambda form: (len(reader.columns.mapping(form[2])), len(form[2])))


def without_gzip(name: str) -> str:
    """A file's name without `.gz`."""
    return name.removesuffix(GZIP_SUFFIX)


#: What yields the clips of a manifest.
ClipReader = Callable[[Manifest, FolderReader], Iterator[Clip | BadClip]]

__all__ = [
    "LJSPEECH_DELIMITER",
    "LJSPEECH_NAMES",
    "ClipReader",
    "FolderReader",
    "Manifest",
    "is_json",
    "open_rows",
    "row_clips",
    "table_form",
    "without_gzip",
]
