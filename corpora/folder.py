"""
`audiollm prepare folder`: a folder of audio with its transcripts.

    audiollm prepare folder recordings
    audiollm prepare folder recordings --manifest list.csv --columns audio=clip text=words

Transcripts lie in a text file beside each recording (a.wav, a.txt), or in a table: CSV, TSV, JSON or JSON Lines such as
NeMo's, or the metadata of an audiofolder. `audiollm prepare lhotse` reads Kaldi, LJSpeech, Common Voice and many more.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, NamedTuple

from audiollm.command_line.files import AUDIO_SUFFIXES, is_audio, is_inside, sha256_of
from audiollm.command_line.option_parser import option

from .clips import DEFAULT_SPLIT, STATE_FOLDER, BadClip, Clip, CorpusError, FieldValue
from .columns import (
    ANSWERS,
    ANY,
    GUESSES,
    PLACE_GUESSES,
    WER_UNITS,
    ColumnMapping,
    map_columns,
    parse_overrides,
    wer_unit,
)
from .tables import (
    GZIP_SUFFIX,
    JSON_SUFFIXES,
    PARQUET_SUFFIX,
    TABLE_SUFFIXES,
    Row,
    counted,
    encoding_of,
    number,
    printable,
    rows_of,
    shown,
)

DEFAULT_TASKS = ("transcribe",)
DEFAULT_OUTPUT = "data/folder"
#: Names of splits in folders and files, as the audiofolder of `datasets` knows them.
SPLIT_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
#: In a folder "dev-clean" or "my_test 2" the keyword stands between these, as in `datasets`.
_BOUNDARY = r"[-._ 0-9]"
_KEYWORD = {
    split: re.compile(rf"(?:^|{_BOUNDARY})(?:{'|'.join(words)})(?:$|{_BOUNDARY})", re.IGNORECASE)
    for split, words in SPLIT_KEYWORDS.items()
}
#: Suffixes of transcripts beside audio: plain, HTK's, and LibriTTS' two.
TRANSCRIPT_SUFFIXES = (".txt", ".lab", ".normalized.txt", ".original.txt")
#: A longer file is no transcript of one recording.
MAX_TRANSCRIPT_BYTES = 2**20
#: How far below the folder tables are looked for.
MANIFEST_DEPTH = 3
#: Table of an audiofolder: one may lie in any folder, and its paths start there.
METADATA_STEM = "metadata"
#: Rows by which the columns of a table are known.
ROWS_LOOKED_AT = 100
MAX_NAMES_SHOWN = 5


@dataclass
class FolderArguments:
    """A folder, and how to read it where looking at it does not tell."""

    folder: str = field(metadata={"help": "Folder of audio, with transcripts or tables in it."})
    manifest: str | None = option(None, "Table to read, relative to the folder or the working directory.")
    columns: list[str] = option(
        [],
        "Which column is which field: text=sentence audio=path. Default: by usual names. `text=` leaves a field out, "
        "remark=note keeps a further column.",
    )
    audio_dir: str | None = option(
        None,
        "Folder that relative paths start from and that none may leave. Default: the table's own folder, and "
        "the folder as a whole.",
    )
    transcript_suffix: str | None = option(
        None, "Suffix of transcripts beside audio, such as .txt. Default: found by looking."
    )
    split: str | None = option(None, "Split of all clips. Default: by names of columns, files and folders.")
    wer_unit: str | None = option(None, "Unit of the word errors in the column wer: percent or fraction.")

    def __post_init__(self):
        parse_overrides(self.columns)
        if self.wer_unit is not None and self.wer_unit not in WER_UNITS:
            raise ValueError(f"--wer_unit {self.wer_unit!r}: expected {' or '.join(WER_UNITS)}.")
        if self.transcript_suffix is not None and (self.manifest or self.columns or self.audio_dir):
            raise ValueError("--transcript_suffix is for transcripts beside audio, not for a table.")
        for name in ("transcript_suffix", "split"):
            if getattr(self, name) == "":
                raise ValueError(f"--{name} is empty.")


@dataclass(frozen=True)
class Manifest:
    """One table of recordings."""

    path: str
    name: str  # in messages
    split: str | None  # that its name says
    columns: ColumnMapping
    word_errors: tuple[float | None, ...] = ()  # of the first rows


class FolderSource:
    """
    The clips of a folder. Satisfies `ClipSource`.

    In its identity tables count by their content, recordings with transcripts beside them by their names and what the
    transcripts say. `summary` says how the folder is read, and which tables cannot be.

    Raises:
        CorpusError: there is no such folder, nothing in it fits, several things do, or the table cannot be read.
    """

    reads_all_below = False

    def __init__(self, arguments: FolderArguments):
        self.arguments = arguments
        self.folder = _existing_folder(arguments.folder, "The folder")
        self.root = _existing_folder(arguments.audio_dir, "--audio_dir") if arguments.audio_dir else self.folder
        self.name = printable(self.folder)
        self.notes: list[str] = []
        self._split = None if arguments.split is None else split_named(arguments.split)
        self._suffix, self._manifests = self._find()
        with_errors = [each for each in self._manifests if "wer" in each.columns.specs] or self._manifests
        manifest = with_errors[0] if with_errors else Manifest("", self.name, None, ColumnMapping({}))
        self.wer_unit, self.wer_doubt = wer_unit(
            manifest.name, manifest.columns, manifest.word_errors, arguments.wer_unit
        )
        self._count = 0
        self.identity: dict[str, Any] = {
            "source": "folder",
            "folder": self.name,
            "audio_dir": printable(self.root),
            "columns": arguments.columns,
            "split": self._split,
        }
        self.summary = "\n".join([self._describe(), *(f"{self.name}: not read: {note}" for note in self.notes)])

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Yield as in `ClipSource`; rows before `start` are read again, but no audio is decoded."""
        return islice(self._sidecar_clips() if self._suffix else self._table_clips(), start, None)

    def count(self) -> int:
        """Return as in `ClipSource`."""
        return self._count

    def _describe(self) -> str:
        """Complete the identity and the count, and return how the folder is read."""
        if self._suffix:
            digest = hashlib.sha256()
            for clip in self._sidecar_clips():
                self._count += 1
                digest.update(repr((clip.id, clip.text if isinstance(clip, Clip) else None)).encode())
            self.identity |= {"transcripts": self._suffix, "files": digest.hexdigest()}
            return f"{self.name}: read as: {counted(self._count, 'file')} with *{self._suffix} beside the audio"
        self.identity["manifests"] = {each.name: sha256_of(each.path) for each in self._manifests}
        parts = []
        for each in self._manifests:
            rows = sum(1 for _ in rows_of(each.path))
            self._count += rows
            split = self._split or each.split
            parts.append(f"{each.name}, {counted(rows, 'row')}" + (f", as {split}" if split else ""))
        columns = self._manifests[0].columns.describe()
        return printable(f"{self.name}: read as: table {'; '.join(parts)}\n{columns}")

    # ------------------------------------------------------------------------------------------------ what to read

    def _find(self) -> tuple[str, list[Manifest]]:
        """Return the suffix of transcripts beside audio, or the tables to read."""
        arguments = self.arguments
        if arguments.transcript_suffix is not None:
            return arguments.transcript_suffix, []
        if arguments.manifest is not None:
            return "", [self._named_manifest(arguments.manifest)]
        found, reasons, audio = [], [], 0
        suffixes = set()
        for folder in walk(self.folder):
            stems = {_key(os.path.splitext(name)[0]) for name in folder.files if is_audio(name)}
            audio += len(stems)
            suffixes |= {one for name in folder.files for one in TRANSCRIPT_SUFFIXES if _stem(name, one) in stems}
            for name in folder.files if folder.depth <= MANIFEST_DEPTH else ():
                stem, suffix = os.path.splitext(name.removesuffix(GZIP_SUFFIX))
                is_metadata = stem == METADATA_STEM and suffix == PARQUET_SUFFIX
                if _key(stem) not in stems and (is_metadata or suffix in (*JSON_SUFFIXES, *TABLE_SUFFIXES)):
                    try:
                        found.append(self._open(locate(os.path.join(folder.path, name), self.folder, self.folder)))
                    except ValueError as error:
                        reasons.append(printable(str(error)))
        beside = [suffix for suffix in TRANSCRIPT_SUFFIXES if suffix in suffixes and not arguments.columns]
        if found and beside:
            names = ", ".join(each.name for each in found[:MAX_NAMES_SHOWN])
            raise CorpusError(
                f"{self.folder!r} has transcripts beside audio (*{beside[0]}) and tables ({names}). Choose with "
                "--transcript_suffix or --manifest."
            )
        if len(beside) > 1:
            endings = " and in ".join(beside)
            raise CorpusError(f"Transcripts in {self.folder!r} end in {endings}; choose with --transcript_suffix.")
        if not found and not beside:
            raise CorpusError(
                f"{self.folder!r} has no transcripts that can be read. It has {audio:,} audio files. Expected text beside "
                "the audio (a.wav, a.txt), or a CSV, TSV, JSON or JSON Lines table; name it with --manifest and its "
                f"columns with --columns. {' '.join(reasons[:MAX_NAMES_SHOWN])}"
            )
        self.notes = reasons if found else []
        return (beside or [""])[0], _ordered(found)

    def _named_manifest(self, given: str) -> Manifest:
        below = os.path.join(self.folder, given)
        path = os.path.abspath(below if os.path.exists(below) else given)
        if not os.path.isfile(path):
            raise CorpusError(f"--manifest {given!r} is no file in {self.folder!r} or in the working directory.")
        return self._open(path)

    def _open(self, path: str) -> Manifest:
        """Open a table; raise CorpusError if it cannot be read, or lacks audio or answers."""
        inside = is_inside(path, self.folder)
        name = printable(os.path.relpath(path, self.folder) if inside else path)
        rows = list(islice(rows_of(path), ROWS_LOOKED_AT))
        if not rows:
            raise CorpusError(f"{name} has no rows.")
        kinds = dict.fromkeys((column for row in rows for column in row.values), ANY)
        overrides = parse_overrides(self.arguments.columns)
        columns = map_columns(name, kinds, [], overrides, guesses=GUESSES | PLACE_GUESSES)
        errors = []
        for row in rows if "wer" in columns.specs else ():
            with suppress(ValueError):  # reported when the row is read
                errors.append(number(row.values.get(columns.specs["wer"].columns[0]), "wer"))
        return Manifest(path, name, split_in(name if inside else os.path.basename(name)), columns, tuple(errors))

    # ------------------------------------------------------------------------------------------------------- tables

    def _table_clips(self) -> Iterator[Clip | BadClip]:
        for manifest in self._manifests:
            for row in rows_of(manifest.path):
                try:
                    if row.problem:
                        raise ValueError(row.problem)
                    yield self._clip(manifest, row)
                except ValueError as error:
                    where = f"{manifest.name}, {row.where}"
                    yield BadClip(
                        where, printable(f"{where}: {error}"), self._split or manifest.split or DEFAULT_SPLIT
                    )

    def _clip(self, manifest: Manifest, row: Row) -> Clip:
        """Return the clip of a row; raise ValueError if the row cannot be used."""
        specs = {name: spec.columns[0] for name, spec in manifest.columns.specs.items()}
        given = {name: _plain(row.values.get(column), name) for name, column in specs.items()}
        audio = given["audio"]
        if not isinstance(audio, str) or not audio:
            raise ValueError(f"has no audio: column {specs['audio']!r} is {shown(audio)}")
        begin, end = number(given.get("start"), "start") or 0.0, number(given.get("end"), "end")
        declared = number(given.get("duration"), "duration")
        if end is None and declared is not None and given.get("start") is not None:
            end = begin + declared
        if end is not None and end <= begin:
            raise ValueError(f"ends at {end:g} s, which is not after its start at {begin:g} s")
        own = ("audio", "text", "id", *PLACE_GUESSES)
        fields: dict[str, FieldValue] = {name: value for name, value in given.items() if name not in own}
        if "wer" in fields:
            fields["wer"] = number(fields["wer"], "wer")
        text = str(given.get("text") or "")
        if not text and not any(fields.get(answer) for answer in ANSWERS):
            raise ValueError(f"has no transcript: column {specs.get('text')!r} is {shown(given.get('text'))}")
        here = os.path.dirname(manifest.path)
        is_within = here == self.folder or is_inside(here, self.folder)
        start = self.root if self.arguments.audio_dir or not is_within else here
        recording, path = locate(audio, start, self.root), _identity(audio, start, self.root)
        part = f"@{begin:g}-{'' if end is None else format(end, 'g')}" if begin or end is not None else ""
        identity = given.get("id")
        named = split_named(str(given["split"])) if given.get("split") else manifest.split
        split = self._split or named or split_in(os.path.dirname(path)) or DEFAULT_SPLIT
        return Clip(path + part if identity is None else str(identity), recording, text, split, fields, begin, end)

    # ------------------------------------------------------------------------------------------ text beside the audio

    def _sidecar_clips(self) -> Iterator[Clip | BadClip]:
        """Yield each recording with the transcript of its name, in a fixed order."""
        for folder in walk(self.folder):
            split = self._split or split_in(folder.path) or DEFAULT_SPLIT
            for name in folder.links:
                path = printable(os.path.join(folder.path, name))
                yield BadClip(path, f"{path!r} is a link that leads out of the folder; name that folder itself", split)
            texts = {stem: name for name in folder.files if (stem := _stem(name, self._suffix))}
            for name in filter(is_audio, folder.files):
                path = os.path.join(folder.path, name)
                identity = _identity(path, self.folder, self.folder)
                try:
                    transcript = texts.get(_key(os.path.splitext(name)[0]))
                    if transcript is None:
                        wanted = os.path.splitext(path)[0] + self._suffix
                        raise ValueError(f"{path!r} has no transcript: there is no {wanted!r}")
                    recording = locate(path, self.folder, self.folder)
                    yield Clip(identity, recording, self._transcript(os.path.join(folder.path, transcript)), split)
                except ValueError as error:
                    yield BadClip(identity, printable(str(error)), split)

    def _transcript(self, name: str) -> str:
        """Return the text of a file in one line."""
        try:
            with open(locate(name, self.folder, self.folder), "rb") as file:
                data = file.read(MAX_TRANSCRIPT_BYTES + 1)
            text = data.decode(encoding_of(data))
        except (OSError, UnicodeError) as error:
            raise ValueError(f"the transcript {name!r} cannot be read: {error}; save it as UTF-8") from None
        if len(data) > MAX_TRANSCRIPT_BYTES:
            raise ValueError(f"the transcript {name!r} is longer than {MAX_TRANSCRIPT_BYTES:,} bytes")
        if not text.split():
            raise ValueError(f"the transcript {name!r} has no words")
        return " ".join(text.split())


