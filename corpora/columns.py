"""
Map columns to the fields of a clip: guessed from names and types, shown, and overridable with --columns.

A guess is by name, in an order of preference, among columns of a fitting type; audio goes by type first. What cannot be
told apart is asked for, not guessed.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from audiollm.command_line.files import is_audio

from . import letter_case
from .clips import CorpusError

#: Kinds of columns, as far as it matters here.
AUDIO, TEXT, NUMBER, LIST, OTHER = "audio", "text", "number", "list", "other"
SCALARS = (TEXT, NUMBER)
#: Keys of a struct that is a recording.
RECORDING_KEYS = ("bytes", "path", "array")


@dataclass(frozen=True)
class Guess:
    """Usual names of a field's column, best first, separated by spaces; and the kinds that it may have."""

    names: str
    kinds: tuple[str, ...] = (TEXT,)


GUESSES: dict[str, Guess] = {
    "audio": Guess(
        "audio audio_path audio_filepath audio_filename audio_file file file_name filename wav_filename path file_path "
        "filepath wav_path wav_file wav clip recording speech sound",
        (AUDIO, TEXT),
    ),
    "text": Guess(
        "text sentence transcription transcript normalized_text normalised_text raw_text raw_transcription "
        "normalized_transcription transcripts txt utterance label_text ground_truth reference"
    ),
    "pred_text": Guess(
        "pred_text whisper_transcript prediction predicted_text hypothesis hyp asr asr_text asr_transcript "
        "asr_transcription whisper_transcription whisper_text"
    ),
    "wer": Guess("wer word_error_rate wer_percent wer_pct wer_percentage wer_fraction wer_ratio", (NUMBER,)),
    "id": Guess("id segment_id utterance_id utt_id utt audio_id clip_id uid key", (TEXT, NUMBER)),
    "speaker": Guess("speaker speaker_id client_id spk_id spk", SCALARS),
    "language": Guess("language locale lang lang_id language_id source_lang"),
    "translation": Guess("translation translated_text translated_sentence"),
    "target_language": Guess("target_language target_lang tgt_lang"),
    "caption": Guess("caption description"),
    "question": Guess("question"),
    "answer": Guess("answer"),
    "response": Guess("response"),
}
#: Columns that place a clip, in a manifest; in a dataset they may be about anything.
PLACE_GUESSES: dict[str, Guess] = {
    "split": Guess("split subset partition"),
    "start": Guess("offset start start_seconds start_time begin", (NUMBER,)),
    "end": Guess("end end_seconds end_time", (NUMBER,)),
    "duration": Guess("duration audio_duration duration_seconds", (NUMBER,)),
}
#: Fields one of which a corpus must have: what a task can ask for.
ANSWERS = ("text", "translation", "caption", "answer", "response")
#: End of errors about columns.
OVERRIDE_HINT = " Say which is which with --columns, for instance --columns audio=COLUMN text=COLUMN."
#: Names that a prepared clip has of its own.
RESERVED_FIELDS = ("split", "duration", "bytes", "sha256", "problem")
FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")

#: Units of word errors, and names of columns that say which.
WER_UNITS = {
    "percent": ("wer_percent", "wer_pct", "wer_percentage"),
    "fraction": ("wer_fraction", "wer_ratio"),
}
#: One wrong word in a transcript of up to 100 words is 1 or more in percent; a fraction is 1 at most, unless words were
#: inserted. Beyond the last, a fraction would mean five times as many mistakes as words.
LEAST_ERROR_PERCENT, MOST_ERROR_FRACTION, CLEARLY_PERCENT = 1.0, 1.0, 5.0


#: Punctuation as GigaSpeech writes it, and its tags of recordings without speech.
GIGASPEECH_PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GIGASPEECH_NOT_SPEECH = ("<SIL>", "<NOISE>", "<MUSIC>", "<OTHER>")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def gigaspeech_tags(text: Any) -> str:
    """Return a transcript of GigaSpeech with its punctuation as marks; raise ValueError where nobody speaks."""
    words = str(text).split()
    tags = [word for word in words if word in GIGASPEECH_NOT_SPEECH]
    if tags:
        raise ValueError(f"is tagged {tags[0]}: nothing is said in it that could be transcribed")
    marked = " ".join(GIGASPEECH_PUNCTUATION.get(word, word) for word in words)
    for mark in GIGASPEECH_PUNCTUATION.values():
        marked = marked.replace(f" {mark}", mark)
    return marked


def sentence_case(text: Any) -> str:
    """Return English that was all capitals as its sentences are written."""
    return SENTENCE.sub(lambda match: letter_case.sentence(match[0]), str(text))


