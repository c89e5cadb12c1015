"""Which column of a manifest is what: guessed by the names that are usual, or told, and read as a clip's parts."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .clips import CorpusError, FieldValue
from .manifests import printable, shown, text_problem

#: Usual names of columns, in small letters, by what they hold; the first that a manifest has is taken.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "audio": (
        *("audio_filepath", "audio_filename", "audio_file", "audio_path", "file_name", "filename", "wav_filename"),
        *("filepath", "file_path", "path", "wav_path", "wav_file", "wav", "audio", "file", "clip", "recording"),
    ),
    "text": (
        *("text", "sentence", "transcript", "transcription", "transcripts", "txt", "utterance", "raw_transcription"),
        *("raw_text", "normalized_text", "normalised_text", "label_text"),
    ),
    "id": ("id", "utt_id", "utterance_id", "utt", "clip_id", "segment_id", "uid", "key"),
    "split": ("split", "subset", "partition"),
    "start": ("offset", "start", "start_seconds", "start_time", "begin"),
    "end": ("end", "end_seconds", "end_time"),
    "duration": ("duration", "audio_duration", "duration_seconds"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "client_id"),
    "language": ("language", "lang", "locale", "source_lang", "lang_id"),
    "target_language": ("target_language", "target_lang", "tgt_lang"),
    "translation": ("translation", "translated_text", "translated_sentence"),
    "caption": ("caption", "description"),
    "question": ("question",),
    "answer": ("answer",),
    "response": ("response",),
    "pred_text": ("pred_text", "hypothesis", "whisper_transcript", "prediction", "predicted_text"),
    "wer": ("wer",),
}
#: What places a clip; everything else is a field of it.
PLACES = ("audio", "text", "id", "split", "start", "end", "duration")
#: What there is to learn from a clip: a manifest has one of these at least.
LESSONS = ("text", "translation", "caption", "answer", "response")
#: Fields that are texts in every manifest, also where JSON has numbers.
TEXT_FIELDS = ("speaker", "language", "target_language", *LESSONS, "question", "pred_text")
#: Columns of the prepared table; a manifest's further columns of these names are called `original_...`.
RESERVED = ("id", "split", "audio", "text", "duration", "bytes", "sha256", "model", "normaliser", "declared_seconds")
RENAMED_PREFIX = "original_"
#: Larger ones, which tables cannot hold, become texts.
MAX_INTEGER = 2**63 - 1


class RowError(ValueError):
    """What is wrong with a row of a manifest."""


@dataclass(frozen=True)
class Reading:
    """
    What a row says of a clip.

    Attributes:
        audio: the path as it is written.
        text, id, split: empty where the row does not say.
        start, end: of the part that is meant, in seconds; `end` is None for the recording's own.
        fields: everything else.
    """

    audio: str
    text: str = ""
    id: str = ""
    split: str = ""
    start: float = 0.0
    end: float | None = None
    fields: dict[str, FieldValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """
    Reads rows by their columns.

    Attributes:
        given: columns by what they hold, as the user said; others are guessed.
        encoding: as the user said, for messages.
    """

    given: tuple[tuple[str, str], ...] = ()
    encoding: str | None = None

    def mapping(self, names: Sequence[str]) -> dict[str, str]:
        """Column by what it holds, of a manifest with columns `names`; what it does not have is left out."""
        return _mapping(self.given, tuple(names))

    def check(self, names: Sequence[str], name: str) -> dict[str, str]:
        """
        As [`mapping`], for a manifest that must have what makes a clip.

        Raises:
            CorpusError: there is no such column as the user said, none with paths, or none with something to learn.
        """
        has = ", ".join(map(shown, names)) or "none"
        unknown = [column for _, column in self.given if column not in names]
        if unknown:
            raise CorpusError(f"{name} has no column {unknown[0]!r}, which --columns names; it has {has}.")
        mapping = self.mapping(names)
        if "audio" not in mapping:
            raise CorpusError(
                f"{name} has no column that is known to name audio files; it has {has}. The first line must name the "
                "columns; say which it is with --columns audio=NAME."
            )
        if not any(lesson in mapping for lesson in LESSONS):
            raise CorpusError(
                f"{name} has no column that is known to hold transcripts; it has {has}. Say which it is with "
                f"--columns text=NAME, or that of another of {', '.join(LESSONS)}."
            )
        return mapping

    def read(self, values: Mapping[str, Any]) -> Reading:
        """
        What a row says.

        Raises:
            RowError: it lacks a path or anything to learn, or has values that are none of their kind.
        """
        mapping = self.mapping(list(values))
        audio = values.get(mapping.get("audio", ""))
        if not isinstance(audio, str) or not audio:
            raise RowError(f"does not say where the audio lies: {_found(mapping, 'audio', values)}")
        texts = {place: self._text(values, mapping, place) for place in ("text", "id", "split")}
        start, end, declared = (
            number(values.get(mapping.get(place, "")), place) for place in ("start", "end", "duration")
        )
        if start is not None and end is None and declared is not None:
            end = start + declared
        if end is not None and end <= (start or 0.0):
            raise RowError(f"ends at {end:g} s, which is not after its start at {start or 0.0:g} s")
        fields = self._fields(values, mapping)
        if declared is not None:
            fields["declared_seconds"] = declared
        if not texts["text"] and not any(str(fields.get(lesson) or "").strip() for lesson in LESSONS):
            raise RowError(f"has no transcript: {_found(mapping, 'text', values)}")
        return Reading(audio, texts["text"], texts["id"], texts["split"], start or 0.0, end, fields)

    def _text(self, values: Mapping[str, Any], mapping: Mapping[str, str], place: str) -> str:
        value = values.get(mapping.get(place, ""))
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise RowError(f"{mapping[place]!r} is {shown(value)}; expected a text")
        return self._checked(str(value)).strip()

    def _checked(self, value: str) -> str:
        problem = text_problem(value, self.encoding)
        if problem:
            raise RowError(problem)
        return value

    def _fields(self, values: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, FieldValue]:
        names = {column: name for name, column in mapping.items()}
        fields: dict[str, FieldValue] = {}
        for column, value in values.items():
            name = names.get(column, column)
            if name in PLACES and column in names:
                continue
            if column not in names and (name in RESERVED or name in USUAL_NAMES):
                name = f"{RENAMED_PREFIX}{name}"
            if name == "wer":
                fields[name] = number(value, name)
            else:
                fields[printable(name)] = self._field(name, value)
        return fields

    def _field(self, name: str, value: Any) -> FieldValue:
        if isinstance(value, str):
            return self._checked(value.strip() if name in TEXT_FIELDS else value)
        if isinstance(value, (list, tuple, dict)):
            return self._checked(json.dumps(value, ensure_ascii=False, default=str))
        if value is None:
            return None
        too_large = isinstance(value, int) and abs(value) > MAX_INTEGER
        if name in TEXT_FIELDS or too_large or not isinstance(value, (bool, int, float)):
            return str(value)
        return value


@lru_cache(maxsize=1024)  # rows of JSON may each have other columns
def _mapping(given: tuple[tuple[str, str], ...], names: tuple[str, ...]) -> dict[str, str]:
    mapping = {name: column for name, column in given if column in names}
    by_lower = {name.lower(): name for name in reversed(names)}
    for name, usual in USUAL_NAMES.items():
        free = [by_lower[each] for each in usual if each in by_lower and by_lower[each] not in mapping.values()]
        if name not in dict(given) and free:
            mapping[name] = free[0]
    return mapping


def number(value: Any, name: str) -> float | None:
    """
    A number that is 0 or more, as JSON or a table has it; None where there is none.

    Raises:
        RowError: it is something else.
    """
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise RowError(f"{name} is {shown(value)}; expected a number that is 0 or more")
    return found


def parse_columns(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """
    What --columns says, as pairs of what a column holds and its name.

    Raises:
        ValueError: one is not of the form text=NAME, or a thing is said twice.
    """
    pairs: list[tuple[str, str]] = []
    for each in given:
        name, mark, column = each.partition("=")
        if not mark or not name.isidentifier() or not column:
            raise ValueError(f"--columns {each!r}: expected NAME=COLUMN, for example text=sentence.")
        if name in dict(pairs):
            raise ValueError(
                f"--columns says twice which column holds {name!r}: {dict(pairs)[name]!r} and {column!r}."
            )
        pairs.append((name, column))
    return tuple(pairs)


def _found(mapping: Mapping[str, str], place: str, values: Mapping[str, Any]) -> str:
    if place in mapping:
        return f"{mapping[place]!r} is {shown(values[mapping[place]])}"
    return f"no column of {', '.join(map(shown, values)) or 'none'} holds it; --columns {place}=NAME says which does"


__all__ = ["LESSONS", "USUAL_NAMES", "Columns", "Reading", "RowError", "number", "parse_columns"]
