"""
One row of training data as a conversation: the instruction format, or chat messages.

    {"text": "Describe the audio: <audio>", "audio_paths": "a.wav", "response": "A piano."}
    {"messages": [{"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A piano."}]}

Both take recordings from a `datasets.Audio` column named `audio` as well, one for each `<audio>`.
"""

import os
from dataclasses import dataclass
from typing import Any

from audiollm.processing.audio import REMOTE_SCHEMES, scheme_of
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, ConversationError, flatten_conversation

from .examples import Reason, RowChecker, as_list

MESSAGES, AUDIO_COLUMN, AUDIO_PATHS = "messages", "audio", "audio_paths"
#: Fields of a row of chat messages, and of the instruction format, with `audio` beside `audio_paths`.
MESSAGES_FIELDS = (MESSAGES, AUDIO_PATHS, AUDIO_COLUMN)
INSTRUCTION_FIELDS = ("text", AUDIO_PATHS, AUDIO_COLUMN, "response")
#: Columns of a table that are read.
TABLE_FIELDS = tuple(dict.fromkeys((*INSTRUCTION_FIELDS, *MESSAGES_FIELDS)))
ASSISTANT = "assistant"
URL_MARK = "://"


@dataclass(frozen=True)
class Conversation:
    """
    One conversation to learn from.

    Attributes:
        messages: With string contents, in which `<audio>` stands for a recording.
        recordings: Of each `<audio>` in reading order: an absolute path, a URL, or a dict with `bytes`.
        where: Its name in errors, such as "row 3" or "line 4".
    """

    messages: list[dict[str, Any]]
    recordings: tuple[Any, ...]
    where: str


class RowError(ValueError):
    """A row that cannot be used, with all `reasons`."""

    def __init__(self, reasons: list[str]):
        self.reasons = reasons
        super().__init__("; ".join(reasons))


class RowReader:
    """
    Reader of rows as conversations.

    Args:
        folder: Where relative audio paths start without `audio_dir`.
        audio_dir: Where they start and what none may leave; URLs may still be given.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None):
        self.checker = RowChecker(folder, audio_dir)

    def read(self, row: Any, where: str) -> Conversation:
        """
        Return the conversation of a row.

        Raises:
            RowError: it is malformed, or a file that it names does not exist.
        """
        if isinstance(row, dict) and MESSAGES in row:
            return self._read_messages(row, where)
        if isinstance(row, dict) and (AUDIO_COLUMN in row or _has_urls(row)):
            reasons = self.checker.text_problems(row, INSTRUCTION_FIELDS)
            recordings = self._recordings(row, reasons, "'text'", [row.get("text")])
        elif reasons := self.checker.problems(row):
            recordings = []
        else:
            recordings = [self.checker.locate(path) for path in as_list(row.get(AUDIO_PATHS))]
        if reasons:
            raise RowError(reasons)
        messages = [{"role": "user", "content": row["text"]}, {"role": ASSISTANT, "content": row["response"]}]
        return Conversation(messages, tuple(recordings), where)

    def _read_messages(self, row: dict[str, Any], where: str) -> Conversation:
        reasons = [
            f"unknown field {name!r}; expected only {', '.join(MESSAGES_FIELDS)} beside each other"
            for name, value in row.items()
            if name not in MESSAGES_FIELDS and value is not None
        ]
        try:
            if not isinstance(row[MESSAGES], list):
                raise ConversationError(f"'messages' is {row[MESSAGES]!r}; expected a list of messages.")
            messages, typed = flatten_conversation([_without_nulls(message) for message in row[MESSAGES]])
        except ConversationError as error:
            raise RowError([*reasons, str(error)]) from None
        reasons += _message_problems(messages)
        if typed and (row.get(AUDIO_COLUMN) is not None or row.get(AUDIO_PATHS)):
            raise RowError(
                [*reasons, f"recordings are given both in the messages and in {AUDIO_PATHS!r} or {AUDIO_COLUMN!r}"]
            )
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
        recordings, before = [], len(reasons)
        for one in as_list(paths if audio is None else audio):
            try:
                recordings.append(self._locate(one))
            except RowError as error:
                reasons += error.reasons
        said = [text for text in texts if isinstance(text, str)]
        found = sum(text.count(AUDIO_PLACEHOLDER) for text in said)
        if said and len(reasons) == before and found != len(recordings):
            reason = (
                f"{name} has {found} {AUDIO_PLACEHOLDER} for {len(recordings)} recordings; there must be one for each"
            )
            reasons.append(Reason(reason, "audio_count"))
        return recordings

    def _locate(self, recording: Any) -> Any:
        if isinstance(recording, dict):
            encoded = recording.get("bytes")
            if encoded is not None and not isinstance(encoded, (bytes, bytearray)):
                kind = type(encoded).__name__
                raise RowError([f"'bytes' of audio is a {kind}; expected bytes, which JSON cannot hold"])
            if encoded is not None:
                return {"bytes": encoded, "path": recording.get("path")}
            if not recording.get("path"):
                raise RowError([f"audio has neither 'bytes' nor 'path', found a dict with {sorted(recording)}"])
            return self._locate(recording["path"])
        if isinstance(recording, (list, tuple)):
            raise RowError(["audio is a list; expected a path, a URL, or a dict with 'bytes' or 'path'"])
        if isinstance(recording, str) and URL_MARK in recording:
            scheme = scheme_of(recording)
            if scheme == "file":
                raise RowError([f"audio {recording!r}: give a path instead of a file:// URL"])
            if scheme not in REMOTE_SCHEMES:
                raise RowError([f"audio {recording!r}: expected a path or a URL of {', '.join(REMOTE_SCHEMES)}"])
            return recording
        if problem := self.checker.path_problem(recording):
            raise RowError([problem])
        return self.checker.locate(recording)


def _message_problems(messages: list[dict[str, Any]]) -> list[str]:
    """Return why nothing can be learned from a conversation."""
    answers = [message["content"] for message in messages if message["role"] == ASSISTANT]
    if not answers:
        return [f"'messages' has no message of role {ASSISTANT!r}, so that there is nothing to learn"]
    problems: list[str] = []
    if not all(answer.strip() for answer in answers):
        problems.append(Reason(f"an {ASSISTANT!r} message is empty", "empty_text"))
    if any(AUDIO_PLACEHOLDER in answer for answer in answers):
        reason = f"an {ASSISTANT!r} message holds a recording; only what it says can be learned"
        problems.append(Reason(reason, "audio_count"))
    return problems


def _without_nulls(message: Any) -> Any:
    """Return a message as it was before a table gave all its parts the same fields."""
    if not isinstance(message, dict):
        return message
    message = {name: value for name, value in message.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = [
            {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else part
            for part in message["content"]
        ]
    return message


def _has_urls(row: dict[str, Any]) -> bool:
    return any(isinstance(path, str) and URL_MARK in path for path in as_list(row.get(AUDIO_PATHS)))
