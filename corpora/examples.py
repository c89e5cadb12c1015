"""
The instruction format: a JSON list of prompt, audio and response, read strictly and written whole or not at all.

    [{"text": "Describe the audio: <audio>", "audio_paths": "sample1.wav", "response": "A piano is playing."}]

`audio_paths` is one path or a list, one per `<audio>` in `text`; rows without audio leave it out. Files named `*.jsonl` hold
the same rows, one JSON object a line. Everything wrong with a file is reported at once.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiollm.files import is_inside, write_whole
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .tables import parse_json

FIELDS = ("text", "audio_paths", "response")
REQUIRED_FIELDS = ("text", "response")
JSON_LINES_SUFFIX = ".jsonl"
MAX_PROBLEMS_SHOWN = 200  # in the message; `ExamplesError.problems` has all
#: JSON's names of types.
JSON_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True)
class Example:
    """One prompt with its recordings and the response to learn or to score against."""

    text: str  # holds one `<audio>` per recording
    audio_paths: tuple[str, ...]  # absolute, in the order of the placeholders; empty for a text-only row
    response: str
    index: int = 0  # place in the file it came from, counting from 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the example as a conversation: one question, one answer."""
        return [{"role": "user", "content": self.text}, {"role": "assistant", "content": self.response}]

    @property
    def recordings(self) -> tuple[str, ...]:
        """Return the recording of each `<audio>`, in reading order."""
        return self.audio_paths

    @property
    def where(self) -> str:
        """Return the name of the row in errors."""
        return f"row {self.index}"


class ExamplesError(ValueError):
    """
    One or several files of examples that cannot be used as they are.

    Attributes:
        path: The file, or the files separated by commas.
        problems: (where, reason) of every problem; `where` is "row 3" (from 0), "line 4" of a JSON Lines file (from 1), or
            "" for the file as a whole.
    """

    def __init__(self, path: str | os.PathLike[str], problems: list[tuple[str, str]]):
        self.path = str(path)
        self.problems = problems
        lines = [f"{where}: {reason}" if where else reason for where, reason in problems[:MAX_PROBLEMS_SHOWN]]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{path}: {count}\n  " + "\n  ".join(lines))


class Reason(str):
    """A reason why a row cannot be used, with its kind of fault (a name of `FAULTS`) and the audio path it is about."""

    fault: str
    audio: str | None

    def __new__(cls, text: str, fault: str = "malformed_row", audio: str | None = None):
        reason = super().__new__(cls, text)
        reason.fault, reason.audio = fault, audio
        return reason


def read_examples(path: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None) -> list[Example]:
    """
    Read and check an examples file.

    Args:
        path: A JSON list, or JSON Lines if its name ends in `.jsonl`; UTF-8.
        audio_dir: Folder that relative audio paths start from and that none may leave. Without it they start from the
            file's own folder, and absolute paths may lead anywhere.

    Returns:
        The examples in the file's order. Every audio file was there; none was opened.

    Raises:
        FileNotFoundError: no such file, or `audio_dir` is not a folder.
        ExamplesError: broken JSON, not a list, or bad rows; all rows are checked first and all problems listed.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        kind = "a folder" if path.is_dir() else "a Parquet file"
        reason = f"it is {kind}, and JSON or JSON Lines is read here; `audiollm prepare` writes both, side by side."
        raise ExamplesError(path, [("", reason)])
    checker = RowChecker(path.parent, audio_dir)
    problems: list[tuple[str, str]] = []
    examples: list[Example] = []
    for where, row in json_rows(path, problems):
        reasons = checker.problems(row)
        problems.extend((where, reason) for reason in reasons)
        if not reasons:
            paths = tuple(checker.locate(each) for each in as_list(row.get("audio_paths")))
            examples.append(Example(row["text"], paths, row["response"], index=len(examples)))
    if problems:
        raise ExamplesError(path, problems)
    return examples


def write_examples(
    path: str | os.PathLike[str], examples: Iterable[Example], audio_dir: str | os.PathLike[str] | None = None
) -> None:
    """
    Write examples so that `read_examples(path, audio_dir)` gives them back; the file appears whole or not at all.

    Audio inside `audio_dir` is written relative to it, with forward slashes, so that the folder can be moved; other audio
    keeps its absolute path.

    Args:
        path: `*.jsonl` for one row a line, else a JSON list. Its folder is made if need be.
        examples: In this order.
        audio_dir: Where relative paths will start; the file's own folder by default.
    """
    path = Path(path)
    start = os.path.abspath(path.parent if audio_dir is None else audio_dir)
    rows = []
    for example in examples:
        located = [os.path.abspath(each) for each in example.audio_paths]
        paths = [Path(os.path.relpath(each, start)).as_posix() if is_inside(each, start) else each for each in located]
        audio = {"audio_paths": paths[0] if len(paths) == 1 else paths} if paths else {}
        rows.append({"text": example.text, **audio, "response": example.response})
    if path.suffix == JSON_LINES_SUFFIX:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text)


def json_rows(path: Path, problems: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """
    Yield the values of a JSON list or JSON Lines file, each with its place ("row 3", "line 4").

    Args:
        path: JSON Lines if its name ends in `.jsonl`; UTF-8.
        problems: Is given (where, reason) of invalid JSON; it is complete when the rows are used up.

    Raises:
        FileNotFoundError: no such file.
        ExamplesError: it is not UTF-8 text.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExamplesError(path, [("", f"is not UTF-8 text: {error.reason} at byte {error.start}")]) from None
    if path.suffix == JSON_LINES_SUFFIX:
        yield from json_lines(text.split("\n"), problems)
        return
    try:
        rows = parse_json(text)
    except ValueError as error:
        hint = f" (one object a line? then name the file *{JSON_LINES_SUFFIX})" if "Extra data" in str(error) else ""
        problems.append(("", f"{error}{hint}"))
        return
    if not isinstance(rows, list):
        problems.append(("", f"expected a JSON list of examples, found {_kind(rows)}: put the rows inside [ ]"))
        return
    yield from ((f"row {index}", row) for index, row in enumerate(rows))


