"""
The rows of data files as `audiollm validate` looks at them: all of them, also those that cannot be used.

A row that training would refuse comes with every reason why, and with whatever recordings of it can be found, so that
those are looked at as well. All but JSON lists are read row by row.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .examples import JSON_LINES_SUFFIX, ExamplesError, Reason, json_lines, json_rows
from .faults import is_transcribing, text_faults
from .rows import ASSISTANT, AUDIO_COLUMN, AUDIO_PATHS, MESSAGES, TABLE_FIELDS, Conversation, RowError, RowReader
from .sources import Source, load_table

#: Rows of a table in memory at once; each may hold a recording.
TABLE_BATCH_ROWS = 16
UNREADABLE = "unreadable_data"
#: Columns of a table of clips that say how wrong its transcripts are: in percent, and what to compare with.
WORD_ERROR, HYPOTHESIS = "wer", "pred_text"


@dataclass
class CheckedRow:
    """
    One row, or what stands in its place.

    Attributes:
        index: place in the file, from 0; None for the file as a whole.
        where: what its file's errors call it, such as "row 3" or "line 4".
        faults: what is wrong with it, as far as can be said without decoding, and the path that it is about.
        recordings: what [`audio_facts.measure`] takes; the usable ones of a row that is not.
        is_usable: whether training would take it, as far as can be said without decoding.
        question, response: what is asked and answered, all turns together.
        is_transcript: whether the response says what is said in the one recording.
        wer: word error of the response in percent, where a table states it.
        hypothesis: what a recogniser heard, where a table states it.
    """

    index: int | None
    where: str
    faults: list[tuple[str, str, str | None]] = field(default_factory=list)
    recordings: list[Any] = field(default_factory=list)
    is_usable: bool = False
    question: str = ""
    response: str = ""
    is_transcript: bool = False
    wer: float | None = None
    hypothesis: str | None = None


class CheckedRows:
    """
    All rows of one source.

    Args:
        source: where to read.
        audio_dir: as in `read_examples`.
        response_is_transcript: take every response about one recording for its transcript, whatever the prompt.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
    """

    def __init__(self, source: Source, audio_dir: str | None, response_is_transcript: bool = False):
        self.source = source
        self.reader = RowReader(source.folder, audio_dir)
        self.real_folder = os.path.realpath(audio_dir) if audio_dir is not None else None
        self.response_is_transcript = response_is_transcript

    def count(self) -> int | None:
        """How many rows there are, where that takes no reading of them all; lines may be empty."""
        if self.source.kind == "parquet":
            try:
                return pq.read_metadata(self.source.path).num_rows
            except (pa.ArrowException, OSError):
                return None
        if self.source.path.endswith(JSON_LINES_SUFFIX):
            with open(self.source.path, "rb") as file:
                return sum(1 for _ in file)
        return None

    def __iter__(self) -> Iterator[CheckedRow]:
        number = -1
        try:
            for number, (where, row, problem) in enumerate(self._raw_rows()):
                if problem is None:
                    yield self._check(row, number, where)
                else:
                    index = number if where else None
                    yield CheckedRow(index, where, [(UNREADABLE, problem, None)])
        except ExamplesError as error:
            for where, reason in error.problems:
                yield CheckedRow(None, where, [(UNREADABLE, reason, None)])
            return
        if number < 0:
            yield CheckedRow(None, "", [(UNREADABLE, "holds no examples", None)])

    # ------------------------------------------------------------------------------------------------- kinds of files

    def _raw_rows(self) -> Iterator[tuple[str, Any, str | None]]:
        """Where each row stands, its value, and why there is none."""
        if self.source.kind != "json":
            yield from self._table_rows()
            return
        problems: list[tuple[str, str]] = []
        if self.source.path.endswith(JSON_LINES_SUFFIX):
            yield from self._lines(problems)
        else:
            for where, row in json_rows(Path(self.source.path), problems):
                yield where, row, None
        yield from ((where, None, reason) for where, reason in problems)

    def _lines(self, problems: list[tuple[str, str]]) -> Iterator[tuple[str, Any, str | None]]:
        try:
            with open(self.source.path, encoding="utf-8-sig", newline="\n") as file:
                for where, row in json_lines(file, problems):
                    yield from ((bad, None, reason) for bad, reason in problems)
                    problems.clear()
                    yield where, row, None
        except UnicodeDecodeError as error:
            problems.append(("", f"is not UTF-8 text: {error.reason}"))

    def _table_rows(self) -> Iterator[tuple[str, Any, str | None]]:
        for number, row in enumerate(self._table()):
            given = {name: value for name, value in row.items() if value is not None}
            is_clip = "response" not in row and MESSAGES not in row and AUDIO_COLUMN in row
            yield f"row {number}", _as_example(given) if is_clip else given, None

    def _table(self) -> Iterator[dict[str, Any]]:
        """Rows of a table, audio as it is stored."""
        try:
            if self.source.kind == "parquet":
                with pq.ParquetFile(self.source.path) as file:
                    self._expect_columns(file.schema_arrow.names)
                    for batch in file.iter_batches(batch_size=TABLE_BATCH_ROWS):
                        yield from batch.to_pylist()
                return
            streaming = self.source.kind == "hub"
            dataset = load_table(self.source, streaming)
            self._expect_columns(dataset.column_names or TABLE_FIELDS)
            if streaming:
                yield from dataset.decode(False)
                return
            dataset = dataset.with_format("arrow")
            for start in range(0, len(dataset), TABLE_BATCH_ROWS):
                yield from dataset[start : start + TABLE_BATCH_ROWS].to_pylist()
        except (pa.ArrowException, OSError, KeyError, datasets.exceptions.DatasetsError) as error:
            reason = f"cannot be read: {' '.join(str(error).split())}"
            raise ExamplesError(self.source.name, [("", reason)]) from error

    def _expect_columns(self, columns: Sequence[str]) -> None:
        if not set(columns) & set(TABLE_FIELDS):
            reason = f"has the columns {', '.join(columns)}; expected some of {', '.join(TABLE_FIELDS)}"
            raise ExamplesError(self.source.name, [("", reason)])

    # ------------------------------------------------------------------------------------------------------- one row

    def _check(self, row: Any, index: int, where: str) -> CheckedRow:
        checked = CheckedRow(index, where)
        if self.source.kind != "json":
            checked.wer, heard = _percent(row.get(WORD_ERROR)), row.get(HYPOTHESIS)
            checked.hypothesis = heard if isinstance(heard, str) else None
            row = {name: value for name, value in row.items() if name in TABLE_FIELDS}
        try:
            conversation = self.reader.read(row, where)
        except RowError as error:
            checked.faults += [_as_fault(reason) for reason in error.reasons]
            checked.recordings = self._usable_recordings(row)
        else:
            checked.recordings = list(conversation.recordings)
            checked.is_usable = not any(self._is_linked_outside(path) for path in checked.recordings)
            self._read_texts(conversation, checked)
        outside = [path for path in checked.recordings if self._is_linked_outside(path)]
        checked.faults += [("symlink_outside", f"{path!r} is {os.path.realpath(path)!r}", path) for path in outside]
        checked.recordings = [path for path in checked.recordings if path not in outside]
        return checked

    def _read_texts(self, conversation: Conversation, checked: CheckedRow) -> None:
        asked = [each["content"] for each in conversation.messages if each["role"] != ASSISTANT]
        answered = [each["content"] for each in conversation.messages if each["role"] == ASSISTANT]
        checked.question, checked.response = "\n".join(asked), "\n".join(answered)
        checked.is_transcript = (
            checked.is_usable
            and len(conversation.recordings) == 1
            and len(answered) == 1
            and (self.response_is_transcript or is_transcribing(asked[-1] if asked else ""))
        )
        found = text_faults(checked.question, checked.response, len(conversation.recordings))
        checked.faults += [(fault, reason, None) for fault, reason in found]

    def _usable_recordings(self, row: Any) -> list[Any]:
        """Those recordings of a row that cannot be used which can be looked at nevertheless."""
        usable: list[Any] = []
        for given in _named_recordings(row):
            alone = {"text": AUDIO_PLACEHOLDER, AUDIO_COLUMN: given, "response": "one"}
            try:
                usable += self.reader.read(alone, "").recordings
            except RowError:
                continue  # among the row's own reasons
        return usable

    def _is_linked_outside(self, recording: Any) -> bool:
        if self.real_folder is None or not isinstance(recording, str) or "://" in recording:
            return False
        return not os.path.realpath(recording).startswith(os.path.join(self.real_folder, ""))


def _as_fault(reason: str) -> tuple[str, str, str | None]:
    reason = reason if isinstance(reason, Reason) else Reason(reason)
    return reason.fault, str(reason), reason.audio


def _as_example(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table of clips, which has a transcript and no prompt, as one that asks for it."""
    wording = f"Transcribe the audio: {AUDIO_PLACEHOLDER}"
    return {**row, "text": wording, "response": row.get("text", "")}


def _named_recordings(row: Any) -> list[Any]:
    if not isinstance(row, dict):
        return []
    named = [row.get(AUDIO_PATHS), row.get(AUDIO_COLUMN)]
    for message in row[MESSAGES] if isinstance(row.get(MESSAGES), list) else []:
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type") == "audio":
                named += [part.get("path"), part.get("audio"), part.get("url")]
    flat = [one for value in named for one in (value if isinstance(value, (list, tuple)) else [value])]
    return [one for one in flat if isinstance(one, (str, dict))]


def _percent(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


__all__ = ["CheckedRow", "CheckedRows"]