def split_in(path: str) -> str | None:
    """Return the split that a relative path names in one of its parts, the first that does."""
    for part in path.split(os.sep):
        for split, pattern in _KEYWORD.items():
            if pattern.search(part):
                return split
    return None


def split_named(name: str) -> str:
    """Return a split's usual name: "dev" is "validation"."""
    return next((split for split, words in SPLIT_KEYWORDS.items() if name.lower() in words), name)


def _ordered(manifests: list[Manifest]) -> list[Manifest]:
    """Return tables in the order of splits and names; two of one split are refused, but for audiofolders."""
    order = {split: place for place, split in enumerate(SPLIT_KEYWORDS)}
    manifests = sorted(manifests, key=lambda each: (order.get(each.split or "", len(order)), os.fsencode(each.name)))
    for one, other in pairwise(manifests):
        local = all(os.path.basename(each.name).startswith(f"{METADATA_STEM}.") for each in (one, other))
        if one.split == other.split and not local:
            raise CorpusError(f"Both {one.name!r} and {other.name!r} list recordings; choose one with --manifest.")
    return manifests


def _existing_folder(given: str, option: str) -> str:
    if not os.path.isdir(given):
        raise CorpusError(f"{option} {given!r} is not a folder.")
    return os.path.realpath(given)


def _plain(value: Any, name: str) -> FieldValue:
    """Return a value of a table, an empty text as none; raise ValueError if it is a list or an object."""
    if isinstance(value, (list, tuple, dict)):
        raise ValueError(f"{name} is {shown(value)}; expected a plain value")
    return (value.strip() or None) if isinstance(value, str) else value


