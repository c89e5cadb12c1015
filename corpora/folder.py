"""
`audiollm prepare folder`: a folder of audio with its transcripts.

    audiollm prepare folder recordings
    audiollm prepare folder recordings --manifest list.csv --columns audio=clip text=words

Transcripts lie in a text file beside each recording (a.wav, a.txt), or in a table: CSV, TSV, JSON or JSON Lines such as
NeMo's, or the metadata of an audiofolder. `audiollm prepare lhotse` reads Kaldi, LJSpeech, Common Voice and many more.
"""

import codecs
import errno
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any

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
    text_problem,
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
#: Texts beside recordings that are no transcripts, by their names in lower case without suffix.
NOT_TRANSCRIPTS = re.compile(
    "readme|licen[cs]e|copying|copyright|changelog|changes|notes|about|citation|requirements|(sha256|md5|check)sums|"
    "speakers|speaker-info|filelist"
)
#: How far below the folder tables are looked for.
MANIFEST_DEPTH = 3
#: Table of an audiofolder: one may lie in any folder, and its paths start there.
METADATA_STEM = "metadata"
#: Rows by which the columns of a table are known.
ROWS_LOOKED_AT = 100
#: Columns of the prepared table; a manifest's further columns of these names are called `original_...`.
RESERVED = ("id", "split", "audio", "text", "duration", "bytes", "sha256", "model", "normaliser", "declared_seconds")
#: Fields that are texts, also where JSON has numbers.
TEXT_FIELDS = ("speaker", "language", "target_language", *ANSWERS, "question", "pred_text")
#: Larger integers, which tables cannot hold, become texts.
MAX_INTEGER = 2**63 - 1
MAX_NAMES_SHOWN = 5


