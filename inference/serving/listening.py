"""Recordings of strangers: never longer than is allowed, whatever they claim, and gone when the request is."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from audiollm.processing import AudioError

from ..audio_blocks import check_file, header_seconds, read_blocks
from .errors import BAD_REQUEST, ApiError, GoneError

COPY_BYTES = 1 << 20
FILE_NAME = "recording"


@contextmanager
def kept_file(source: BinaryIO, name: str) -> Iterator[Path]:
    """
    What is uploaded, in a file of its own for as long as it is read.

    Raises:
        AudioError: it is empty.
    """
    with TemporaryDirectory(prefix="audiollm-serve-") as folder:
        path = Path(folder) / FILE_NAME
        with open(path, "wb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
        check_file(path, name)
        yield path


def count_seconds(
    path: Path, name: str, sampling_rate: int, max_seconds: float, stop: threading.Event, limit: str
) -> float:
    """
    How long a recording is, by reading it to its end or to the limit, in little memory: a header may say anything.

    Args:
        path: the file.
        name: what to call it in errors.
        sampling_rate: in Hz, to count in.
        max_seconds: more is refused.
        stop: ends it early.
        limit: what sets `max_seconds`, for the error.

    Raises:
        ApiError: it is longer.
        AudioError: it is no recording, or a broken one.
        GoneError: `stop` is set.
    """
    samples, max_samples = 0, max_seconds * sampling_rate
    too_long = (header_seconds(path) or 0) > max_seconds
    try:
        for block in () if too_long else read_blocks(path, sampling_rate, name):
            if stop.is_set():
                raise GoneError
            samples += len(block)
            too_long = samples > max_samples
            if too_long:
                break
    except AudioError as error:
        raise AudioError(without_path(str(error), path, name)) from error
    if too_long:
        raise ApiError(
            BAD_REQUEST, f"{name} is longer than {max_seconds:.0f} s, {limit}.", "audio_too_long", param=None
        )
    if not samples:
        raise AudioError(f"{name}: holds no samples.")
    return samples / sampling_rate


def without_path(message: str, path: Path, name: str) -> str:
    """An error's message that does not say where on this machine a recording was kept."""
    return message.replace(str(path), name)


__all__ = ["count_seconds", "kept_file", "without_path"]
