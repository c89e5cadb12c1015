"""Recordings of any length, read block by block: memory does not grow with length."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import soundfile
import soxr
from audiollm.processing import AudioError
from audiollm.processing.audio import (
    UNKNOWN_FRAMES,
    UndecodableError,
    check_rate,
    check_samples,
    decoded_blocks,
    open_remote,
    scheme_of,
)

COPY_BYTES = 1 << 20
URL_MARK = "://"
#: Of 16-bit samples.
FULL_SCALE = 32_768
MINUTE_SECONDS = 60


class RecordingTooLongError(AudioError):
    """A recording that is longer than the reader takes."""


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """Give a path or URL as a file on this machine, for as long as the block lasts; a remote one is copied."""
    if not is_remote(location):
        path = path_of(location)
        check_file(path, location)
        yield path
        return
    with TemporaryDirectory(prefix="audiollm-") as folder:
        path = Path(folder) / "recording"
        with open_remote(location) as remote, open(path, "wb") as copy:
            shutil.copyfileobj(remote, copy, COPY_BYTES)
        check_file(path, location)
        yield path


def is_remote(location: str) -> bool:
    """Return whether a location is a URL of something on another machine."""
    return scheme_of(location) not in ("", "file")


def path_of(location: str) -> Path:
    """Return the path that a path or `file://` URL names."""
    return Path(url2pathname(urlparse(location).path) if URL_MARK in location else location).expanduser()


def check_file(path: Path, name: str) -> None:
    """Raise FileNotFoundError where there is no file, and AudioError where it is no regular one, or empty."""
    if not path.exists():
        raise FileNotFoundError(f"Audio file {name!r} does not exist.")
    if not path.is_file():
        raise AudioError(f"Audio file {name!r} is not a regular file, but a folder, pipe or device.")
    if not path.stat().st_size:
        raise AudioError(f"{name}: the file is empty (0 bytes).")


def header_seconds(file: Any) -> float | None:
    """Return the length in the header of a path or binary file; None where libsndfile does not read it, or there is none."""
    if isinstance(file, (str, os.PathLike)) and not os.path.isfile(file):  # opening a pipe would block
        return None
    try:
        info = soundfile.info(file)
    except (soundfile.LibsndfileError, OSError, ZeroDivisionError):
        return None
    return None if info.frames == UNKNOWN_FRAMES or not info.samplerate else info.frames / info.samplerate


def read_blocks(path: str | os.PathLike[str], target_rate: int, name: str | None = None) -> Iterator[np.ndarray]:
    """
    Decode, mix down and resample a regular file as `load_waveform` does: yield float32 blocks `(samples,)` of any length.

    Errors are [`AudioError`]s that name the recording; faults further on in the file are found when they are reached.
    """
    name = name or str(path)
    resampler: Any = None
    read = 0
    with open(path, "rb") as file:
        try:
            for block in decoded_blocks(file):
                mono = block.samples.mean(axis=1)
                check_rate(block.rate, name)
                check_samples(mono, name, read)
                read += len(mono)
                if block.rate == target_rate:
                    yield mono
                    continue
                if resampler is None:
                    resampler = soxr.ResampleStream(block.rate, target_rate, 1, dtype="float32")
                resampled = resampler.resample_chunk(mono)
                if len(resampled):
                    yield resampled
        except UndecodableError as error:
            raise AudioError(f"{name}: {error}") from error
    if not read:
        raise AudioError(f"{name}: holds no samples.")
    if resampler is not None:
        rest = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        if len(rest):
            yield rest


def from_16_bits(data: bytes) -> np.ndarray:
    """Return little-endian 16-bit samples of one channel as float32 `(samples,)`."""
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / FULL_SCALE


def read_bounded(
    path: Path, target_rate: int, name: str, max_seconds: float, limit: str, stop: threading.Event | None = None
) -> Iterator[np.ndarray]:
    """
    Read a stranger's file as [`read_blocks`] does, no further than a bound: a header may claim anything.

    Args:
        name: of the recording in errors, which never show the path.
        limit: origin of `max_seconds`, for the [`RecordingTooLongError`].
        stop: ends the reading once it is set.
    """
    check_file(path, name)
    seconds = header_seconds(path)
    samples = 0
    try:
        if seconds is not None and seconds > max_seconds:
            raise RecordingTooLongError(f"{name} is {clock(seconds)} long, and {clock(max_seconds)} are {limit}.")
        for block in read_blocks(path, target_rate, name):
            if stop is not None and stop.is_set():
                return
            samples += len(block)
            if samples > max_seconds * target_rate:
                raise RecordingTooLongError(f"{name} is longer than {clock(max_seconds)}, {limit}.")
            yield block
    except AudioError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def clock(seconds: float) -> str:
    """Return a length in words: `2.1 s`, `3 min 20 s`."""
    if seconds < MINUTE_SECONDS:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), MINUTE_SECONDS)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