@dataclass
class FolderArguments:
    """A folder, and how to read it where looking at it does not tell."""

    folder: str = field(metadata={"help": "Folder of audio, with transcripts or tables in it."})
    manifest: str | None = option(None, "Table to read, relative to the folder or the working directory.")
    columns: list[str] = option(
        [],
        "Which column is which field: text=sentence audio=path. Default: by usual names. Other columns are kept "
        "by their names; with nothing behind = a field is left out.",
    )
    audio_dir: str | None = option(
        None,
        "Folder that relative paths start from and that none may leave. Default: the table's own folder, and "
        "the folder as a whole.",
    )
    follow_symlinks: bool = option(False, "Follow symbolic links that lead out of the folder.")
    encoding: str | None = option(None, "Encoding of tables and transcripts, such as latin-1. Default: UTF-8.")
    transcript_suffix: str | None = option(
        None, "Suffix of transcripts beside audio, such as .txt. Default: found by looking."
    )
    split: str | None = option(None, "Split of all clips. Default: by names of columns, files and folders.")
    splits: list[str] = option([], "Splits to read, separated by spaces or commas. Default: all.")
    wer_unit: str | None = option(None, "Unit of the word errors in the column wer: percent or fraction.")

    def __post_init__(self):
        parse_overrides(self.columns)
        self.splits = [name for given in self.splits for name in given.split(",")]
        if self.wer_unit is not None and self.wer_unit not in WER_UNITS:
            raise ValueError(f"--wer_unit {self.wer_unit!r}: expected {' or '.join(WER_UNITS)}.")
        if self.split is not None and self.splits:
            raise ValueError(f"--split {self.split} puts all clips into one split; leave out --splits.")
        if self.transcript_suffix is not None and (self.manifest or self.columns):
            raise ValueError("--transcript_suffix is for transcripts beside audio, not for a table.")
        if self.transcript_suffix == "":
            raise ValueError("--transcript_suffix is empty; expected a suffix such as .txt.")
        if self.split == "" or "" in self.splits:
            raise ValueError("--split and --splits expect names; found an empty one.")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(f"--encoding {self.encoding!r} is unknown; expected one such as latin-1.") from None


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
        start = self.folder if arguments.audio_dir is None else _existing_folder(arguments.audio_dir, "--audio_dir")
        self.root = AudioRoot(start, arguments.follow_symlinks)
        self.looking = AudioRoot(self.folder, arguments.follow_symlinks)
        self.name = printable(self.folder)
        self.notes: list[str] = []
        self._split = None if arguments.split is None else split_named(arguments.split)
        self._splits = [split_named(name) for name in arguments.splits]
        self._suffix, self._manifests = self._find()
        with_errors = [each for each in self._manifests if "wer" in each.columns.specs] or self._manifests
        manifest = with_errors[0] if with_errors else Manifest("", self.name, None, ColumnMapping({}))
        self.wer_unit, self.wer_doubt = wer_unit(
            manifest.name, manifest.columns, manifest.word_errors, arguments.wer_unit
        )
        if self._suffix and arguments.audio_dir:
            raise CorpusError("--audio_dir is given, but transcripts lie beside their audio; name that folder itself.")
        self._count: int | None = 0
        self.identity: dict[str, Any] = {
            "source": "folder",
            "folder": self.name,
            "audio_dir": printable(self.root.folder),
            "follow_symlinks": arguments.follow_symlinks,
            "columns": arguments.columns,
            "encoding": arguments.encoding,
            "split": self._split,
            "splits": self._splits,
        }
        notes = [f"not read: {note}" for note in self.notes]
        self.summary = "\n".join(f"{self.name}: {line}" for line in (self._describe(), *notes))
        self._count = None if self._splits else self._count

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Yield as in `ClipSource`; rows before `start` are read again, but no audio is decoded."""
        clips = self._sidecar_clips(self._suffix) if self._suffix else self._table_clips()
        kept = (clip for clip in clips if not self._splits or clip.split in self._splits)
        return islice(kept, start, None)

    def count(self) -> int | None:
        """Return as in `ClipSource`; None where only some splits are read."""
        return self._count

    def _describe(self) -> str:
        """Complete the identity and the count, and return the line that says how the folder is read."""
        if self._suffix:
            digest, self._count = self._digest_of_pairs(self._suffix)
            self.identity |= {"transcripts": self._suffix, "files": digest}
            return f"read as: {counted(self._count, 'file')} with *{self._suffix} beside the audio"
        self.identity["manifests"] = {each.name: sha256_of(each.path) for each in self._manifests}
        parts = []
        for each in self._manifests:
            rows = sum(1 for _ in rows_of(each.path, self.arguments.encoding))
            self._count = (self._count or 0) + rows
            split = self._split or each.split
            parts.append(f"{each.name}, {counted(rows, 'row')}" + (f", as {split}" if split else ""))
        columns = ", ".join(f"{name}={spec}" for name, spec in self._manifests[0].columns.specs.items())
        return printable(f"read as: table {'; '.join(parts)} ({columns})")

    # ------------------------------------------------------------------------------------------------ what to read

    def _find(self) -> tuple[str, list[Manifest]]:
        """Return the suffix of transcripts beside audio, or the tables to read."""
        arguments = self.arguments
        if arguments.manifest is not None:
            return "", [self._named_manifest(arguments.manifest)]
        found, reasons = [], []
        for folder in () if arguments.transcript_suffix else walk(self.looking, MANIFEST_DEPTH):
            stems = {os.path.splitext(name)[0] for name in folder.files if is_audio(name)}
            for name in folder.files:
                stem, suffix = os.path.splitext(name.removesuffix(GZIP_SUFFIX))
                is_metadata = stem == METADATA_STEM and suffix == PARQUET_SUFFIX
                if stem in stems or not (is_metadata or suffix in (*JSON_SUFFIXES, *TABLE_SUFFIXES)):
                    continue
                path = os.path.join(folder.path, name)
                try:
                    self.looking.locate(path)
                    found.append(self._open(os.path.join(self.folder, path)))
                except PathError as error:
                    self.notes.append(printable(f"{path!r}: {error}"))
                except CorpusError as error:
                    reasons.append(printable(str(error)))
        beside, audio = ([], 0) if arguments.columns else self._suffixes_seen()
        if arguments.transcript_suffix:
            beside = [arguments.transcript_suffix]
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
            has = f" It has {audio:,} audio files." if audio else ""
            more = " ".join([*self.notes, *reasons][:MAX_NAMES_SHOWN])
            raise CorpusError(
                f"{self.folder!r} has no transcripts that can be read.{has} Expected text beside the audio (a.wav, a.txt), or "
                f"a CSV, TSV, JSON or JSON Lines table; name it with --manifest and its columns with --columns. {more}"
            )
        self.notes += reasons if found else []
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
        rows = list(islice(rows_of(path, self.arguments.encoding), ROWS_LOOKED_AT))
        kinds = dict.fromkeys((column for row in rows for column in row.values), ANY)
        overrides = parse_overrides(self.arguments.columns)
        columns = map_columns(name, kinds, [], overrides, guesses=GUESSES | PLACE_GUESSES)
        errors = []
        for row in rows if "wer" in columns.specs else ():
            with suppress(ValueError):  # reported when the row is read
                errors.append(number(row.values.get(columns.specs["wer"].columns[0]), "wer"))
        return Manifest(path, name, split_in(name if inside else os.path.basename(name)), columns, tuple(errors))

    def _suffixes_seen(self) -> tuple[list[str], int]:
        """Return the suffixes of transcripts that lie beside audio, and the number of recordings."""
        seen, audio = set(), 0
        for folder in walk(self.looking):
            stems = {_key(os.path.splitext(name)[0]) for name in folder.files if is_audio(name)}
            audio += len(stems)
            seen |= {each for name in folder.files for each in TRANSCRIPT_SUFFIXES if _key(_stem(name, each)) in stems}
        return [suffix for suffix in TRANSCRIPT_SUFFIXES if suffix in seen], audio

    # ------------------------------------------------------------------------------------------------------- tables

    def _table_clips(self) -> Iterator[Clip | BadClip]:
        for manifest in self._manifests:
            for row in rows_of(manifest.path, self.arguments.encoding):
                try:
                    if row.problem:
                        raise ValueError(row.problem)
                    yield self._clip(manifest, row)
                except ValueError as error:
                    where = f"{manifest.name}, {row.where}"
                    bad_split = self._split or manifest.split or DEFAULT_SPLIT
                    yield BadClip(where, printable(f"{where}: {error}"), bad_split)

    def _clip(self, manifest: Manifest, row: Row) -> Clip | BadClip:
        """Return the clip of a row; raise ValueError if the row cannot be used."""
        specs = {name: spec.columns[0] for name, spec in manifest.columns.specs.items()}
        given = {name: row.values.get(column) for name, column in specs.items()}
        audio = given["audio"]
        if not isinstance(audio, str) or not audio:
            raise ValueError(f"has no audio: column {specs['audio']!r} is {shown(audio)}")
        begin, end = number(given.get("start"), "start") or 0.0, number(given.get("end"), "end")
        declared = number(given.get("duration"), "duration")
        if end is None and declared is not None and given.get("start") not in (None, ""):
            end = begin + declared
        if end is not None and end <= begin:
            raise ValueError(f"ends at {end:g} s, which is not after its start at {begin:g} s")
        fields = self._fields(row.values, {column: name for name, column in specs.items()})
        fields |= {} if declared is None else {"declared_seconds": declared}
        text = self._text(given.get("text"), "text")
        if not text and not any(str(fields.get(answer) or "").strip() for answer in ANSWERS):
            raise ValueError(f"has no transcript: column {specs.get('text')!r} is {shown(given.get('text'))}")
        start = self.root.folder if self.arguments.audio_dir else self._start_of(manifest.path)
        path = self.root.identify(audio, start)
        part = f"@{begin:g}-{'' if end is None else format(end, 'g')}" if begin or end is not None else ""
        identity = self._text(given.get("id"), "id") or path + part
        stated = self._text(given.get("split"), "split")
        named = split_named(stated) if stated else manifest.split
        split = self._split or named or split_in(os.path.dirname(path)) or DEFAULT_SPLIT
        try:
            recording = self.root.locate(audio, start)
        except PathError as error:
            return BadClip(identity, printable(f"{manifest.name}, {row.where}: {error}"), split)
        return Clip(identity, recording, text, split, fields, begin, end)

    def _start_of(self, path: str) -> str:
        here = os.path.dirname(path)
        return here if here == self.folder or is_inside(here, self.folder) else self.folder

    def _fields(self, values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, FieldValue]:
        """Return the fields of a row; `names` are those of its columns that are known."""
        fields: dict[str, FieldValue] = {}
        for column, value in values.items():
            name = names.get(column, column)
            is_own = column in names and name in ("audio", "text", "id", *PLACE_GUESSES)
            if is_own or f"{name}=" in self.arguments.columns:
                continue
            if column not in names and (name in RESERVED or name in GUESSES or name in PLACE_GUESSES):
                name = f"original_{name}"
            fields[printable(name)] = number(value, name) if name == "wer" else self._field(name, value)
        return fields

    def _field(self, name: str, value: Any) -> FieldValue:
        if isinstance(value, (list, tuple, dict)):
            value = json.dumps(value, ensure_ascii=False, default=str)
        if isinstance(value, str):
            return self._checked(value.strip() if name in TEXT_FIELDS else value)
        is_plain = isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) <= MAX_INTEGER)
        return value if value is None or (is_plain and name not in TEXT_FIELDS) else str(value)

    def _text(self, value: Any, name: str) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"{name} is {shown(value)}; expected a text")
        return "" if value is None else self._checked(str(value)).strip()

    def _checked(self, text: str) -> str:
        if problem := text_problem(text, self.arguments.encoding):
            raise ValueError(problem)
        return text

    # ------------------------------------------------------------------------------------------ text beside the audio

    def _pairs(self, suffix: str) -> Iterator[tuple[str, str, str]]:
        """Yield each recording with its transcript, by relative paths, and why one lacks the other; in a fixed order."""
        for folder in walk(self.root):
            yield from ((path, "", reason) for path, reason in folder.problems)
            recordings: dict[str, list[str]] = {}
            for name in filter(is_audio, folder.files):
                recordings.setdefault(_key(os.path.splitext(name)[0]), []).append(name)
            transcripts: dict[str, str] = {}
            for name in folder.files:
                stem = _stem(name, suffix)
                if stem and (_key(stem) in recordings or not _is_other_text(name, stem, recordings)):
                    transcripts[_key(stem)] = name
            for key in sorted({*recordings, *transcripts}, key=os.fsencode):
                here = [os.path.join(folder.path, name) for name in recordings.get(key, [])]
                text = os.path.join(folder.path, transcripts[key]) if key in transcripts else ""
                if not here:
                    yield "", text, "is a transcript without a recording"
                elif not text:
                    wanted = os.path.splitext(here[0])[0] + suffix
                    yield from ((path, "", f"has no transcript: there is no {wanted!r}") for path in here)
                else:
                    yield here[0], text, ""
                    yield from ((path, "", f"would have the transcript of {here[0]!r}; keep one") for path in here[1:])

    def _sidecar_clips(self, suffix: str) -> Iterator[Clip | BadClip]:
        for audio, transcript, problem in self._pairs(suffix):
            path = audio or transcript
            identity = self.root.identify(path)
            split = self._split or split_in(os.path.dirname(path)) or DEFAULT_SPLIT
            try:
                if problem:
                    raise PathError(f"{path!r} {problem}")
                recording, text = self.root.locate(audio), self._transcript(transcript)
            except PathError as error:
                yield BadClip(printable(path) if problem else identity, printable(str(error)), split)
            else:
                yield Clip(identity, recording, text, split)

    def _transcript(self, name: str) -> str:
        """Return the text of a file in one line."""
        path = self.root.locate(name)
        try:
            data = _start_of_file(path)
            text = data.decode(encoding_of(data, self.arguments.encoding), "surrogateescape")
        except (OSError, UnicodeError, CorpusError) as error:
            raise PathError(f"the transcript {name!r} cannot be read: {error}") from None
        if len(data) > MAX_TRANSCRIPT_BYTES:
            raise PathError(f"the transcript {name!r} is longer than {MAX_TRANSCRIPT_BYTES:,} bytes")
        if problem := text_problem(text, self.arguments.encoding):
            raise PathError(f"the transcript {name!r}: {problem}")
        if not text.split():
            raise PathError(f"the transcript {name!r} has no words: {shown(text)}")
        return " ".join(text.split())

    def _digest_of_pairs(self, suffix: str) -> tuple[str, int]:
        """
        Return a sha256 over names of recordings and contents of transcripts, and how many clips and problems there are.

        Contents of recordings do not count, so that a damaged one can be mended and tried again.
        """
        digest, count = hashlib.sha256(), 0
        for audio, transcript, _ in self._pairs(suffix):
            count += 1
            try:
                content = _start_of_file(self.root.locate(transcript))
            except (PathError, OSError):
                content = b""
            for part in (os.fsencode(audio), os.fsencode(transcript), hashlib.sha256(content).digest()):
                digest.update(part + b"\0")
        return digest.hexdigest(), count


def split_in(path: str) -> str | None:
    """Return the split that a relative path names in one of its parts, the first that does."""
    for part in path.split(os.sep):
        for split, pattern in _KEYWORD.items():
            if pattern.search(part):
                return split
    return None


def split_named(name: str) -> str:
    """Return a split's usual name: "dev" is "validation", an empty name is the default split."""
    keywords = (split for split, words in SPLIT_KEYWORDS.items() if name.lower() in words)
    return next(keywords, name or DEFAULT_SPLIT)


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
    if not given or not os.path.isdir(given):
        raise CorpusError(f"{option} {given!r} is not a folder.")
    return os.path.abspath(given)