def first_item(values: Any) -> Any:
    """Return the first of several right answers; raise ValueError if there is none."""
    if not isinstance(values, (list, tuple)):
        return values
    if not values:
        raise ValueError("is an empty list")
    return values[0]


def yes_or_no(value: Any) -> str:
    """Return a truth value as a spoken question is answered."""
    return "Yes." if value else "No."


#: By the names that the catalogue uses.
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    each.__name__: each for each in (first_item, gigaspeech_tags, sentence_case, yes_or_no)
}


@dataclass(frozen=True)
class ColumnSpec:
    """
    Source of one field: a column, or with `each` every column, or every item of the one column's list.

    With `each`, every value makes a clip of its own from the same recording.
    """

    columns: tuple[str, ...]
    transforms: tuple[str, ...] = ()  # names of `TRANSFORMS`, applied in turn
    each: bool = False

    @property
    def takes_lists(self) -> bool:
        """Return whether its columns may hold lists."""
        return self.each or self.transforms[:1] == ("first_item",)

    def __str__(self) -> str:
        name = " and ".join(self.columns) if len(self.columns) < 3 else f"{self.columns[0]} … {self.columns[-1]}"
        transforms = f" ({', '.join(self.transforms)})" if self.transforms else ""
        return (f"each of {name}" if self.each else name) + transforms


@dataclass(frozen=True)
class ColumnMapping:
    """Sources of all fields of a clip, by field; `audio` is among them."""

    specs: Mapping[str, ColumnSpec]
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by field, other columns that fit
    unread: tuple[str, ...] = ()  # columns that become no field

    @property
    def columns(self) -> list[str]:
        """Return all columns that are read."""
        return list(dict.fromkeys(column for spec in self.specs.values() for column in spec.columns))

    def describe(self, notes: Mapping[str, str] | None = None) -> str:
        """Return a line for each field, and one for the columns that are not read."""
        width = max(map(len, self.specs))
        lines = []
        for name, spec in self.specs.items():
            remarks = [notes[name]] if notes and name in notes else []
            if self.alternatives.get(name):
                remarks.append(f"also possible: {', '.join(self.alternatives[name])}")
            lines.append(f"  {name:<{width}} ← {spec}" + (f"   ({'; '.join(remarks)})" if remarks else ""))
        return "\n".join(lines + ([f"  not read: {', '.join(self.unread)}"] if self.unread else []))


def column_kind(feature: Any) -> str:
    """Return the kind of a column of `datasets`."""
    if isinstance(feature, datasets.Audio):
        return AUDIO
    if isinstance(feature, dict):
        return AUDIO if any(key in feature for key in RECORDING_KEYS) else OTHER
    if isinstance(feature, datasets.ClassLabel):
        return TEXT
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        return LIST
    patterns = {r"(large_)?string": TEXT, r"(large_)?binary": AUDIO, r"bool|u?int\d+|float\d+": NUMBER}
    found = (kind for pattern, kind in patterns.items() if re.fullmatch(pattern, getattr(feature, "dtype", "")))
    return next(found, OTHER)


def parse_overrides(given: Iterable[str]) -> dict[str, str]:
    """Return what --columns says, column by field, "" for a field that is left out; raise ValueError for another form."""
    overrides: dict[str, str] = {}
    for item in given:
        name, equals, column = (part.strip() for part in item.partition("="))
        if not equals or not FIELD_NAME.fullmatch(name):
            raise ValueError(f"--columns {item!r}: expected field=column, for instance text=sentence.")
        if name in RESERVED_FIELDS and name not in PLACE_GUESSES:
            raise ValueError(f"--columns {item!r}: every clip has its own {name!r}; give the field another name.")
        if name in overrides:
            raise ValueError(f"--columns gives {name!r} twice: {overrides[name]!r} and {column!r}.")
        overrides[name] = column
    if overrides.get("audio") == "":
        raise ValueError("--columns 'audio=': a clip needs audio.")
    return overrides


def map_columns(
    name: str,
    kinds: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, str],
    wanted: Mapping[str, ColumnSpec] | None = None,
    guesses: Mapping[str, Guess] = GUESSES,
) -> ColumnMapping:
    """
    Decide which column is which field: by the catalogue if it has what is `wanted`, else by `guesses`, and by overrides.

    Guesses of paths and ids look at the first rows. CorpusError, with the dataset's name, is raised for columns that are
    not there, or of the wrong kind, or that cannot be told among several.
    """
    specs: dict[str, ColumnSpec] = dict(wanted or {})
    alternatives: dict[str, tuple[str, ...]] = {}
    if wanted is None:
        for field_name in guesses:
            found = [] if field_name in overrides else _candidates(field_name, guesses[field_name], kinds, rows)
            if found:
                specs[field_name], alternatives[field_name] = ColumnSpec((found[0],)), tuple(found[1:])
    for field_name, column in overrides.items():
        kept = specs.pop(field_name, None)
        if column:
            specs[field_name] = ColumnSpec((column,), kept.transforms if kept else ())
    _check(name, kinds, specs, wanted is None, overrides)
    specs = dict(sorted(specs.items(), key=lambda item: item[0] != "audio"))
    taken = {column for spec in specs.values() for column in spec.columns}
    return ColumnMapping(specs, alternatives, tuple(column for column in kinds if column not in taken))


