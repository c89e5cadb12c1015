"""Which questions share a batch: the same ones in every run, however many processes there are and whatever is done."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from audiollm.answering import recording_seconds

from .listening import swapped

if TYPE_CHECKING:
    from .tasks import Item

#: Items that are held in memory at a time: among them, those of like length share batches, and recordings are swapped.
WINDOW_ITEMS = 512


@dataclass(frozen=True)
class Question:
    """
    An item as one system is asked it.

    Attributes:
        item: as the task has it.
        recordings: what is played: the item's own recordings, or others'.
        problem: why it cannot be asked at all; None where it can.
    """

    item: "Item"
    recordings: list[Any]
    problem: str | None = None


def windows_of(items: Iterable["Item"], count: int, size: int = WINDOW_ITEMS) -> Iterator[list["Item"]]:
    """
    Consecutive items, `size` at a time; the last window takes what is left over as well, so that it is not a small one.

    Args:
        count: how many items there are.
    """
    stream = iter(items)
    num_windows = max(1, count // size)
    for index in range(num_windows):
        is_last = index == num_windows - 1
        if window := list(stream if is_last else islice(stream, size)):
            yield window


def own_recordings(items: Sequence["Item"]) -> list[Question]:
    """Every item with its own recordings."""
    return [Question(item, list(item.recordings)) for item in items]


def wrong_recordings(items: Sequence["Item"]) -> list[Question]:
    """
    Every item with recordings of others: of the window's distinct ones, each is replaced by another, and each is used.

    Questions about one and the same recording get one and the same other one, never their own.
    """
    keys = [[recording_identity(one) for one in item.recordings] for item in items]
    distinct = {key: one for item, own in zip(items, keys) for key, one in zip(own, item.recordings)}
    if len(distinct) < 2:
        problem = "there is no other recording beside it to take the place of its own"
        return [Question(item, [], problem if item.recordings else None) for item in items]
    other = dict(zip(distinct, swapped(list(distinct.values()))))
    return [Question(item, [other[key] for key in own]) for item, own in zip(items, keys)]


def batches_of(
    questions: Sequence[Question], processor: Any, batch_size: int, max_batch_seconds: float
) -> list[list[Question]]:
    """
    Questions dealt into batches, short ones first; a batch's audio, padded to its longest, has a bound.

    Args:
        processor: says how long a recording is.
        batch_size: questions in a batch, at most.
        max_batch_seconds: of audio in a batch, at most; a longer question is alone.
    """
    seconds = [sum(_seconds_or_none(processor, one) for one in question.recordings) for question in questions]
    order = sorted(range(len(questions)), key=lambda i: (seconds[i], len(questions[i].item.prompt), i))
    batches: list[list[Question]] = []
    for index in order:
        full = not batches or len(batches[-1]) == batch_size
        if full or (len(batches[-1]) + 1) * seconds[index] > max_batch_seconds:
            batches.append([])
        batches[-1].append(questions[index])
    return batches


def _seconds_or_none(processor: Any, recording: Any) -> float:
    """How long a recording says it is; 0 of one that is not there or not readable, which is found out when it is played."""
    try:
        return recording_seconds(processor, recording)
    except (ValueError, OSError):
        return 0.0


def recording_identity(recording: Any) -> str:
    """What tells recordings apart: a path or URL, or a hash of bytes or samples."""
    if isinstance(recording, (str, os.PathLike)):
        return os.fspath(recording)
    if isinstance(recording, dict):
        held = recording.get("bytes")
        if held is None:
            held = recording.get("array")
        return str(recording.get("path")) if held is None else _digest(held)
    return _digest(recording)


def _digest(held: Any) -> str:
    data = held if isinstance(held, (bytes, bytearray)) else np.ascontiguousarray(held).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def recording_name(recording: Any) -> str:
    """What outputs call a recording: its path, that within its table, or the hash of its samples."""
    if isinstance(recording, dict) and recording.get("path"):
        return str(recording["path"])
    return recording_identity(recording)


#: How a system comes by its questions.
Asking = Callable[[Sequence["Item"]], list[Question]]

__all__ = [
    "WINDOW_ITEMS",
    "Asking",
    "Question",
    "batches_of",
    "own_recordings",
    "recording_identity",
    "recording_name",
    "windows_of",
    "wrong_recordings",
]
