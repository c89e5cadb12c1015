"""Anything a user may call audio, as one mono waveform at the model's sampling rate. No torchcodec, no ffmpeg binary."""

import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import fsspec
import numpy as np
import soundfile
import soxr

#: Whisper's rate. Every waveform becomes this.
SAMPLING_RATE_HZ = 16_000
#: A two-dimensional array with more channels than this is taken for a mistake rather than a recording.
MAX_CHANNELS = 32
#: Floating-point audio lies in [-1, 1]; beyond this it must be integers that were cast without scaling.
MAX_FLOAT_AMPLITUDE = 100.0
OGG_PAGE_MAGIC = b"OggS"
OGG_FLAGS_OFFSET = 5
OGG_END_OF_STREAM = 4


class AudioError(ValueError):
    """Audio that cannot be used; the message names it and says why."""


def load_waveform(
    audio: Any, sampling_rate: int | None = None, target_rate: int = SAMPLING_RATE_HZ, name: str | None = None
) -> np.ndarray:
    """
    Decodes, mixes down and resamples one recording.

    Args:
        audio: a waveform (numpy, torch or list; `(samples,)`, `(channels, samples)` or `(samples, channels)`; float
            in [-1, 1] or integer), a path, a `file://`, `http(s)://` or `hf://` URL, encoded bytes, a `datasets` audio
            dict (`array` with `sampling_rate`, or `bytes`/`path`), or a torchcodec decoder as newer `datasets` give.
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
        name = str(audio)
        waveform, rate = _decode(_read_bytes(name), name)
    elif isinstance(audio, (bytes, bytearray)):
        name = name or "audio bytes"
        waveform, rate = _decode(bytes(audio), name)
    elif isinstance(audio, dict):
        return _load_audio_dict(audio, target_rate, name)
    elif hasattr(audio, "get_all_samples"):
        samples = audio.get_all_samples()
        waveform, rate = _as_float(samples.data, name or "audio"), int(samples.sample_rate)
    else:
        name = name or "audio"
        waveform, rate = _as_float(audio, name), sampling_rate or target_rate
    return _finish(waveform, rate, target_rate, name or "audio")


def _load_audio_dict(audio: dict[str, Any], target_rate: int, name: str | None) -> np.ndarray:
    name = name or str(audio.get("path") or "audio")
    if audio.get("array") is not None:
        rate = audio.get("sampling_rate")
        if not rate:
            raise AudioError(
                f"{name}: an audio dict with 'array' needs 'sampling_rate' in Hz, got keys {sorted(audio)}."
            )
        return load_waveform(audio["array"], int(rate), target_rate, name)
    if audio.get("bytes") is not None:
        return load_waveform(audio["bytes"], None, target_rate, name)
    if audio.get("path"):
        return load_waveform(audio["path"], None, target_rate)
    raise AudioError(
        f"{name}: an audio dict needs 'array' with 'sampling_rate', 'bytes' or 'path'; got {sorted(audio)}."
    )


def _read_bytes(location: str) -> bytes:
    """The bytes of a path or URL."""
    scheme = urlparse(location).scheme
    if scheme == "file":
        location = unquote(urlparse(location).path)
    elif len(scheme) > 1:  # a single letter is a Windows drive
        with fsspec.open(location, "rb") as remote:
            return remote.read()
    path = Path(location).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"Audio file {location!r} does not exist.")
    if not path.is_file():
        raise AudioError(f"Audio file {location!r} is not a file.")
    return path.read_bytes()


def _decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a file's bytes to `(samples,)` or `(samples, channels)` float32 and its rate in Hz."""
    if not data:
        raise AudioError(f"{name}: the file is empty (0 bytes).")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            expected = file.frames
            waveform = file.read(dtype="float32")
            rate, details = file.samplerate, file.extra_info
    except soundfile.LibsndfileError as error:
        return _decode_container(data, name, error)
    if len(waveform) < expected or "(should be" in details or _ogg_is_cut_off(data):
        raise AudioError(
            f"{name}: the file is cut off: it holds {len(waveform) / rate:.2f} s of audio and ends before its own "
            "header or last page says. Copy or download it again."
        )
    return waveform, rate