def _start_of_file(path: str) -> bytes:
    """Return a transcript's bytes; of a longer file one more than a transcript may have."""
    with open(path, "rb") as file:
        return file.read(MAX_TRANSCRIPT_BYTES + 1)


def _key(stem: str) -> str:
    """Return what names of audio and transcript have in common, whichever Unicode form each has."""
    return unicodedata.normalize("NFC", stem)


def _stem(name: str, suffix: str) -> str:
    """Return a name without a suffix; "" if it has another."""
    return name[: -len(suffix)] if name.lower().endswith(suffix.lower()) else ""


def _is_other_text(name: str, stem: str, recordings: Mapping[str, Any]) -> bool:
    """Return whether a text without audio of its name is a README, or another kind of transcript."""
    kinds = (_key(_stem(name, suffix)) for suffix in TRANSCRIPT_SUFFIXES)
    return bool(NOT_TRANSCRIPTS.fullmatch(stem.lower())) or any(kind in recordings for kind in kinds)


open_source = FolderSource


# --------------------------------------------------------------------------------------------------------------- paths


class PathError(ValueError):
    """A path that leads to no recording that may be read; the message says why and what to do."""


@dataclass(frozen=True)
class AudioRoot:
    """The folder that recordings must lie in, and whether links may lead out of it."""

    folder: str
    follow_symlinks: bool = False

    def locate(self, given: str, start: str | None = None) -> str:
        """
        Return the absolute path of a regular file in the folder that is not empty; raise PathError for anything else.

        Args:
            given: As a table has it; an absolute path may lead into the folder as well.
            start: Where relative paths start; the folder itself by default.
        """
        if not given.strip() or "\0" in given:
            raise PathError(f"the path {shown(given)} is empty or has a NUL character")
        if "://" in given:
            raise PathError(f"{shown(given)} is a URL, and nothing is downloaded; fetch it, and name the file")
        path, real_root = os.path.normpath(os.path.join(start or self.folder, given)), _real_folder(self.folder)
        if not is_inside(path, self.folder) and not is_inside(path, real_root):
            raise PathError(f"{given!r} leads out of {self.folder!r}; name the folder of recordings with --audio_dir")
        try:
            forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))  # macOS writes accents apart
            path = next(filter(os.path.lexists, (path, *forms)), path)
            real = os.path.realpath(path)
            if not self.follow_symlinks and not is_inside(real, real_root):
                raise PathError(
                    f"{given!r} is reached by a symbolic link that leads out of {self.folder!r}, to {real!r}; "
                    "--follow_symlinks reads it all the same"
                )
            found = os.stat(real)
        except FileNotFoundError:
            raise PathError(f"{given!r} does not exist: looked at {path!r}; --audio_dir names another start") from None
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) == errno.ELOOP:
                raise PathError(f"{given!r} is a symbolic link that leads back to itself") from None
            raise PathError(f"{shown(given)} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
        if stat.S_ISDIR(found.st_mode):
            raise PathError(f"{given!r} is a folder: {path!r}")
        if not stat.S_ISREG(found.st_mode):
            raise PathError(f"{given!r} is not a regular file: {path!r}")
        if found.st_size == 0:
            raise PathError(f"{given!r} is empty (0 bytes)")
        return real

    def identify(self, given: str, start: str | None = None) -> str:
        """Return the id of a file without one: its relative path without audio's suffix."""
        path = os.path.normpath(os.path.join(start or self.folder, given))
        for folder in (self.folder, _real_folder(self.folder)):  # a table may name either
            if is_inside(path, folder):
                path = os.path.relpath(path, folder)
        stem, suffix = os.path.splitext(path)
        return printable((stem if suffix.lower() in AUDIO_SUFFIXES else path).replace(os.sep, "/"))


@dataclass(frozen=True)
class Folder:
    """One folder of a tree: its relative path, its files sorted by their bytes, and (path, reason) of what is skipped."""

    path: str
    files: tuple[str, ...]
    problems: tuple[tuple[str, str], ...] = ()


def walk(root: AudioRoot, max_depth: int | None = None) -> Iterator[Folder]:
    """
    Yield every folder of a tree once, in an order that is the same on every file system.

    Hidden files, and folders that a corpus was prepared in, are passed over. Links to folders inside the tree are not
    followed, since those are reached anyway; links out of it are problems, or with `follow_symlinks` are followed, each
    real folder once. `max_depth` levels below the tree's folder are looked at, by default all.
    """
    top = os.path.realpath(root.folder)
    visited: set[tuple[int, int]] = set()
    pending = [("", 0)]
    while pending:
        path, depth = pending.pop()
        here = os.path.join(root.folder, path)
        problems, files, folders = [], [], []
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            if path and os.path.isdir(os.path.join(here, STATE_FOLDER)):
                continue
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Folder(path, (), ((path or here, f"the folder cannot be read: {error.strerror}"),))
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            if not os.path.isdir(entry.path):
                files.append(entry.name)
            elif not entry.is_symlink() or (root.follow_symlinks and _leads_out(entry.path, top)):
                folders.append(entry.name)
            elif _leads_out(entry.path, top):
                real = os.path.realpath(entry.path)
                reason = f"is a symbolic link to the folder {real!r}; --follow_symlinks reads it"
                problems.append((os.path.join(path, entry.name), reason))
        yield Folder(path, tuple(files), tuple(problems))
        if max_depth is None or depth < max_depth:
            pending += [(os.path.join(path, name), depth + 1) for name in reversed(folders)]


def _leads_out(path: str, top: str) -> bool:
    real = os.path.realpath(path)
    return real != top and not is_inside(real, top)


@lru_cache(maxsize=16)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
