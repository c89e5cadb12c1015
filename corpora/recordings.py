"""One clip's recording, decoded and written as a file that every machine writes with the same bytes: FLAC or Ogg Opus."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.files import write_whole
from audiollm.processing.audio_io import SAMPLING_RATE_HZ, AudioError, load_waveform

from .clips import Clip
from .ogg import with_fixed_serial

#: File ending, and libsndfile's container and coding, of each format that clips can be kept in.
AUDIO_FORMATS: dict[str, tuple[str, str, str]] = {
    "flac": (".flac", "FLAC", "PCM_16"),
    "opus": (".opus", "OGG", "OPUS"),
}
FULL_SCALE_16_BITS = 2**15
#: Slack of the end of a part: what manifests round off, in seconds.
PART_TOLERANCE_SECONDS = 0.05


@dataclass(frozen=True)
class AudioSettings:
    """
    How clips are kept.

    Attributes:
        audio_format: a name of `AUDIO_FORMATS`.
        min_seconds, max_seconds: shorter and longer clips are refused; a longer one before it is decoded, where its
            header says how long it is.
    """

    audio_format: str
    min_seconds: float
    max_seconds: float


def load_clip(clip: Clip, settings: AudioSettings) -> np.ndarray:
    """
    The waveform of a clip: float32 at 16 kHz, of shape `(samples,)`.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it cannot be decoded, or is shorter or longer than the settings allow.
    """
    recording: Any = clip.recording
    name = clip.id
    if hasattr(recording, "load"):  # one that is made when it is needed
        array, rate = recording.load()
        recording = {"array": array, "sampling_rate": rate, "path": name}
    whole = clip.end_seconds is None and clip.start_seconds == 0
    declared = _declared(recording)
    if declared is not None:
        seconds = declared[0] / declared[1]
        if whole:
            _check_length(name, seconds, settings)
        else:
            _check_part(name, clip, seconds, settings)
            recording = _read_part(recording, clip, declared[1])
            whole = True
    waveform = load_waveform(recording, name=name)
    if not whole:
        _check_part(name, clip, len(waveform) / SAMPLING_RATE_HZ, settings)
        end = None if clip.end_seconds is None else round(clip.end_seconds * SAMPLING_RATE_HZ)
        waveform = waveform[round(clip.start_seconds * SAMPLING_RATE_HZ) : end]
    _check_length(name, len(waveform) / SAMPLING_RATE_HZ, settings)
    return waveform


def encode(waveform: np.ndarray, audio_format: str) -> bytes:
    """
    A 16 kHz waveform as a file's bytes; FLAC has 16 bits, and gives back recordings of 16 bits as they were.

    Args:
        waveform: float32 in [-1, 1], of shape `(samples,)`; what lies beyond is clipped.
        audio_format: a name of `AUDIO_FORMATS`.
    """
    _, container, coding = AUDIO_FORMATS[audio_format]
    # Scaled here: libsndfile multiplies by 32767 what it has divided by 32768, and so changes samples.
    scaled = np.clip(np.rint(waveform * FULL_SCALE_16_BITS), -FULL_SCALE_16_BITS, FULL_SCALE_16_BITS - 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, scaled.astype(np.int16), SAMPLING_RATE_HZ, format=container, subtype=coding)
    return with_fixed_serial(buffer.getvalue()) if container == "OGG" else buffer.getvalue()


def write_clip(clip: Clip, path: Path, settings: AudioSettings) -> dict[str, Any]:
    """
    Writes a clip's recording, whole or not at all.

    Returns:
        `duration` in seconds, `bytes` and `sha256` of the file.

    Raises:
        FileNotFoundError, AudioError: as [`load_clip`].
    """
    waveform = load_clip(clip, settings)
    data = encode(waveform, settings.audio_format)
    write_whole(path, data, tag="")
    seconds = len(waveform) / SAMPLING_RATE_HZ
    return {"duration": round(seconds, 4), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _declared(recording: Any) -> tuple[int, int] | None:
    """Frames and rate that a recording's header states; None where libsndfile does not read it."""
    try:
        if isinstance(recording, dict):
            recording = recording.get("bytes") or recording.get("path")
        if isinstance(recording, (bytes, bytearray)):
            found = soundfile.info(io.BytesIO(recording))
        elif isinstance(recording, (str, os.PathLike)) and os.path.isfile(recording):
            found = soundfile.info(recording)
        else:
            return None
    except (soundfile.SoundFileError, TypeError, UnicodeError):
        return None  # load_waveform says what is wrong
    return (found.frames, found.samplerate) if found.samplerate > 0 else None


def _read_part(recording: Any, clip: Clip, rate: int) -> dict[str, Any]:
    """The part that a clip means, without decoding what lies around it."""
    if isinstance(recording, dict):
        recording = recording.get("bytes") or recording.get("path")
    file = io.BytesIO(recording) if isinstance(recording, (bytes, bytearray)) else recording
    end = None if clip.end_seconds is None else round(clip.end_seconds * rate)
    try:
        array, rate = soundfile.read(
            file, start=round(clip.start_seconds * rate), stop=end, dtype="float32", always_2d=True
        )
    except soundfile.SoundFileError as error:
        raise AudioError(f"{clip.id}: cannot be decoded: {error}") from error
    return {"array": array, "sampling_rate": rate, "path": clip.id}


def _check_length(name: str, seconds: float, settings: AudioSettings) -> None:
    if seconds > settings.max_seconds:
        raise AudioError(
            f"lasts {seconds:.1f} s, longer than --max_seconds {settings.max_seconds:g}; split it, or allow more."
        )
    if seconds < settings.min_seconds:
        raise AudioError(f"lasts {seconds:.3f} s, shorter than --min_seconds {settings.min_seconds:g}.")


def _check_part(name: str, clip: Clip, seconds: float, settings: AudioSettings) -> None:
    end = seconds if clip.end_seconds is None else clip.end_seconds
    if not 0 <= clip.start_seconds < end or end > seconds + PART_TOLERANCE_SECONDS:
        raise AudioError(
            f"{clip.start_seconds:g} s to {end:g} s is no part of its recording, which lasts {seconds:.2f} s."
        )
    _check_length(name, end - clip.start_seconds, settings)


__all__ = ["AUDIO_FORMATS", "AudioSettings", "encode", "load_clip", "write_clip"]
