"""Which recordings belong to which text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .conversations import AUDIO_PLACEHOLDER


def is_list(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes, bytearray))


def is_recording(item: Any) -> bool:
    """Whether `item` is one recording rather than a list of them: a list of numbers is one."""
    return not is_list(item) or (len(item) > 0 and isinstance(item[0], (int, float, np.number)))


def as_recordings(audio: Any) -> list[Any]:
    if audio is None:
        return []
    return [audio] if is_recording(audio) else list(audio)


def distribute(audio: Any, counts: list[int], single_text: bool) -> list[list[Any]]:
    """
    Hands recordings to texts: `counts[i]` of them to text `i`.

    Raises:
        ValueError: they do not match; both counts are stated.
    """
    items = as_recordings(audio)
    if items and not any(is_recording(item) for item in items):
        if len(items) != len(counts) and not (single_text and len(items) == 1):
            raise ValueError(f"audio has lists for {len(items)} texts, but there are {len(counts)}.")
        for index, (row, count) in enumerate(zip(items, counts)):
            if len(row) != count:
                raise ValueError(
                    f"Text {index} has {count} {AUDIO_PLACEHOLDER} but is given {len(row)} recordings; expected one each."
                )
        return [list(row) for row in items]
    if len(items) != sum(counts):
        raise ValueError(
            f"The texts have {sum(counts)} {AUDIO_PLACEHOLDER} in all ({counts} each) but {len(items)} recordings are "
            "given; expected one recording per placeholder."
        )
    rows, used = [], 0
    for count in counts:
        rows.append(items[used : used + count])
        used += count
    return rows


__all__ = ["as_recordings", "distribute", "is_list", "is_recording"]
