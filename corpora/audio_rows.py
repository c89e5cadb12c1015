"""Rows of prompt, audio and other answers than one response, for distillation and preferences."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .examples import ExamplesError, json_rows, read_all
from .rows import AUDIO_PATHS, RowError, RowReader, kind_of


@dataclass(frozen=True)
class AudioRow:
    """One prompt with its recordings, and whatever else the row holds."""

    text: str  # holds one `<audio>` per recording
    audio_paths: tuple[str, ...]  # absolute, in the order of the placeholders
    fields: Mapping[str, Any] = field(default_factory=dict)  # the rest, by name
    index: int = 0  # place in the file it came from, counting from 0


def read_audio_rows(
    source: str | os.PathLike[str] | Iterable[Any],
    audio_dir: str | os.PathLike[str] | None,
    required: Sequence[str],
    optional: Sequence[str] = (),
    problems_of: Callable[[dict[str, Any]], list[str]] = lambda row: [],
) -> list[AudioRow]:
    """
    Read rows, from a file or as they are, and check all of them; raises as `read_examples`, also if there are none.

    `required` and `optional` are fields besides `text` and `audio_paths`; the required ones are texts, and not empty.
    `problems_of` returns further problems of a row whose required fields are right.
    """
    rows: Iterable[tuple[str, Any, str | None]]
    if isinstance(source, (str, os.PathLike)):
        name, reader, rows = str(source), RowReader(Path(source).parent, audio_dir), json_rows(Path(source))
    else:
        name, reader = "rows", RowReader(".", audio_dir)
        rows = ((f"row {index}", row, None) for index, row in enumerate(source))
    fields = ("text", AUDIO_PATHS, *required, *optional)

    def read(row: Any, index: int) -> AudioRow:
        if isinstance(row, dict):  # a field that is null is one that the row does not have
            row = {key: value for key, value in row.items() if value is not None or key not in fields}
        paths = reader.read_instruction(row, fields, required=("text", *required))
        reasons = [reason for key in required for reason in answer_problems(repr(key), row[key])]
        if not paths:
            reasons.append("has no audio: rows without it are answered by the untouched base, which does not learn")
        if reasons := reasons or problems_of(row):
            raise RowError(reasons)
        rest = {key: row[key] for key in (*required, *optional) if key in row}
        return AudioRow(row["text"], tuple(paths), rest, index)

    found = read_all(name, rows, read)
    if not found:
        raise ExamplesError(name, [("", "holds no rows")])
    return found


def answer_problems(name: str, answer: Any) -> list[str]:
    """Return the problems of a text that the model is to say, or to read in place of a recording."""
    if not isinstance(answer, str):
        return [f"{name} must be a string, found {kind_of(answer)}"]
    if not answer.strip():
        return [f"{name} is empty"]
    if AUDIO_PLACEHOLDER in answer:
        return [f"{name} holds {AUDIO_PLACEHOLDER}, which stands for a recording; it may stand in 'text' only"]
    return []