def _key(stem: str) -> str:
    """Return what names of audio and transcript have in common, whichever Unicode form each has."""
    return unicodedata.normalize("NFC", stem)


def _stem(name: str, suffix: str) -> str:
    """Return the key of a name without a suffix; "" if it has another."""
    return _key(name[: -len(suffix)]) if name.lower().endswith(suffix.lower()) else ""


open_source = FolderSource


# --------------------------------------------------------------------------------------------------------------- paths


def locate(given: str, start: str, root: str) -> str:
    """
    Return the absolute path of a file.

    Args:
        given: As a table has it; an absolute path may lead into the root as well.
        start: Where relative paths start.
        root: Folder that it must lie in, links followed.

    Raises:
        ValueError: it names no file, or one outside; the message says what to do.
    """
    if "://" in given:
        raise ValueError(f"{shown(given)} is a URL, and nothing is downloaded; fetch it, and name the file")
    path = os.path.normpath(os.path.join(start, given))
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))  # macOS writes accents apart
    path = next(filter(os.path.lexists, (path, *forms)), path)
    real = os.path.realpath(path)
    if not is_inside(real, root):
        raise ValueError(f"{given!r} leads out of {root!r}; name the folder of recordings with --audio_dir")
    if not os.path.isfile(real):
        raise ValueError(f"{given!r} is no file: looked at {path!r}; --audio_dir names another start")
    return real


def _identity(given: str, start: str, root: str) -> str:
    """Return the id of a clip without one: its path from the root without audio's suffix."""
    path = os.path.normpath(os.path.join(start, given))
    path = os.path.relpath(path if is_inside(path, root) else os.path.realpath(path), root)
    stem, suffix = os.path.splitext(path)
    return printable((stem if suffix.lower() in AUDIO_SUFFIXES else path).replace(os.sep, "/"))


class Folder(NamedTuple):
    """One folder of a tree: its relative path and depth, its files, and links to folders elsewhere, sorted."""

    path: str
    depth: int
    files: list[str]
    links: list[str]


def walk(top: str) -> Iterator[Folder]:
    """
    Yield every folder of a tree once, in an order that is the same on every file system.

    Hidden files, and folders that a corpus was prepared in, are passed over; links to folders are not followed.

    Raises:
        OSError: a folder cannot be read.
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
        path = os.path.relpath(here, top)
        depth = 0 if path == os.curdir else path.count(os.sep) + 1
        yield Folder(path if depth else "", depth, _sorted(files), elsewhere)


def _sorted(names: list[str]) -> list[str]:
    """Return names that are not hidden, by their bytes."""
    return sorted((name for name in names if not name.startswith(".")), key=os.fsencode)
