"""All rows of a data file as `audiollm validate` looks at them, those that training would refuse included."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from audiollm.command_line.files import is_inside
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .examples import json_rows
from .faults import is_transcribing, text_faults
from .rows import ASSISTANT, AUDIO_COLUMN, AUDIO_PATHS, MESSAGES, TABLE_FIELDS, Reason, RowError, RowReader, as_list
from .sources import Source, load_table

#: Columns of a table of clips: word error in percent, and a transcript to compare with.
WORD_ERROR, HYPOTHESIS = "wer", "pred_text"


@dataclass
class CheckedRow:
    """One row, or what stands in its place."""

    index: int | None  # place in the file, from 0; None for the file as a whole
    where: str  # its name in errors, such as "row 3" or "line 4"
    #: Name, reason and audio path of each fault that is found without decoding.
    faults: list[tuple[str, str, str | None]] = field(default_factory=list)
    recordings: list[Any] = field(default_factory=list)  # of an unusable row those that can be found
    is_usable: bool = False  # training would take it, as far as is known without decoding
    question: str = ""  # all turns together
    response: str = ""
    is_transcript: bool = False  # the response is the transcript of the one recording
    wer: float | None = None  # in percent, where a table has it
    hypothesis: str | None = None  # what a recogniser heard, where a table has it


class CheckedRows:
    """All rows of one source, in order; arguments are those of [`validate`]. All but JSON lists are read row by row."""

    def __init__(self, source: Source, audio_dir: str | None, response_is_transcript: bool = False):
        self.source = source
        self.reader = RowReader(source.folder, audio_dir)
        self.real_folder = None if audio_dir is None else os.path.realpath(audio_dir)
        self.response_is_transcript = response_is_transcript

    def __iter__(self) -> Iterator[CheckedRow]:
        number = -1
        for number, (where, row, problem) in enumerate(self._rows()):
            if problem is None:
                yield self._check(row, number, where)
            else:
                yield CheckedRow(number if where else None, where, [("unreadable_data", problem, None)])
        if number < 0:
            yield CheckedRow(None, "", [("unreadable_data", "holds no examples", None)])

    def _rows(self) -> Iterator[tuple[str, Any, str | None]]:
        """Yield where each row stands, its value, and why there is none; a table's audio as it is stored."""
        if self.source.kind == "json":
            yield from json_rows(Path(self.source.path))
            return
        try:
            for number, row in enumerate(load_table(self.source, streaming=True).decode(False)):
                if not number and not set(row) & set(TABLE_FIELDS):
                    yield "", None, f"has the columns {', '.join(row)}; expected some of {', '.join(TABLE_FIELDS)}"
                    return
                given = {name: value for name, value in row.items() if value is not None}
                if "response" not in row and MESSAGES not in row and AUDIO_COLUMN in row:  # a table of clips
                    asked = f"Transcribe the audio: {AUDIO_PLACEHOLDER}"
                    given |= {"text": asked, "response": given.get("text", "")}
                yield f"row {number}", given, None
        except (pa.ArrowException, OSError, KeyError, ValueError, datasets.exceptions.DatasetsError) as error:
            yield "", None, f"cannot be read: {' '.join(str(error).split())}"

    def _check(self, row: Any, index: int, where: str) -> CheckedRow:
        checked = CheckedRow(index, where)
        if self.source.kind != "json":
            wer, heard = row.get(WORD_ERROR), row.get(HYPOTHESIS)
            is_number = isinstance(wer, (int, float)) and not isinstance(wer, bool) and math.isfinite(wer)
            checked.wer = float(wer) if is_number else None
            checked.hypothesis = heard if isinstance(heard, str) else None
            row = {name: value for name, value in row.items() if name in TABLE_FIELDS}
        try:
            conversation = self.reader.read(row, where)
        except RowError as error:
            reasons = [reason if isinstance(reason, Reason) else Reason(reason) for reason in error.reasons]
            checked.faults += [(reason.fault, str(reason), reason.audio) for reason in reasons]
            found = self._usable_recordings(row)
        else:
            found = list(conversation.recordings)
            checked.is_usable = not any(map(self._is_linked_outside, found))
            self._read_texts(conversation.messages, checked, len(found))
        outside = [path for path in found if self._is_linked_outside(path)]
        checked.faults += [("symlink_outside", f"{path!r} is {os.path.realpath(path)!r}", path) for path in outside]
        checked.recordings = [path for path in found if path not in outside]
        return checked

    def _read_texts(self, messages: list[dict[str, Any]], checked: CheckedRow, recordings: int) -> None:
        asked = [each["content"] for each in messages if each["role"] != ASSISTANT]
        answered = [each["content"] for each in messages if each["role"] == ASSISTANT]
        checked.question, checked.response = "\n".join(asked), "\n".join(answered)
        asks_for_it = self.response_is_transcript or is_transcribing(asked[-1] if asked else "")
        checked.is_transcript = checked.is_usable and recordings == len(answered) == 1 and asks_for_it
        found = text_faults(checked.question, checked.response, recordings)
        checked.faults += [(fault, reason, None) for fault, reason in found]

    def _usable_recordings(self, row: Any) -> list[Any]:
        """Return the recordings of an unusable row that can be looked at nevertheless."""
        usable: list[Any] = []
        for given in _named_recordings(row):
            try:
                alone = {"text": AUDIO_PLACEHOLDER, AUDIO_COLUMN: given, "response": "one"}
                usable += self.reader.read(alone, "").recordings
            except RowError:
                continue  # among the row's own reasons
        return usable

    def _is_linked_outside(self, recording: Any) -> bool:
        if self.real_folder is None or not isinstance(recording, str) or "://" in recording:
            return False
        return not is_inside(os.path.realpath(recording), self.real_folder)


def _named_recordings(row: Any) -> list[Any]:
    if not isinstance(row, dict):
        return []
    named = [row.get(AUDIO_PATHS), row.get(AUDIO_COLUMN)]
    for message in row[MESSAGES] if isinstance(row.get(MESSAGES), list) else []:
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type") == "audio":
                named += [part.get("path"), part.get("audio"), part.get("url")]
    return [one for value in named for one in as_list(value) if isinstance(one, (str, dict))]
