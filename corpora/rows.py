"""
One row of training data as a conversation: the instruction format, or chat messages.

    {"text": "Describe the audio: <audio>", "audio_paths": "a.wav", "response": "A piano."}
    {"messages": [{"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A piano."}]}

Both take recordings from a `datasets.Audio` column named `audio` as well, one for each `<audio>`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiollm.command_line.files import is_inside
from audiollm.processing.audio import REMOTE_SCHEMES, scheme_of
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, ConversationError, flatten_conversation

MESSAGES, AUDIO_COLUMN, AUDIO_PATHS = "messages", "audio", "audio_paths"
#: Fields of a row of chat messages, and of the instruction format, with `audio` beside `audio_paths`.
MESSAGES_FIELDS = (MESSAGES, AUDIO_PATHS, AUDIO_COLUMN)
INSTRUCTION_FIELDS = ("text", AUDIO_PATHS, AUDIO_COLUMN, "response")
REQUIRED_FIELDS = ("text", "response")
#: Columns of a table that are read.
TABLE_FIELDS = tuple(dict.fromkeys((*INSTRUCTION_FIELDS, *MESSAGES_FIELDS)))
ASSISTANT = "assistant"
URL_MARK = "://"
#: JSON's names of types.
JSON_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
JSON_KINDS |= {int: "a number", float: "a number", type(None): "null"}
MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Conversation:
    """One conversation to learn from."""

    messages: list[dict[str, Any]]  # with string contents, in which `<audio>` stands for a recording
    recordings: tuple[Any, ...]  # of each `<audio>` in reading order: an absolute path, a URL, or a dict with `bytes`
    where: str  # its name in errors, such as "row 3" or "line 4"


class Reason(str):
    """A reason why a row cannot be used, with its kind of fault (a name of `FAULTS`) and the audio path it is about."""

    fault: str
    audio: str | None

    def __new__(cls, text: str, fault: str = "malformed_row", audio: str | None = None):
        reason = super().__new__(cls, text)
        reason.fault, reason.audio = fault, audio
        return reason


class RowError(ValueError):
    """A row that cannot be used, with all `reasons`."""

    def __init__(self, reasons: list[str]):
        self.reasons = reasons
        super().__init__("; ".join(reasons))


class RowReader:
    """
    Reader of rows as conversations.

    Relative audio paths start from `folder`, or from `audio_dir`, which none may leave; URLs may still be given.
    FileNotFoundError is raised if `audio_dir` is not a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None):
        if audio_dir is not None and not os.path.isdir(audio_dir):
            raise FileNotFoundError(f"audio_dir {os.fspath(audio_dir)!r} is not a folder.")
        self.start = os.path.abspath(folder if audio_dir is None else audio_dir)
        self.confined = audio_dir is not None

    def read(self, row: Any, where: str) -> Conversation:
        """Return the conversation of a row; raise RowError if it is malformed, or a file that it names does not exist."""
        if isinstance(row, dict) and MESSAGES in row:
            return self._read_messages(row, where)
        recordings = self.read_instruction(row, INSTRUCTION_FIELDS)
        messages = [{"role": "user", "content": row["text"]}, {"role": ASSISTANT, "content": row["response"]}]
        return Conversation(messages, tuple(recordings), where)

    def read_instruction(
        self, row: Any, fields: Sequence[str], required: Sequence[str] = REQUIRED_FIELDS
    ) -> list[Any]:
        """Return the recordings of a row that may have `fields`, with texts in the required ones; raises as [`read`]."""
        if not isinstance(row, dict):
            raise RowError([f"expected an object with {', '.join(map(repr, fields))}, found {kind_of(row)}"])
        reasons: list[str] = [f"field {name!r} is missing" for name in required if name not in row]
        reasons += [f"unknown field {name!r}; expected only {', '.join(fields)}" for name in row if name not in fields]
        for name in required:
            if name in row and not isinstance(row[name], str):
                reasons.append(f"{name!r} must be a string, found {kind_of(row[name])}")
            elif name in row and not row[name].strip():
                reasons.append(Reason(f"{name!r} is empty", "empty_text"))
        recordings = self._recordings(row, reasons, "'text'", [row.get("text")])
        if reasons:
            raise RowError(reasons)
        return recordings

    def locate(self, audio_path: str) -> str:
        """Return the absolute path of `audio_path`, `.` and `..` resolved."""
        return os.path.normpath(os.path.join(self.start, audio_path))

    def path_problem(self, audio_path: Any) -> Reason | None:
        """Return why `audio_path` leads to no recording; None if it does."""
        if not isinstance(audio_path, str):
            return Reason(f"{AUDIO_PATHS!r} must hold strings, found {kind_of(audio_path)}")
        if not audio_path.strip() or "\0" in audio_path:
            return Reason(f"audio path {audio_path!r} is empty or has a NUL character")
        located = self.locate(audio_path)
        if self.confined and not is_inside(located, self.start):
            problem = f"audio path {audio_path!r} leads out of audio_dir {self.start}"
            return Reason(problem, "outside_audio_dir", audio_path)
        if not os.path.exists(located):
            problem = f"audio file {audio_path!r} does not exist: looked at {located}"
            return Reason(problem, "missing_file", audio_path)
        if not os.path.isfile(located):
            kind = "a folder" if os.path.isdir(located) else "a pipe, socket or device"
            return Reason(f"audio path {audio_path!r} is {kind}: {located}", "not_a_file", audio_path)
        return None

    def _read_messages(self, row: dict[str, Any], where: str) -> Conversation:
        reasons: list[str] = [
            f"unknown field {name!r}; expected only {', '.join(MESSAGES_FIELDS)} beside each other"
            for name, value in row.items()
            if name not in MESSAGES_FIELDS and value is not None
        ]
        try:
            if not isinstance(row[MESSAGES], list):
                raise ConversationError(f"'messages' is {row[MESSAGES]!r}; expected a list of messages.")
            messages, typed = flatten_conversation(_without_nulls(row[MESSAGES]))
        except ConversationError as error:
            raise RowError([*reasons, str(error)]) from None
        answers = [message["content"] for message in messages if message["role"] == ASSISTANT]
        if not answers:
            reasons.append(f"'messages' has no message of role {ASSISTANT!r}, so that there is nothing to learn")
        if not all(answer.strip() for answer in answers):
            reasons.append(Reason(f"an {ASSISTANT!r} message is empty", "empty_text"))
        if any(AUDIO_PLACEHOLDER in answer for answer in answers):
            reason = f"an {ASSISTANT!r} message holds a recording; only what it says can be learned"
            reasons.append(Reason(reason, "audio_count"))
        if typed and (row.get(AUDIO_COLUMN) is not None or row.get(AUDIO_PATHS)):
            problem = f"recordings are given both in the messages and in {AUDIO_PATHS!r} or {AUDIO_COLUMN!r}"
            raise RowError([*reasons, problem])
        beside = {AUDIO_COLUMN: typed} if typed else row
        recordings = self._recordings(beside, reasons, "'messages'", [message["content"] for message in messages])
        if reasons:
            raise RowError(reasons)
        return Conversation(messages, tuple(recordings), where)

    def _recordings(self, row: dict[str, Any], reasons: list[str], name: str, texts: list[Any]) -> list[Any]:
        """Return the recordings of a row as [`Conversation`] holds them; add what is wrong with them to `reasons`."""
        audio, paths = row.get(AUDIO_COLUMN), row.get(AUDIO_PATHS)
        if audio is not None and paths:
            reasons.append(f"recordings are given both in {AUDIO_PATHS!r} and in {AUDIO_COLUMN!r}; leave one out")
            return []
        if audio is None and not isinstance(paths, (str, list, type(None))):
            reasons.append(f"{AUDIO_PATHS!r} must be a string or a list of strings, found {kind_of(paths)}")
            return []
        given = as_list(paths if audio is None else audio)
        said = [text for text in texts if isinstance(text, str)]
        found = sum(text.count(AUDIO_PLACEHOLDER) for text in said)
        if said and found != len(given):
            problem = f"{name} has {found} {AUDIO_PLACEHOLDER} for {len(given)} recordings; there must be one for each"
            reasons.append(Reason(problem, "audio_count"))
        recordings = []
        for one in given:
            try:
                recordings.append(self._located(one, may_be_stored=audio is not None))
            except RowError as error:
                reasons += error.reasons
        return recordings

    def _located(self, recording: Any, may_be_stored: bool) -> Any:
        if isinstance(recording, dict) and may_be_stored:
            if isinstance(recording.get("bytes"), (bytes, bytearray)):
                return {"bytes": recording["bytes"], "path": recording.get("path")}
            if not recording.get("path"):
                raise RowError([f"audio has neither 'bytes' nor 'path', found a dict with {sorted(recording)}"])
            recording = recording["path"]
        if isinstance(recording, str) and URL_MARK in recording:
            if scheme_of(recording) not in REMOTE_SCHEMES:
                raise RowError([f"audio {recording!r}: expected a path or a URL of {', '.join(REMOTE_SCHEMES)}"])
            return recording
        if problem := self.path_problem(recording):
            raise RowError([problem])
        return self.locate(recording)


def as_list(value: Any) -> list[Any]:
    """Return one value, a list of them, or None, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def kind_of(value: Any) -> str:
    """Return JSON's name for a value's type, and the value if it is short."""
    kind = JSON_KINDS.get(type(value))
    if value is None or kind is None:
        return kind or f"a value of type {type(value).__name__}"  # of a table
    shown = json.dumps(value, ensure_ascii=False, default=lambda part: type(part).__name__)
    return f"{kind}: {shown}" if len(shown) <= MAX_SHOWN_CHARACTERS else kind


def _without_nulls(value: Any) -> Any:
    """Return a message as it was before a table gave all its parts the same fields."""
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return value
