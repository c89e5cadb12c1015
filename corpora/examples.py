"""
The instruction format: a JSON list of prompt, audio and response, read strictly and written whole or not at all.

    [{"text": "Describe the audio: <audio>", "audio_paths": "sample1.wav", "response": "A piano is playing."}]

`audio_paths` is one path or a list, one per `<audio>` in `text`; rows without audio leave it out. Files named `*.jsonl` hold
the same rows, one JSON object a line. Everything wrong with a file is reported at once.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from audiollm.command_line.files import is_inside, write_whole

from .rows import AUDIO_PATHS, RowError, RowReader, kind_of
from .values import counted, parse_json

FIELDS = ("text", AUDIO_PATHS, "response")
JSON_LINES_SUFFIX = ".jsonl"
Read = TypeVar("Read")
MAX_PROBLEMS_SHOWN = 200  # in the message; `ExamplesError.problems` has all


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

    `path` is the file, or the files separated by commas. `problems` has (where, reason) of each: "row 3" (from 0), "line 4"
    of a JSON Lines file (from 1), or "" for the file as a whole.
    """

    def __init__(self, path: str | os.PathLike[str], problems: list[tuple[str, str]]):
        self.path = str(path)
        self.problems = problems
        super().__init__(f"{path}: {counted(len(problems), 'problem')}\n  {problem_lines(problems)}")


def problem_lines(problems: list[tuple[str, str]]) -> str:
    """Return problems one a line, of very many the first."""
    lines = [f"{where}: {reason}" if where else reason for where, reason in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        lines.append(f"... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    return "\n  ".join(lines)


def read_examples(path: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None) -> list[Example]:
    """
    Read an examples file, and check that every audio file is there; none is opened.

    Args:
        path: A JSON list, or JSON Lines if its name ends in `.jsonl`; UTF-8.
        audio_dir: Folder that relative audio paths start from and that none may leave. Without it they start from the
            file's own folder, and absolute paths may lead anywhere.

    Raises:
        FileNotFoundError: no such file, or `audio_dir` is not a folder.
        ExamplesError: broken JSON, not a list, or bad rows; all rows are checked first and all problems listed.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        raise ExamplesError(path, [("", "JSON or JSON Lines is read here; `audiollm prepare` writes both.")])
    reader = RowReader(path.parent, audio_dir)

    def read(row: Any, index: int) -> Example:
        paths = reader.read_instruction(row, FIELDS)
        return Example(row["text"], tuple(paths), row["response"], index)

    return read_all(path, json_rows(path), read)


def read_all(
    name: str | os.PathLike[str], rows: Iterable[tuple[str, Any, str | None]], read: Callable[[Any, int], Read]
) -> list[Read]:
    """Return what `read` makes of each row and its index; raise ExamplesError with the reasons of all that it refuses."""
    found: list[Read] = []
    problems: list[tuple[str, str]] = []
    for index, (where, row, problem) in enumerate(rows):
        try:
            if problem is not None:
                raise RowError([problem])
            found.append(read(row, index))
        except RowError as error:
            problems += [(where, reason) for reason in error.reasons]
    if problems:
        raise ExamplesError(name, problems)
    return found


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """
    Write examples so that `read_examples(path)` gives them back; the file appears whole or not at all.

    A path `*.jsonl` has one row a line, any other a JSON list. Audio inside the file's folder is written relative to it, so
    that the folder can be moved; other audio keeps its absolute path.
    """
    path, rows = Path(path), []
    start = os.path.abspath(path.parent)
    for example in examples:
        located = [os.path.abspath(each) for each in example.audio_paths]
        paths = [Path(os.path.relpath(each, start)).as_posix() if is_inside(each, start) else each for each in located]
        audio = {AUDIO_PATHS: paths[0] if len(paths) == 1 else paths} if paths else {}
        rows.append({"text": example.text, **audio, "response": example.response})
    if path.suffix == JSON_LINES_SUFFIX:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text)


def json_rows(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    """
    Yield the rows of a JSON list or, if the name ends in `.jsonl`, JSON Lines: the place, the value, and what is wrong.

    The place is "row 3" or "line 4", or "" for the file as a whole. Lines are read one by one.
    """
    is_lines = path.suffix == JSON_LINES_SUFFIX
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        try:
            if is_lines:
                yield from ((f"line {number}", *_parsed(line)) for number, line in enumerate(file, 1) if line.strip())
                return
            text = file.read()
        except UnicodeDecodeError as error:
            at = "" if is_lines else f" at byte {error.start}"  # of lines it would be that in a block
            yield "", None, f"is not UTF-8 text: {error.reason}{at}"
            return
    rows, problem = _parsed(text)
    if problem is not None:
        hint = f" (one object a line? then name the file *{JSON_LINES_SUFFIX})" if "Extra data" in problem else ""
        yield "", None, problem + hint
    elif not isinstance(rows, list):
        yield "", None, f"expected a JSON list of examples, found {kind_of(rows)}: put the rows inside [ ]"
    else:
        yield from ((f"row {index}", row, None) for index, row in enumerate(rows))


def _parsed(text: str) -> tuple[Any, str | None]:
    try:
        return parse_json(text), None
    except ValueError as error:
        return None, str(error)
