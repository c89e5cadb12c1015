"""
Measurements of one recording, taken block by block, so that ten hours need no more memory than ten seconds.

It reads the same files as `load_waveform`, and refuses the same ones, and those whose end is missing.
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
from audiollm.processing.audio import (
    MAX_FLOAT_AMPLITUDE,
    MAX_SAMPLING_RATE_HZ,
    MIN_SAMPLING_RATE_HZ,
    UndecodableError,
    decoded_blocks,
    read_bytes,
)

from .cut_off import is_cut_off

#: A sample from here on counts as full scale; the largest of 16 bits is 0.99997, of 8 bits 0.992.
FULL_SCALE = 0.992
#: Steps that samples are rounded to in the digest, so that it does not depend on how a file stores its 16 bits.
DIGEST_STEPS = 2**15
DIGEST_BYTES = 16


@dataclass(frozen=True)
class AudioFacts:
    """
    One recording, measured.

    Attributes:
        fault: `missing_file`, `undecodable`, `cut_off` or `not_finite`; empty for a readable recording. With a fault,
            only `reason` and the seconds read so far mean anything.
        reason: In words.
        seconds: Length.
        rate: Stored sampling rate in Hz.
        channels: Stored channels.
        peak: Largest absolute value of the channels' mean.
        rms: Root of its mean square; 1 is full scale.
        offset: Its mean.
        clipped_share: Share of all channels' samples at full scale.
        digest: Of samples and rate, in hexadecimal; empty for digital silence, and where not all was read.
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
    """A recording with a fault: its name, the reason, and the seconds read before."""


def measure(recording: Any, max_seconds: float) -> AudioFacts:
    """
    Read a recording and return its measurements. Faults of the recording are returned, not raised.

    Args:
        recording: An absolute path, a URL, or a dict with `bytes`.
        max_seconds: A longer recording is read only this far, and has no digest. Its length is the header's.
    """
    try:
        with _opened(recording) as (file, data):
            return _measure(file, data, max_seconds)
    except _UnreadableError as error:
        return AudioFacts(*error.args)
    except UndecodableError as error:
        return AudioFacts("undecodable", str(error), error.seconds)
    except FileNotFoundError:
        return AudioFacts("missing_file", "the file does not exist")
    except (OSError, ValueError, OverflowError) as error:  # AudioError of a URL is a ValueError
        if is_out_of_memory(error):
            raise
        return AudioFacts("undecodable", " ".join(str(error).split()) or type(error).__name__)


def measure_all(recordings: list[Any], max_seconds: float) -> list[AudioFacts]:
    """Return the measurements of several recordings; see [`measure`]."""
    return [measure(recording, max_seconds) for recording in recordings]


@contextmanager
def _opened(recording: Any) -> Iterator[tuple[BinaryIO, Any]]:
    """Open a recording, with its bytes; a file on disk is mapped, not read."""
    if isinstance(recording, dict) or "://" in recording:
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
    frames = channels = rate = clipped = 0
    peak = total = squares = declared_s = stated_s = 0.0
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for block in decoded_blocks(file):
        samples, rate, stated_s = block.samples, block.rate, block.declared_s
        finite = np.isfinite(samples).all(axis=1)
        if not finite.all():
            bad = frames + int(np.flatnonzero(~finite)[0])
            raise _UnreadableError("not_finite", f"sample {bad} is NaN or infinite", frames / rate)
        mono = samples.mean(axis=1)
        frames, channels = frames + len(samples), max(channels, samples.shape[1])
        clipped += int((np.abs(samples) >= FULL_SCALE).sum())
        peak = max(peak, float(np.abs(mono).max(initial=0.0)))
        total += float(mono.sum(dtype=np.float64))
        squares += float(np.square(mono, dtype=np.float64).sum())
        limited = np.clip(mono, -MAX_FLOAT_AMPLITUDE, MAX_FLOAT_AMPLITUDE)
        digest.update(np.rint(limited * DIGEST_STEPS).astype("<i4").tobytes())
        if rate and frames / rate > max_seconds:
            declared_s = max(block.declared_s, frames / rate)
            break
    seconds = frames / rate if rate else 0.0
    if not declared_s and is_cut_off(data, seconds, stated_s):
        raise _UnreadableError("cut_off", f"its end is missing: it holds {seconds:.2f} s of audio", seconds)
    if not frames:
        raise _UnreadableError("undecodable", "holds no samples")
    if peak > MAX_FLOAT_AMPLITUDE:
        raise _UnreadableError("undecodable", f"samples reach {peak:.0f}; expected values in [-1, 1]")
    if not MIN_SAMPLING_RATE_HZ <= rate <= MAX_SAMPLING_RATE_HZ:
        expected = f"{MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz"
        raise _UnreadableError("undecodable", f"its sampling rate is {rate}; expected {expected}")
    digest.update(str(rate).encode())
    return AudioFacts(
        seconds=declared_s or frames / rate,
        rate=rate,
        channels=channels,
        peak=peak,
        rms=(squares / frames) ** 0.5,
        offset=total / frames,
        clipped_share=clipped / (frames * channels),
        digest="" if declared_s or not peak else digest.hexdigest(),
    )