def _candidates(
    field_name: str, guess: Guess, kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the columns that a field may come from, best first."""
    named = [column for name in guess.names.split() for column in kinds if column.lower() == name]
    fitting = [column for column in named if kinds[column] in guess.kinds]
    if field_name == "id":
        return [column for column in fitting if len({row.get(column) for row in rows}) == len(rows)]
    if field_name != "audio":
        return fitting
    recordings = [column for column in kinds if kinds[column] == AUDIO]
    if len(recordings) <= 1:
        paths = [column for column in fitting if _holds_paths(column, rows)]
        return recordings + [column for column in paths if column not in recordings]
    preferred = [column for column in fitting if column in recordings]
    return preferred + [column for column in recordings if column not in preferred] if preferred else []


def _holds_paths(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row[column] for row in rows if row.get(column)]
    return bool(values) and all(isinstance(value, str) and is_audio(value) for value in values)


def _check(
    name: str, kinds: Mapping[str, str], specs: Mapping[str, ColumnSpec], guessed: bool, overrides: Mapping[str, str]
) -> None:
    """Refuse a mapping whose columns are missing or of the wrong kind, naming all of them."""
    taken = {column for spec in specs.values() for column in spec.columns}
    problems = []
    for field_name, spec in specs.items():
        for column in spec.columns:
            if column not in kinds:
                near = difflib.get_close_matches(column, [name for name in kinds if name not in taken], n=1)
                hint = f", perhaps {near[0]!r}?" if near else ""
                problems.append(f"there is no column {column!r}{hint} for {field_name!r}")
            elif field_name == "audio" and kinds[column] not in (AUDIO, TEXT):
                problems.append(f"column {column!r} for 'audio' holds {kinds[column]}, not recordings or paths")
            elif field_name != "audio" and kinds[column] not in (*SCALARS, *([LIST] if spec.takes_lists else [])):
                problems.append(f"column {column!r} for {field_name!r} holds {kinds[column]}, not plain values")
    if not problems and "audio" not in specs:
        several = [column for column, kind in kinds.items() if kind == AUDIO]
        which = f"it may be any of {', '.join(several)}" if several else "none has recordings or paths of them"
        problems.append(f"it cannot be told which column is the audio: {which}")
    if not problems and guessed and "text" not in overrides and not any(answer in specs for answer in ANSWERS):
        problems.append("it cannot be told which column is the transcript")
    if problems:
        found = ", ".join(f"{column} ({kind})" for column, kind in kinds.items()) or "none"
        raise CorpusError(f"{name}: {'; '.join(problems)}. Its columns are: {found}.{OVERRIDE_HINT}")


def wer_unit(
    name: str, mapping: ColumnMapping, values: Iterable[Any], given: str | None
) -> tuple[str | None, str | None]:
    """
    Return the unit of a dataset's own word errors, "percent" or "fraction"; or None and the message that asks for it.

    It is what was given; or what the column's name says; or what the values leave no doubt about: fractions are all at
    most 1, and some below; percentages are all 0 or at least 1, and some at least 5. Other values raise CorpusError.
    """
    if "wer" not in mapping.specs:
        if given is not None:
            raise CorpusError(f"{name}: --wer_unit {given} is given, but there is no column of word errors.")
        return None, None
    column = mapping.specs["wer"].columns[0]
    wrong = [value for value in values if value]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in wrong):
        raise CorpusError(f"{name}: column {column!r} for 'wer' does not hold numbers.")
    if given is not None:
        return given, None
    for unit, names in WER_UNITS.items():
        if column.lower() in names:
            return unit, None
    if wrong and max(wrong) <= MOST_ERROR_FRACTION and min(wrong) < LEAST_ERROR_PERCENT:
        return "fraction", None
    if wrong and max(wrong) >= CLEARLY_PERCENT and min(wrong) >= LEAST_ERROR_PERCENT:
        return "percent", None
    seen = f"from {min(wrong):g} to {max(wrong):g}" if wrong else "nothing but zeros"
    return None, (
        f"{name}: the first word errors of column {column!r}, {seen}, do not tell percent from fractions. Give --wer_unit "
        "percent or --wer_unit fraction, or leave the column out with --columns wer= ."
    )
