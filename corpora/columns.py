"""
Which column of a dataset is which field of a clip: guessed from names and types, shown, and overridable.

A guess is by name, in an order of preference, among columns of a fitting type; audio goes by type first. What was guessed
is always printed, beside what else it could have been. What cannot be told apart is asked for, not guessed.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from audiollm.files import is_audio

from .clips import CorpusError
from .transforms import TRANSFORMS

#: Kinds of columns, as far as it matters here.
AUDIO, TEXT, NUMBER, TRUTH, LABEL, LIST, OTHER = "audio", "text", "number", "truth", "label", "list", "other"
SCALARS = (TEXT, NUMBER, TRUTH, LABEL)
#: Keys of a struct that is a recording.
RECORDING_KEYS = ("bytes", "path", "array")


@dataclass(frozen=True)
class Guess:
    """Names that a field's column goes by, best first, and the kinds that it may have."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]


GUESSES: dict[str, Guess] = {
    "audio": Guess(
        ("audio", "audio_path", "audio_filepath", "file", "file_name", "path", "file_path", "wav", "speech", "sound"),
        (AUDIO, TEXT),
    ),
    "text": Guess(
        (
            *("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text", "raw_transcription"),
            *("normalized_transcription", "transcripts", "utterance", "ground_truth", "reference"),
        ),
        (TEXT,),
    ),
    "pred_text": Guess(
        (
            *("pred_text", "whisper_transcript", "prediction", "predicted_text", "hypothesis", "hyp", "asr"),
            *("asr_text", "asr_transcript", "asr_transcription", "whisper_transcription", "whisper_text"),
        ),
        (TEXT,),
    ),
    "wer": Guess(
        ("wer", "word_error_rate", "wer_percent", "wer_pct", "wer_percentage", "wer_fraction", "wer_ratio"), (NUMBER,)
    ),
    "id": Guess(("id", "segment_id", "utterance_id", "utt_id", "audio_id", "clip_id", "uid"), (TEXT, NUMBER)),
    "speaker": Guess(("speaker", "speaker_id", "client_id", "spk_id"), SCALARS),
    "language": Guess(("language", "locale", "lang", "lang_id", "language_id"), (TEXT, LABEL)),
    "translation": Guess(("translation",), (TEXT,)),
    "target_language": Guess(("target_language",), (TEXT, LABEL)),
    "caption": Guess(("caption",), (TEXT,)),
    "question": Guess(("question",), (TEXT,)),
    "answer": Guess(("answer",), (TEXT, LABEL)),
    "response": Guess(("response",), (TEXT,)),
}
#: Fields one of which a dataset must have: what a task can ask for.
ANSWERS = ("text", "translation", "caption", "answer", "response")
#: How `audiollm prepare` is told what it cannot tell, at the end of errors about columns.
OVERRIDE_HINT = " Say which is which with --columns, for instance --columns audio=COLUMN text=COLUMN."
#: Names that a prepared clip has of its own.
RESERVED_FIELDS = ("split", "duration", "bytes", "sha256", "problem")
FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")

WER_UNITS = {"percent": 1.0, "fraction": 100.0}
#: What a name says about its unit.
WER_UNIT_NAMES = {
    "percent": ("wer_percent", "wer_pct", "wer_percentage"),
    "fraction": ("wer_fraction", "wer_ratio"),
}
#: One wrong word in a transcript of up to 100 words is 1 or more in percent; a fraction is 1 at most, unless words were
#: put in. Beyond this, a fraction would mean five times as many mistakes as words.
LEAST_ERROR_PERCENT, MOST_ERROR_FRACTION, CLEARLY_PERCENT = 1.0, 1.0, 5.0


@dataclass(frozen=True)
class ColumnSpec:
    """
    Where a field comes from.

    Attributes:
        columns: of the dataset; several only where each is a clip of its own.
        transforms: names of `TRANSFORMS`, applied in turn.
        each: every column, or every item of the one column's list, makes a clip of its own from the same recording.
    """

    columns: tuple[str, ...]
    transforms: tuple[str, ...] = ()
    each: bool = False

    def __post_init__(self):
        unknown = [name for name in self.transforms if name not in TRANSFORMS]
        if unknown:
            raise ValueError(f"There is no transform {unknown[0]!r}; expected some of {', '.join(TRANSFORMS)}.")
        if not self.columns or (len(self.columns) > 1 and not self.each):
            raise ValueError(f"A field comes from one column, or from each of several; found {list(self.columns)}.")

    def __str__(self) -> str:
        name = " and ".join(self.columns) if len(self.columns) < 3 else f"{self.columns[0]} … {self.columns[-1]}"
        shown = f"each of {name}" if self.each else name
        return shown + (f" ({', '.join(self.transforms)})" if self.transforms else "")


