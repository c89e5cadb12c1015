"""
One row of training data, whatever its form, as a conversation: the instruction format, or chat messages.

    {"text": "Describe the audio: <audio>", "audio_paths": "a.wav", "response": "A piano."}
    {"messages": [{"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A piano."}]}

Both take recordings from a `datasets.Audio` column named `audio` as well, one for each `<audio>`.
"""

import os
from dataclasses import dataclass
from typing import Any

from audiollm.processing.audio_bytes import REMOTE_SCHEMES, scheme_of
from audiollm.processing.conversations import AUDIO_PLACEHOLDER, ConversationError, flatten_conversation

from .examples import Reason, RowChecker

MESSAGES, AUDIO_COLUMN, AUDIO_PATHS = "messages", "audio", "audio_paths"
#: Fields of a row of chat messages; those of the instruction format, with `audio` beside `audio_paths`.
MESSAGES_FIELDS = (MESSAGES, AUDIO_PATHS, AUDIO_COLUMN)
INSTRUCTION_FIELDS = ("text", AUDIO_PATHS, AUDIO_COLUMN, "response")
#: What a table may hold; its other columns are not read.
TABLE_FIELDS = tuple(dict.fromkeys((*INSTRUCTION_FIELDS, *MESSAGES_FIELDS)))
ASSISTANT = "assistant"
URL_MARK = "://"


@dataclass(frozen=True)
class Conversation:
    """
    One conversation to learn from.

    Attributes:
        messages: with string contents, in which `<audio>` stands for a recording.
        recordings: of each `<audio>` in reading order: an absolute path, a URL, or a dict with `bytes`.
        where: what errors call it, such as "row 3" or "line 4".
    """

    messages: list[dict[str, Any]]
    recordings: tuple[Any, ...]
    where: str


class RowError(ValueError):
    """A row that cannot be used. `reasons` has every one of the reasons that were found."""

    def __init__(self, reasons: list[str]):
        self.reasons = reasons
        super().__init__("; ".join(reasons))


class RowReader:
    """
    Turns rows into conversations.

    Args:
        folder: where relative audio paths start when there is no `audio_dir`.
        audio_dir: where they start and what none may leave; URLs may still be given.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], audio_dir: str | os.PathLike[str] | None = None):
        self.checker = RowChecker(folder, audio_dir)

    def read(self, row: Any, where: str) -> Conversation:
        """
        The conversation of a row.

        Raises:
            RowError: it is malformed, or a file that it names is not there.
        """
        if isinstance(row, dict) and MESSAGES in row:
            return self._read_messages(row, where)
        if not isinstance(row, dict) or not (AUDIO_COLUMN in row or _has_urls(row)):
            if reasons := self.checker.problems(row):
                raise RowError(reasons)
            recordings = [self.checker.locate(path) for path in _as_list(row.get(AUDIO_PATHS))]
        else:
            recordings = self._instruction_recordings(row)
        messages = [{"role": "user", "content": row["text"]}, {"role": ASSISTANT, "content": row["response"]}]
        return Conversation(messages, tuple(recordings), where)

    def _instruction_recordings(self, row: dict[str, Any]) -> list[Any]:
        """Recordings of an instruction row that are not all files named in `audio_paths`."""
        reasons = self.checker.text_problems(row, INSTRUCTION_FIELDS)
        recordings: list[Any] = []
        try:
            recordings = self._column_recordings(row)
        except RowError as error:
            reasons += error.reasons
        else:
            found = row["text"].count(AUDIO_PLACEHOLDER) if isinstance(row.get("text"), str) else len(recordings)
            if found != len(recordings):
                reasons.append(_count_problem("'text'", found, len(recordings)))
        if reasons:
            raise RowError(reasons)
        return recordings

    def _read_messages(self, row: dict[str, Any], where: str) -> Conversation:
        reasons = [
            f"unknown field {name!r}; expected only {', '.join(MESSAGES_FIELDS)} beside each other"
            for name, value in row.items()
            if name not in MESSAGES_FIELDS and value is not None
        ]
        try:
            messages, typed = flatten_conversation([_without_nulls(message) for message in _listed(row[MESSAGES])])
        except ConversationError as error:
            raise RowError([*reasons, str(error)]) from None
        reasons += _message_problems(messages)
        beside = row.get(AUDIO_COLUMN) is not None or bool(row.get(AUDIO_PATHS))
        if typed and beside:
            reasons.append(f"recordings are given both in the messages and in {AUDIO_PATHS!r} or {AUDIO_COLUMN!r}")
        recordings: list[Any] = []
        try:
            recordings = self._locate_all(typed) if typed else self._column_recordings(row)
        except RowError as error:
            reasons += error.reasons
        else:
            found = sum(message["content"].count(AUDIO_PLACEHOLDER) for message in messages)
            if found != len(recordings) and not (typed and beside):
                reasons.append(_count_problem("'messages'", found, len(recordings)))
        if reasons:
            raise RowError(reasons)
        return Conversation(messages, tuple(recordings), where)

    def _column_recordings(self, row: dict[str, Any]) -> list[Any]:
        """Recordings of a row that stand beside its text."""
        audio, paths = row.get(AUDIO_COLUMN), row.get(AUDIO_PATHS)
        if audio is not None and paths:
            raise RowError([f"recordings are given both in {AUDIO_PATHS!r} and in {AUDIO_COLUMN!r}; leave one out"])
        return self._locate_all(_as_list(paths if audio is None else audio))

    def _locate_all(self, given: list[Any]) -> list[Any]:
        """Recordings as [`Conversation`] holds them, or all that is wrong with them."""
        problems: list[str] = []
        recordings = []
        for one in given:
            try:
                recordings.append(self._locate(one))
            except RowError as error:
                problems += error.reasons
        if problems:
            raise RowError(problems)
        return recordings

    def _locate(self, recording: Any) -> Any:
        if isinstance(recording, dict):
            encoded = recording.get("bytes")
            if encoded is not None and not isinstance(encoded, (bytes, bytearray)):
                raise RowError(
                    [f"'bytes' of audio is a {type(encoded).__name__}; expected bytes, which JSON cannot hold"]
                )
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
    """What makes a conversation one that nothing can be learned from."""
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


def _count_problem(name: str, placeholders: int, recordings: int) -> str:
    reason = f"{name} has {placeholders} {AUDIO_PLACEHOLDER} for {recordings} recordings; there must be one for each"
    return Reason(reason, "audio_count")


def _without_nulls(message: Any) -> Any:
    """A message as it was before a table gave all its parts the same fields."""
    if not isinstance(message, dict):
        return message
    message = {name: value for name, value in message.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = [
            {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else part
            for part in message["content"]
        ]
    return message


def _listed(messages: Any) -> list[Any]:
    if not isinstance(messages, list):
        raise ConversationError(f"'messages' is {messages!r}; expected a list of messages.")
    return messages


def _has_urls(row: dict[str, Any]) -> bool:
    paths = row.get(AUDIO_PATHS)
    return any(isinstance(path, str) and URL_MARK in path for path in _as_list(paths))


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


__all__ = ["TABLE_FIELDS", "Conversation", "RowError", "RowReader"]
