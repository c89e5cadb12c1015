"""
What one recording is like, measured block by block, so that ten hours take no more memory than ten seconds.

The same files are readable here as with `load_waveform`, and for the same reasons not; what this adds is level,
clipping, offset, and a digest of the samples, which two files share when they hold the same sound.
"""

import hashlib
import io
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from audiollm.memory import is_out_of_memory
from audiollm.processing.audio_decoding import UndecodableError, decoded_blocks
from audiollm.processing.audio_io import MAX_FLOAT_AMPLITUDE, MAX_SAMPLING_RATE_HZ, MIN_SAMPLING_RATE_HZ, read_bytes

#: From here on a sample counts as being at full scale; the largest of 16 bits is 0.99997, of 8 bits 0.992.
FULL_SCALE = 0.992
#: Steps that samples are rounded to in the digest, so that it does not matter how a file stores its 16 bits.
DIGEST_STEPS = 2**15
DIGEST_BYTES = 16
URL_MARK = "://"


@dataclass(frozen=True)
class AudioFacts:
    """
    One recording, measured.

    Attributes:
        fault: `missing_file`, `undecodable`, `cut_off` or `not_finite`; empty where it could be read. Of a recording
            with a fault only `reason`, and the length as far as it was read, mean anything.
        reason: what is wrong, in words.
        seconds: length.
        rate: in Hz, as stored.
        channels: as stored.
        peak: largest absolute value of the channels' mean.
        rms: root of its mean square; 1 is full scale.
        offset: its mean.
        clipped_share: of all channels' samples, how many are at full scale.
        digest: of the samples and their rate, in hexadecimal; empty for digital silence, and where not all was read.
    """

    fault: str = ""
    reason: str = ""
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    peak: float = 0.0
    rms: float = 0.0
    offset: float = 0.0
    clipped_share: float = 0.0
    digest: str = ""


class _UnreadableError(Exception):
    """A recording with a fault, whose name comes first."""

    def __init__(self, fault: str, reason: str, seconds: float = 0.0):
        super().__init__(fault)
        self.fault, self.reason, self.seconds = fault, reason, seconds


class _Measure:
    """Sums over blocks of one recording."""

    def __init__(self) -> None:
        self.frames = self.channels = self.rate = self.clipped = 0
        self.peak = self.sum = self.squares = 0.0
        self.digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    @property
    def seconds(self) -> float:
        return self.frames / self.rate if self.rate else 0.0

    def add(self, block: np.ndarray) -> None:
        """Takes in a block of `(frames, channels)` float32."""
        if not np.isfinite(block).all():
            bad = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise _UnreadableError("not_finite", f"sample {self.frames + bad} is NaN or infinite", self.seconds)
        mono = block.mean(axis=1)
        self.frames += len(block)
        self.channels = max(self.channels, block.shape[1])
        self.clipped += int((np.abs(block) >= FULL_SCALE).sum())
        self.peak = max(self.peak, float(np.abs(mono).max(initial=0.0)))
        self.sum += float(mono.sum(dtype=np.float64))
        self.squares += float(np.square(mono, dtype=np.float64).sum())
        rounded = np.rint(np.clip(mono, -MAX_FLOAT_AMPLITUDE, MAX_FLOAT_AMPLITUDE) * DIGEST_STEPS)
        self.digest.update(rounded.astype("<i4").tobytes())

    def facts(self, declared_s: float = 0.0) -> AudioFacts:
        """
        What the blocks have in sum.

        Args:
            declared_s: length by the recording's header, where it was not read to its end; else 0.
        """
        if not self.frames:
            raise _UnreadableError("undecodable", "holds no samples")
        if self.peak > MAX_FLOAT_AMPLITUDE:
            raise _UnreadableError("undecodable", f"samples reach {self.peak:.0f}; expected values in [-1, 1]")
        if not MIN_SAMPLING_RATE_HZ <= self.rate <= MAX_SAMPLING_RATE_HZ:
            expected = f"{MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz"
            raise _UnreadableError("undecodable", f"its sampling rate is {self.rate}; expected {expected}")
        self.digest.update(str(self.rate).encode())
        return AudioFacts(
            seconds=max(self.seconds, declared_s),
            rate=self.rate,
            channels=self.channels,
            peak=self.peak,
            rms=(self.squares / self.frames) ** 0.5,
            offset=self.sum / self.frames,
            clipped_share=self.clipped / (self.frames * self.channels),
            digest="" if declared_s or not self.peak else self.digest.hexdigest(),
        )


def measure(recording: Any, max_seconds: float) -> AudioFacts:
    """
    Reads a recording and says what it is like; never raises for what is wrong with the recording.

    Args:
        recording: an absolute path, a URL, or a dict with `bytes`, as a `Conversation` has it.
        max_seconds: what is longer is read this far only, and then has no digest; its length is the header's.
    """
    try:
        with _opened(recording) as (file, data):
            return _measure(file, data, max_seconds)
    except _UnreadableError as error:
        return AudioFacts(error.fault, error.reason, seconds=error.seconds)
    except FileNotFoundError:
        return AudioFacts("missing_file", "the file is not there")
    except (OSError, ValueError, OverflowError) as error:  # AudioError of a URL is a ValueError
        if is_out_of_memory(error):  # no fault of the recording, which is read by blocks
            raise
        return AudioFacts("undecodable", " ".join(str(error).split()) or type(error).__name__)


@contextmanager
def _opened(recording: Any) -> Iterator[tuple[BinaryIO, Any]]:
    """A recording as an open file, and its bytes, mapped rather than read where they lie on disk."""
    if isinstance(recording, dict) or URL_MARK in recording:
        data = recording["bytes"] if isinstance(recording, dict) else read_bytes(recording)
        if not data:
            raise _UnreadableError("undecodable", "is empty (0 bytes)")
        yield io.BytesIO(data), data
        return
    if os.path.exists(recording) and not os.path.isfile(recording):
        raise _UnreadableError("undecodable", "is not a regular file")
    with open(recording, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise _UnreadableError("undecodable", "the file is empty (0 bytes)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield file, mapped


def _measure(file: BinaryIO, data: Any, max_seconds: float) -> AudioFacts:
    sums = _Measure()
    try:
        for block in decoded_blocks(file, data):
            sums.rate = block.rate
            sums.add(block.samples)
            if sums.seconds > max_seconds:
                return sums.facts(max(block.declared_s, sums.seconds))
    except UndecodableError as error:
        raise _UnreadableError("cut_off" if error.is_cut_off else "undecodable", str(error), error.seconds) from error
    return sums.facts()


__all__ = ["AudioFacts", "measure"]