@dataclass(frozen=True)
class ColumnMapping:
    """
    Where every field of a clip comes from.

    Attributes:
        specs: by field; `audio` is among them.
        alternatives: by field: columns that it was not taken from, but might have been.
        unread: columns that become no field.
    """

    specs: Mapping[str, ColumnSpec]
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys(column for spec in self.specs.values() for column in spec.columns))

    def describe(self, notes: Mapping[str, str] | None = None) -> str:
        """A line for each field, and one for the columns that are not read."""
        width = max(map(len, self.specs))
        lines = []
        for name, spec in self.specs.items():
            remarks = [notes[name]] if notes and name in notes else []
            if self.alternatives.get(name):
                remarks.append(f"also possible: {', '.join(self.alternatives[name])}")
            lines.append(f"  {name:<{width}} ← {spec}" + (f"   ({'; '.join(remarks)})" if remarks else ""))
        if self.unread:
            lines.append(f"  not read: {', '.join(self.unread)}")
        return "\n".join(lines)


def column_kinds(features: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """
    The kind of each column.

    Args:
        features: of a dataset; None where it does not say.
        rows: the first ones, with audio undecoded.
    """
    names = list(features) if features is not None else list(dict.fromkeys(name for row in rows for name in row))
    return {
        name: _feature_kind(features[name])
        if features is not None
        else next((_value_kind(row[name]) for row in rows if row.get(name) is not None), OTHER)
        for name in names
    }


def _feature_kind(feature: Any) -> str:
    if isinstance(feature, datasets.Audio):
        return AUDIO
    if isinstance(feature, dict):
        return AUDIO if any(key in feature for key in RECORDING_KEYS) else OTHER
    if isinstance(feature, datasets.ClassLabel):
        return LABEL
    if isinstance(feature, (list, datasets.List, datasets.LargeList)):
        return LIST
    dtype = getattr(feature, "dtype", "")
    if dtype in ("string", "large_string"):
        return TEXT
    if dtype in ("binary", "large_binary"):
        return AUDIO
    if dtype == "bool":
        return TRUTH
    return NUMBER if re.fullmatch(r"u?int\d+|float\d+", dtype) else OTHER


def _value_kind(value: Any) -> str:
    if isinstance(value, dict):
        return AUDIO if any(key in value for key in RECORDING_KEYS) else OTHER
    if isinstance(value, bool):
        return TRUTH
    kinds = ((bytes, AUDIO), (str, TEXT), ((int, float), NUMBER), (list, LIST))
    return next((kind for types, kind in kinds if isinstance(value, types)), OTHER)


def parse_overrides(given: Iterable[str]) -> dict[str, str]:
    """
    What stands behind --columns: field=column, or field= for a field that is to be left out.

    Raises:
        ValueError: something else stands there, a field twice, or a name that clips have of their own.
    """
    overrides: dict[str, str] = {}
    for item in given:
        name, equals, column = (part.strip() for part in item.partition("="))
        if not equals or not FIELD_NAME.fullmatch(name):
            raise ValueError(f"--columns {item!r}: expected field=column, for instance text=sentence.")
        if name in RESERVED_FIELDS:
            raise ValueError(f"--columns {item!r}: every clip has its own {name!r}; give the field another name.")
        if name in overrides:
            raise ValueError(f"--columns gives {name!r} twice: {overrides[name]!r} and {column!r}.")
        overrides[name] = column
    if overrides.get("audio") == "":
        raise ValueError("--columns 'audio=': a clip cannot do without audio.")
    return overrides


def map_columns(
    name: str,
    kinds: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    overrides: Mapping[str, str],
    wanted: Mapping[str, ColumnSpec] | None = None,
) -> ColumnMapping:
    """
    Decides which column is which field.

    Args:
        name: of the dataset, for messages.
        kinds: of its columns.
        rows: the first ones; a guess at texts that are paths, and at ids, looks at them.
        overrides: columns by field, "" to leave the field out; of [`parse_overrides`].
        wanted: what a table says; every column of it must be there. Without it columns are guessed.

    Raises:
        CorpusError: a column is not there, is of a kind that its field cannot be, or cannot be told among several.
    """
    specs: dict[str, ColumnSpec] = {}
    alternatives: dict[str, tuple[str, ...]] = {}
    if wanted is None:
        for field_name in GUESSES:
            if field_name in overrides:
                continue
            found = _candidates(field_name, kinds, rows)
            if found:
                specs[field_name] = ColumnSpec((found[0],))
                alternatives[field_name] = tuple(found[1:])
    else:
        specs.update(wanted)
    for field_name, column in overrides.items():
        if column:
            kept = specs.get(field_name)
            specs[field_name] = ColumnSpec((column,), kept.transforms if kept else ())
        else:
            specs.pop(field_name, None)
    _check(name, kinds, specs, wanted is None, overrides)
    mapping = ColumnMapping(dict(sorted(specs.items(), key=lambda item: item[0] != "audio")), alternatives)
    unread = tuple(column for column in kinds if column not in mapping.columns)
    return ColumnMapping(mapping.specs, alternatives, unread)


def _candidates(field_name: str, kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that a field may come from, best first."""
    guess = GUESSES[field_name]
    named = [column for name in guess.names for column in kinds if column.lower() == name]
    fitting = [column for column in named if kinds[column] in guess.kinds]
    if field_name == "id":
        return [column for column in fitting if len({row.get(column) for row in rows}) == len(rows)]
    if field_name != "audio":
        return fitting
    recordings = [column for column in kinds if kinds[column] == AUDIO]
    if len(recordings) == 1 or not recordings:
        paths = [column for column in fitting if kinds[column] == TEXT and _holds_paths(column, rows)]
        return recordings + paths
    preferred = [column for column in fitting if column in recordings]
    return preferred + [column for column in recordings if column not in preferred] if preferred else []


def _holds_paths(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row[column] for row in rows if row.get(column)]
    return bool(values) and all(is_audio(str(value)) for value in values)


def _check(
    name: str, kinds: Mapping[str, str], specs: Mapping[str, ColumnSpec], guessed: bool, overrides: Mapping[str, str]
) -> None:
    """Refuses a mapping whose columns are missing or of the wrong kind, naming all of them."""
    found = ", ".join(f"{column} ({kind})" for column, kind in kinds.items()) or "none"
    taken = {column for spec in specs.values() for column in spec.columns}
    problems = []
    for field_name, spec in specs.items():
        for column in spec.columns:
            if column not in kinds:
                near = difflib.get_close_matches(column, [name for name in kinds if name not in taken], n=1)
                hint = f", perhaps {near[0]!r}?" if near else ""
                problems.append(f"there is no column {column!r}{hint} for {field_name!r}")
            elif field_name == "audio" and kinds[column] not in (AUDIO, TEXT):
                problems.append(
                    f"column {column!r} for 'audio' holds no recordings or paths, but is a {kinds[column]}"
                )
            elif field_name != "audio" and kinds[column] not in SCALARS and not _takes_lists(spec, kinds[column]):
                problems.append(f"column {column!r} for {field_name!r} holds no plain values, but is {kinds[column]}")
    if not problems and "audio" not in specs:
        several = [column for column, kind in kinds.items() if kind == AUDIO]
        which = f"it may be any of {', '.join(several)}" if several else "none has recordings or paths of them"
        problems.append(f"it cannot be told which column is the audio: {which}")
    if not problems and guessed and "text" not in overrides and not any(answer in specs for answer in ANSWERS):
        problems.append("it cannot be told which column is the transcript")
    if problems:
        raise CorpusError(f"{name}: {'; '.join(problems)}. Its columns are: {found}.{OVERRIDE_HINT}")


def _takes_lists(spec: ColumnSpec, kind: str) -> bool:
    return kind == LIST and (spec.each or spec.transforms[:1] == ("first_item",))


def wer_unit(name: str, column: str, values: Iterable[float | None], given: str | None) -> str:
    """
    The unit of a dataset's own word errors: "percent" or "fraction".

    It is what was given; or what the column's name says; or what the values leave no doubt about: fractions are all at
    most 1, and some below; percentages are all 0 or at least 1, and some at least 5.

    Raises:
        CorpusError: the values leave a doubt.
    """
    if given is not None:
        return given
    for unit, names in WER_UNIT_NAMES.items():
        if column.lower() in names:
            return unit
    wrong = [value for value in values if value]
    if wrong and max(wrong) <= MOST_ERROR_FRACTION and min(wrong) < LEAST_ERROR_PERCENT:
        return "fraction"
    if wrong and max(wrong) >= CLEARLY_PERCENT and min(wrong) >= LEAST_ERROR_PERCENT:
        return "percent"
    seen = f"from {min(wrong):g} to {max(wrong):g}" if wrong else "nothing but zeros"
    raise CorpusError(
        f"{name}: whether the word errors in column {column!r} are percent or fractions cannot be told from its first "
        f"values, {seen}. Say so with --wer_unit percent or --wer_unit fraction, or leave the column out with "
        "--columns wer= ."
    )


__all__ = [
    "OVERRIDE_HINT",
    "ColumnMapping",
    "ColumnSpec",
    "column_kinds",
    "map_columns",
    "parse_overrides",
    "wer_unit",
]
