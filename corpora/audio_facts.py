"""Measurements of one recording, block by block in constant memory; what `load_waveform` refuses is a fault here."""

import hashlib
import io
import mmap
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from audiollm.command_line.machine import is_out_of_memory
from audiollm.processing.audio import (
    MAX_FLOAT_AMPLITUDE,
    MAX_SAMPLING_RATE_HZ,
    MIN_SAMPLING_RATE_HZ,
    UndecodableError,
    decoded_blocks,
    read_bytes,
)

EMPTY = "is empty (0 bytes)"
#: A sample from here on counts as full scale; the largest of 16 bits is 0.99997, of 8 bits 0.992.
FULL_SCALE = 0.992
#: Steps that samples are rounded to in the digest, so that it does not depend on how a file stores its 16 bits.
DIGEST_STEPS = 2**15
DIGEST_BYTES = 16
#: A container whose audio ends this much earlier than it states is cut off; other formats state it exactly.
TOLERANCE_S = 0.25
#: Byte order of chunk sizes, and the name of the chunk of samples, by a file's first four bytes.
CHUNKED_FORMATS: dict[bytes, tuple[Literal["little", "big"], bytes]] = {
    b"RIFF": ("little", b"data"),
    b"FORM": ("big", b"SSND"),
}
CHUNKED_HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8
#: Sizes from here on are placeholders of programs that wrote to a pipe and could not know the length.
STREAMED_CHUNK_BYTES = 0x7FFF_0000
#: An MP3 states its length, rather than libsndfile guessing it, by one of these near its start.
MP3_MAGICS, MP3_LENGTH_TAGS, MP3_TAG_REACH_BYTES = (b"ID3", b"\xff\xfb", b"\xff\xf3"), (b"Xing", b"Info"), 1 << 16
OGG_PAGE_MAGIC, OGG_END_OF_STREAM = b"OggS", 4
EXACT_MAGICS = (*CHUNKED_FORMATS, *MP3_MAGICS, OGG_PAGE_MAGIC, b"fLaC")
OGG_FLAGS_OFFSET, OGG_NUM_SEGMENTS_OFFSET, OGG_SEGMENTS_OFFSET = 5, 26, 27


@dataclass(frozen=True)
class AudioFacts:
    """One recording, measured. With a fault, only its reason and the seconds read so far mean anything."""

    fault: str = ""  # `undecodable`, `cut_off` or `not_finite`; empty for a readable recording
    reason: str = ""  # in words
    seconds: float = 0.0
    rms: float = 0.0  # root of its mean square; 1 is full scale
    offset: float = 0.0  # its mean
    clipped_share: float = 0.0  # of all channels' samples, at full scale
    digest: str = ""  # of samples and rate, in hexadecimal; empty for digital silence, and where not all was read


def measure(recording: Any, max_seconds: float) -> AudioFacts:
    """
    Read a recording (absolute path, URL, or dict with `bytes`) and return its measurements; its faults are returned too.

    One longer than `max_seconds` is read only this far, and has no digest. Its length is the header's.
    """
    try:
        if isinstance(recording, dict) or "://" in recording:
            data = recording["bytes"] if isinstance(recording, dict) else read_bytes(recording)
            return _measure(io.BytesIO(data), data, max_seconds) if data else AudioFacts("undecodable", EMPTY)
        with open(recording, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return AudioFacts("undecodable", EMPTY)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:  # not read
                return _measure(file, mapped, max_seconds)
    except UndecodableError as error:
        return AudioFacts("undecodable", str(error), error.seconds)
    except (OSError, ValueError, OverflowError) as error:  # AudioError of a URL is a ValueError
        if is_out_of_memory(error):
            raise
        return AudioFacts("undecodable", " ".join(str(error).split()) or type(error).__name__)


def measure_all(recordings: list[Any], max_seconds: float) -> list[AudioFacts]:
    """Return the measurements of several recordings; see [`measure`]."""
    return [measure(recording, max_seconds) for recording in recordings]


def _measure(file: BinaryIO, data: Any, max_seconds: float) -> AudioFacts:
    frames = channels = rate = clipped = 0
    peak = total = squares = declared_s = stated_s = 0.0
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for block in decoded_blocks(file):
        samples, rate, stated_s = block.samples, block.rate, block.declared_s
        finite = np.isfinite(samples).all(axis=1)
        if not finite.all():
            bad = frames + int(np.flatnonzero(~finite)[0])
            return AudioFacts("not_finite", f"sample {bad} is NaN or infinite", frames / rate)
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
        return AudioFacts("cut_off", f"its end is missing: it holds {seconds:.2f} s of audio", seconds)
    if not frames:
        return AudioFacts("undecodable", "holds no samples")
    if peak > MAX_FLOAT_AMPLITUDE:
        return AudioFacts("undecodable", f"samples reach {peak:.0f}; expected values in [-1, 1]")
    if not MIN_SAMPLING_RATE_HZ <= rate <= MAX_SAMPLING_RATE_HZ:
        expected = f"{MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz"
        return AudioFacts("undecodable", f"its sampling rate is {rate}; expected {expected}")
    digest.update(str(rate).encode())
    return AudioFacts(
        seconds=declared_s or seconds,
        rms=(squares / frames) ** 0.5,
        offset=total / frames,
        clipped_share=clipped / (frames * channels),
        digest="" if declared_s or not peak else digest.hexdigest(),
    )


def is_cut_off(data, seconds: float, declared_s: float) -> bool:
    """
    Return whether a recording lacks its end, such as a download that broke off, as far as its format can tell.

    `seconds` were decoded; the file states `declared_s`, 0 where it states no length.
    """
    start = bytes(data[:4])
    if start.startswith(MP3_MAGICS) and not any(tag in data[:MP3_TAG_REACH_BYTES] for tag in MP3_LENGTH_TAGS):
        declared_s = 0.0  # a guess of libsndfile's
    least = declared_s - (0.0 if start.startswith(EXACT_MAGICS) else TOLERANCE_S)
    return seconds < least or _lacks_last_chunk(data) or _lacks_last_ogg_page(data)


def _lacks_last_chunk(data) -> bool:
    """Return whether a wav or aiff file ends before its chunk of samples does."""
    if data[:4] not in CHUNKED_FORMATS:
        return False
    byte_order, samples_chunk = CHUNKED_FORMATS[data[:4]]
    position = CHUNKED_HEADER_BYTES
    while position + CHUNK_HEADER_BYTES <= len(data):
        size = int.from_bytes(data[position + 4 : position + CHUNK_HEADER_BYTES], byte_order)
        end = position + CHUNK_HEADER_BYTES + size
        if data[position : position + 4] == samples_chunk:
            return end > len(data) and size < STREAMED_CHUNK_BYTES
        position = end + size % 2
    return False


def _lacks_last_ogg_page(data) -> bool:
    """Return whether an Ogg file ends without the page that ends its stream, or within it."""
    if data[: len(OGG_PAGE_MAGIC)] != OGG_PAGE_MAGIC:
        return False
    page = data[data.rfind(OGG_PAGE_MAGIC) :]
    if len(page) < OGG_SEGMENTS_OFFSET:
        return True
    payload = OGG_SEGMENTS_OFFSET + page[OGG_NUM_SEGMENTS_OFFSET]
    page_size = payload + sum(page[OGG_SEGMENTS_OFFSET:payload])
    return len(page) < page_size or not page[OGG_FLAGS_OFFSET] & OGG_END_OF_STREAM