def json_lines(lines: Iterable[str], problems: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Yield the values of JSON Lines, each with its "line 4" (from 1); empty lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except ValueError as error:
                problems.append((f"line {number}", str(error)))


class RowChecker:
    """
    Checks of one row, and the place of its audio.

    Args:
        file_folder: Where relative audio paths start without `audio_dir`.
        audio_dir: Where they start and what none may leave.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
    """

    def __init__(self, file_folder: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None):
        if audio_dir is not None and not os.path.isdir(audio_dir):
            raise FileNotFoundError(f"audio_dir {os.fspath(audio_dir)!r} is not a folder.")
        self.start = os.path.abspath(file_folder if audio_dir is None else audio_dir)
        self.confined = audio_dir is not None

    def locate(self, audio_path: str) -> str:
        """Return the absolute path of `audio_path`, `.` and `..` resolved."""
        return os.path.normpath(os.path.join(self.start, audio_path))

    def problems(self, row: Any) -> list[str]:
        """Return every reason why `row` cannot be used; empty if it can."""
        if not isinstance(row, dict):
            return [f"expected an object with {', '.join(map(repr, FIELDS))}, found {_kind(row)}"]
        reasons = self.text_problems(row)
        audio_paths = row.get("audio_paths", [])
        if not isinstance(audio_paths, (str, list)):
            return [*reasons, f"'audio_paths' must be a string or a list of strings, found {_kind(audio_paths)}"]
        paths = as_list(audio_paths)
        if isinstance(row.get("text"), str) and (found := row["text"].count(AUDIO_PLACEHOLDER)) != len(paths):
            problem = f"'text' has {found} {AUDIO_PLACEHOLDER} but 'audio_paths' has {len(paths)}; there must be one path for each"
            reasons.append(Reason(problem, "audio_count"))
        return reasons + [reason for each in paths if (reason := self.path_problem(each))]

    def text_problems(self, row: dict[str, Any], fields: tuple[str, ...] = FIELDS) -> list[str]:
        """Return the problems of the names in `row`, of which `fields` are known, and of its text and response."""
        reasons = [f"field {name!r} is missing" for name in REQUIRED_FIELDS if name not in row]
        reasons += [f"unknown field {name!r}; expected only {', '.join(fields)}" for name in row if name not in fields]
        for name in REQUIRED_FIELDS:
            if name in row and not isinstance(row[name], str):
                reasons.append(f"{name!r} must be a string, found {_kind(row[name])}")
            elif name in row and not row[name].strip():
                reasons.append(Reason(f"{name!r} is empty", "empty_text"))
        return reasons

    def path_problem(self, audio_path: Any) -> str | None:
        """Return why `audio_path` leads to no recording; None if it does."""
        if not isinstance(audio_path, str):
            return f"'audio_paths' must hold strings, found {_kind(audio_path)}"
        if not audio_path.strip() or "\0" in audio_path:
            return f"audio path {audio_path!r} is empty or has a NUL character"
        located, problem, fault = self.locate(audio_path), None, "not_a_file"
        if self.confined and not is_inside(located, self.start):
            problem, fault = f"audio path {audio_path!r} leads out of audio_dir {self.start}", "outside_audio_dir"
        elif os.path.isdir(located):
            problem = f"audio path {audio_path!r} is a folder: {located}"
        elif not os.path.exists(located):
            problem, fault = f"audio file {audio_path!r} does not exist: looked at {located}", "missing_file"
        elif not os.path.isfile(located):
            problem = f"audio path {audio_path!r} is a pipe, socket or device: {located}"
        return None if problem is None else Reason(problem, fault, audio_path)


def as_list(value: Any) -> list[Any]:
    """Return one value, a list of them, or None, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _kind(value: Any) -> str:
    """Return JSON's name for a value's type, and the value if it is short."""
    kind = JSON_KINDS.get(type(value))
    if value is None or kind is None:
        return kind or f"a value of type {type(value).__name__}"  # of a table
    shown = json.dumps(value, ensure_ascii=False, default=lambda part: type(part).__name__)
    return f"{kind}: {shown}" if len(shown) <= 60 else kind
