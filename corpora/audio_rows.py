"""
Rows of prompt, audio and other answers than one response, for distillation and preferences.

Every row has audio: the untouched base answers the others, so that nothing could be learned from them.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .examples import ExamplesError, RowChecker, as_list, json_rows

#: Name of rows that were given as such, in messages.
GIVEN_ROWS = "rows"
PROMPT_FIELDS = ("text", "audio_paths")


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
    Read rows and check all of them.

    Args:
        source: A JSON list, or JSON Lines if its name ends in `.jsonl`; or the rows themselves.
        audio_dir: As in `read_examples`; rows without a file start from the current folder.
        required, optional: Fields besides `text` and `audio_paths`. The required ones are texts, and not empty.
        problems_of: Further problems of a row whose required fields are right.

    Raises:
        FileNotFoundError: no such file, or `audio_dir` is not a folder.
        ExamplesError: broken JSON, not a list, no rows, or bad rows; all problems are listed, by index (or line).
    """
    problems: list[tuple[str, str]] = []
    rows: Iterable[tuple[str, Any]]
    if isinstance(source, (str, os.PathLike)):
        name, path = str(source), Path(source)
        checker, rows = RowChecker(path.parent, audio_dir), json_rows(path, problems)
    else:
        name, checker = GIVEN_ROWS, RowChecker(".", audio_dir)
        rows = ((f"row {index}", row) for index, row in enumerate(source))
    read: list[AudioRow] = []
    for index, (where, row) in enumerate(rows):
        reasons = _problems(row, checker, required, optional)
        if isinstance(row, dict) and not reasons:
            reasons = problems_of(row)
        problems.extend((where, reason) for reason in reasons)
        if not reasons:
            paths = tuple(checker.locate(path) for path in as_list(row["audio_paths"]))
            rest = {key: row[key] for key in (*required, *optional) if row.get(key) is not None}
            read.append(AudioRow(row["text"], paths, rest, index))
    if not read and not problems:
        problems.append(("", "holds no rows"))
    if problems:
        raise ExamplesError(name, problems)
    return read


def answer_problems(name: str, answer: Any) -> list[str]:
    """Return the problems of a text that the model is to say, or to read in place of a recording."""
    if not isinstance(answer, str):
        return [f"{name} must be a string, found {answer!r}"]
    if not answer.strip():
        return [f"{name} is empty"]
    if AUDIO_PLACEHOLDER in answer:
        return [f"{name} holds {AUDIO_PLACEHOLDER}, which stands for a recording; it may stand in 'text' only"]
    return []


def _problems(row: Any, checker: RowChecker, required: Sequence[str], optional: Sequence[str]) -> list[str]:
    if not isinstance(row, dict):
        return [f"expected an object, found {row!r}"]
    known = (*PROMPT_FIELDS, *required, *optional)
    reasons = [f"unknown field {name!r}; expected only {', '.join(known)}" for name in row if name not in known]
    # The prompt is one of the instruction format; this row's answers have names of their own.
    prompt = {name: row[name] for name in PROMPT_FIELDS if row.get(name) is not None}
    reasons += checker.problems({**prompt, "response": "an answer"})
    if prompt.get("audio_paths") in (None, []) and AUDIO_PLACEHOLDER not in str(prompt.get("text")):
        reasons.append("has no audio: rows without it are answered by the untouched base, which does not learn")
    for name in required:
        reasons += [f"field {name!r} is missing"] if row.get(name) is None else answer_problems(repr(name), row[name])
    return reasons
