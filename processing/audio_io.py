"""Anything a user may call audio, as one mono waveform at the model's sampling rate. No torchcodec, no ffmpeg binary."""

import io
import os
from typing import Any

import numpy as np
import soxr

from .audio_bytes import AudioError, name_of, read_bytes
from .audio_decoding import UndecodableError, decoded_blocks

#: Whisper's rate. Every waveform becomes this.
SAMPLING_RATE_HZ = 16_000
#: Rates that recordings have; a header that says otherwise is damaged.
MIN_SAMPLING_RATE_HZ, MAX_SAMPLING_RATE_HZ = 1_000, 768_000
#: Most samples, of all channels together, that one recording is decoded to: 4 GiB. A few megabytes of FLAC may claim more.
MAX_SAMPLES = 1 << 30
#: A two-dimensional array with more channels than this is taken for a mistake rather than a recording.
MAX_CHANNELS = 32
#: What a file's bytes come as.
ENCODED_KINDS = (bytes, bytearray, memoryview)
#: Floating-point audio lies in [-1, 1]; beyond this it must be integers that were cast without scaling.
MAX_FLOAT_AMPLITUDE = 100.0
#: 64-bit integers are what lists become: they are scaled as the narrowest of these that holds them.
INTEGER_FULL_SCALES = (2**15, 2**31)


def load_waveform(
    audio: Any, sampling_rate: int | None = None, target_rate: int = SAMPLING_RATE_HZ, name: str | None = None
) -> np.ndarray:
    """
    Decodes, mixes down and resamples one recording.

    Args:
        audio: a waveform (numpy, torch or list; `(samples,)`, `(channels, samples)` or `(samples, channels)`; float
            in [-1, 1] or integer), a path, a `file://`, `http(s)://` or `hf://` URL, a `data:audio/…;base64,` URL,
            encoded bytes, a `datasets` audio dict (`array` with `sampling_rate`, or `bytes`/`path`), or a torchcodec
            decoder as newer `datasets` give.
        sampling_rate: rate of a bare waveform in Hz; `target_rate` where it is not given.
        target_rate: rate of the result in Hz.
        name: what to call it in errors; a path or URL names itself.

    Returns:
        float32 waveform of shape `(samples,)`, at least one sample.

    Raises:
        FileNotFoundError: the file is not there.
        AudioError: it is empty, corrupt, cut off, holds NaN or infinity, or is of a kind that is not audio.
    """
    if isinstance(audio, (str, os.PathLike)):
        location = str(os.fspath(audio))
        name = name_of(location)
        waveform, rate = _decode(read_bytes(location), name)
    elif isinstance(audio, ENCODED_KINDS):
        name = name or "audio bytes"
        waveform, rate = _decode(bytes(audio), name)
    elif isinstance(audio, dict):
        return _load_audio_dict(audio, target_rate, name)
    elif hasattr(audio, "get_all_samples"):
        name = name or "audio"
        samples = audio.get_all_samples()
        waveform, rate = _as_float(samples.data, name), samples.sample_rate
    else:
        name = name or "audio"
        waveform, rate = _as_float(audio, name), target_rate if sampling_rate is None else sampling_rate
    _check_samples(waveform, name)
    return _resample(_mix_down(waveform, name), rate, target_rate, name)


def _load_audio_dict(audio: dict[str, Any], target_rate: int, name: str | None) -> np.ndarray:
    name = name_of(str(audio.get("path") or name or "audio"))
    array, encoded, path = audio.get("array"), audio.get("bytes"), audio.get("path")
    keys = sorted(map(str, audio))
    if array is not None:
        if audio.get("sampling_rate") is None:
            raise AudioError(f"{name}: an audio dict with 'array' needs 'sampling_rate' in Hz, got keys {keys}.")
        if isinstance(array, (dict, str, os.PathLike, *ENCODED_KINDS)):
            raise _wrong_kind(name, "array", "a waveform", array)
        return load_waveform(array, audio["sampling_rate"], target_rate, name)
    if encoded is not None:
        if not isinstance(encoded, ENCODED_KINDS):  # a string would be opened as a path
            raise _wrong_kind(name, "bytes", "a file's bytes", encoded)
        return load_waveform(encoded, None, target_rate, name)
    if path:
        if not isinstance(path, (str, os.PathLike)):
            raise _wrong_kind(name, "path", "a path or URL", path)
        return load_waveform(path, None, target_rate)
    raise AudioError(f"{name}: an audio dict needs 'array' with 'sampling_rate', 'bytes' or 'path'; got {keys}.")


def _wrong_kind(name: str, key: str, expected: str, given: Any) -> AudioError:
    return AudioError(f"{name}: {key!r} of an audio dict must be {expected}, got {type(given).__name__}.")