def _ogg_is_cut_off(data: bytes) -> bool:
    """Whether an Ogg stream lacks the page that ends it."""
    if not data.startswith(OGG_PAGE_MAGIC):
        return False
    last_page = data.rfind(OGG_PAGE_MAGIC)
    return not data[last_page + OGG_FLAGS_OFFSET] & OGG_END_OF_STREAM


def _decode_container(data: bytes, name: str, reason: Exception) -> tuple[np.ndarray, int]:
    """Formats that libsndfile does not read (m4a, webm, mp4), through PyAV where it is installed."""
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{name}: not a format that libsndfile reads, or corrupt ({reason}). For m4a, mp4 and webm install PyAV: "
            "pip install 'audiollm[containers]'."
        ) from reason
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: the file holds no audio stream.")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            chunks = []
            for frame in container.decode(stream):
                chunks.extend(part.to_ndarray() for part in resampler.resample(frame))
            rate = stream.rate
    except av.FFmpegError as error:
        raise AudioError(
            f"{name}: corrupt, or not audio: neither libsndfile ({reason}) nor PyAV ({error}) reads it."
        ) from error
    if not chunks:
        raise AudioError(f"{name}: the audio stream holds no samples.")
    return np.concatenate(chunks, axis=1).T, rate


def _as_float(audio: Any, name: str) -> np.ndarray:
    """A waveform of any numeric kind as float32; integers are scaled by their type's range."""
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        audio = audio.float().numpy() if audio.dtype.is_floating_point else audio.numpy()
    try:
        array = np.asarray(audio)
    except ValueError as error:
        raise AudioError(f"{name}: not a waveform ({error}).") from error
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(array.dtype, np.integer):
        peak = int(np.abs(array.astype(np.int64)).max(initial=0))
        # Lists of integers arrive as int64, whatever they were recorded in.
        is_16_bit = array.dtype == np.int16 or (array.dtype.itemsize == 8 and peak <= 2**15)
        return array.astype(np.float32) / (2.0**15 if is_16_bit else 2.0**31)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"{name}: expected a waveform, a path, a URL, encoded bytes or an audio dict; got {type(audio).__name__}"
            f"{f' of {array.dtype}' if isinstance(audio, np.ndarray) else ''}."
        )
    array = array.astype(np.float32)
    if array.size and np.isfinite(array).all() and np.abs(array).max() > MAX_FLOAT_AMPLITUDE:
        raise AudioError(
            f"{name}: floating-point samples reach {np.abs(array).max():.0f}, but lie in [-1, 1] by convention. "
            "Pass the integers as they are, or divide 16-bit values by 32768."
        )
    return array


def _finish(waveform: np.ndarray, rate: int, target_rate: int, name: str) -> np.ndarray:
    if waveform.ndim == 2:
        channel_axis = int(np.argmin(waveform.shape))
        if waveform.shape[channel_axis] > MAX_CHANNELS:
            raise AudioError(f"{name}: shape {waveform.shape} is neither (channels, samples) nor (samples, channels).")
        waveform = waveform.mean(axis=channel_axis) if waveform.size else waveform.reshape(-1)
    elif waveform.ndim != 1:
        raise AudioError(
            f"{name}: expected (samples,), (channels, samples) or (samples, channels), got {waveform.shape}."
        )
    if waveform.size == 0:
        raise AudioError(f"{name}: holds no samples.")
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise AudioError(f"{name}: sample {bad} is {waveform[bad]}; audio must be finite.")
    if rate <= 0:
        raise AudioError(f"{name}: the sampling rate is {rate} Hz; expected a positive number.")
    if rate != target_rate:
        resampled = soxr.resample(waveform, rate, target_rate)
        # A sample or two at a high rate may round to none at a lower one.
        waveform = resampled if resampled.size else waveform[:1]
    return np.ascontiguousarray(waveform, dtype=np.float32)
