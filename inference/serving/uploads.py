"""Recordings of clients: in a temporary file while they are read, and never longer than allowed."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from audiollm.processing import AudioError

from ..recordings import COPY_BYTES, read_bounded
from .errors import GoneError

FILE_NAME = "recording"


@contextmanager
def stored(source: BinaryIO) -> Iterator[Path]:
    """Give an upload as a file of its own, for as long as the block lasts."""
    with TemporaryDirectory(prefix="audiollm-serve-") as folder:
        path = Path(folder) / FILE_NAME
        with open(path, "wb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
        yield path


def count_seconds(
    path: Path, name: str, sampling_rate: int, max_seconds: float, limit: str, stop: threading.Event
) -> float:
    """
    Return the length of a recording, by reading it to its end in little memory.

    Args, Raises: as [`read_bounded`]; besides:
        GoneError: `stop` is set.
    """
    samples = sum(len(block) for block in read_bounded(path, sampling_rate, name, max_seconds, limit, stop))
    if stop.is_set():
        raise GoneError
    if not samples:
        raise AudioError(f"{name}: holds no samples.")
    return samples / sampling_rate


__all__ = ["count_seconds", "stored"]