def _decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a file's bytes to its channels' mean, `(samples,)` float32, and its rate in Hz."""
    if not data:
        raise AudioError(f"{name}: the file is empty (0 bytes).")
    blocks: list[np.ndarray] = []
    rate = samples = 0
    try:
        for block in decoded_blocks(io.BytesIO(data), data):
            rate, channels = block.rate, block.samples.shape[1]
            claimed = round(block.declared_s * rate)
            if claimed * channels > MAX_SAMPLES:
                raise _too_long(name, f"claims {claimed} samples in {channels} channels")
            samples += block.samples.size
            if samples > MAX_SAMPLES:
                raise _too_long(name, "holds more samples")
            blocks.append(block.samples.mean(axis=1))
    except UndecodableError as error:
        raise AudioError(f"{name}: {error}") from error
    if not blocks:
        raise AudioError(f"{name}: holds no samples.")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate


def _too_long(name: str, claim: str) -> AudioError:
    return AudioError(
        f"{name}: {claim}, more than the {MAX_SAMPLES} that are decoded at once. `audiollm transcribe` and `audiollm "
        "summarize` take recordings of any length; or the header is damaged."
    )


def _as_float(audio: Any, name: str) -> np.ndarray:
    """A waveform of any numeric kind as float32; integers are scaled by their type's range."""
    try:
        if hasattr(audio, "detach"):
            audio = audio.detach().cpu()
            audio = audio.float().numpy() if audio.dtype.is_floating_point else audio.numpy()
        array = np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; sparse, quantised or meta tensors
        raise AudioError(f"{name}: not a waveform ({error}).") from error
    if np.issubdtype(array.dtype, np.integer):
        return _scale_integers(array, name)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"{name}: expected a waveform, a path, a URL, encoded bytes or an audio dict; got {type(audio).__name__}"
            f"{f' of {array.dtype}' if isinstance(audio, (np.ndarray, list, tuple)) else ''}."
        )
    with np.errstate(over="ignore"):  # what is too large is infinite, and then refused
        return array.astype(np.float32)


def _scale_integers(array: np.ndarray, name: str) -> np.ndarray:
    """Integers as float32 in [-1, 1): signed types by their full scale, unsigned ones (as in 8-bit wav) around it."""
    bits = 8 * array.dtype.itemsize
    if bits < 64:
        full_scale = 2.0 ** (bits - 1)
        offset = full_scale if array.dtype.kind == "u" else 0.0
        return ((array.astype(np.float64) - offset) / full_scale).astype(np.float32)
    peak = max(abs(int(array.max(initial=0))), abs(int(array.min(initial=0))))
    fitting = [full_scale for full_scale in INTEGER_FULL_SCALES if peak <= full_scale]
    if not fitting:
        raise AudioError(f"{name}: integer samples reach {peak}; expected at most 32 bits.")
    return (array.astype(np.float64) / fitting[0]).astype(np.float32)


def _check_samples(waveform: np.ndarray, name: str) -> None:
    if waveform.size == 0:
        raise AudioError(f"{name}: holds no samples.")
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise AudioError(f"{name}: sample {bad} is {waveform.flat[bad]}; audio must be finite.")
    peak = float(np.abs(waveform).max())
    if peak > MAX_FLOAT_AMPLITUDE:
        raise AudioError(
            f"{name}: floating-point samples reach {peak:.0f}, but lie in [-1, 1] by convention. Pass the integers as "
            "they are, or divide 16-bit values by 32768."
        )


def _mix_down(waveform: np.ndarray, name: str) -> np.ndarray:
    """The mean of all channels, `(samples,)`; the shorter of two axes holds the channels."""
    if waveform.ndim == 1:
        return waveform
    if waveform.ndim != 2:
        raise AudioError(
            f"{name}: expected shape (samples,), (channels, samples) or (samples, channels), got {waveform.shape}."
        )
    channel_axis = int(np.argmin(waveform.shape))
    if waveform.shape[channel_axis] > MAX_CHANNELS:
        raise AudioError(f"{name}: shape {waveform.shape} is neither (channels, samples) nor (samples, channels).")
    return waveform.mean(axis=channel_axis)


def _resample(waveform: np.ndarray, rate: Any, target_rate: int, name: str) -> np.ndarray:
    is_number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not is_number or not MIN_SAMPLING_RATE_HZ <= rate <= MAX_SAMPLING_RATE_HZ:
        raise AudioError(
            f"{name}: the sampling rate is {rate!r}; expected {MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz."
        )
    if waveform.size * (target_rate / rate) > MAX_SAMPLES:
        raise _too_long(name, f"lasts {waveform.size / rate:.0f} s, which at {target_rate} Hz is more samples")
    if rate != target_rate:
        resampled = soxr.resample(waveform, rate, target_rate)
        # A sample or two at a high rate may round to none at a lower one.
        waveform = resampled if resampled.size else waveform[:1]
    return np.ascontiguousarray(waveform, dtype=np.float32)


__all__ = ["SAMPLING_RATE_HZ", "AudioError", "load_waveform", "read_bytes"]
