"""One clip's recording, decoded and written as FLAC with the same bytes on every machine."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.command_line.files import sha256_of, write_whole
from audiollm.command_line.interruption import check_interrupted
from audiollm.processing.audio import SAMPLING_RATE_HZ, AudioError, load_waveform

from .clips import Clip

FULL_SCALE_16_BITS = 2**15
#: Slack of the end of a part, for what manifests round off.
PART_TOLERANCE_SECONDS = 0.05


@dataclass(frozen=True)
class AudioSettings:
    """Limits of clips; a longer one is refused before it is decoded, where its header says how long it is."""

    min_seconds: float
    max_seconds: float


def load_clip(clip: Clip, settings: AudioSettings) -> np.ndarray:
    """
    Return the waveform of a clip: float32 at 16 kHz, of shape `(samples,)`.

    FileNotFoundError or AudioError is raised where it cannot be read, or is shorter or longer than the settings allow.
    """
    recording: Any = clip.recording
    if hasattr(recording, "load"):  # one that is made when it is needed
        array, rate = recording.load()
        recording = {"array": array, "sampling_rate": rate, "path": clip.id}
    is_whole = clip.end_seconds is None and clip.start_seconds == 0
    source = _source_of(recording)
    try:
        info = None if source is None else soundfile.info(source)
        if info is not None and info.samplerate > 0:
            _check_part(clip, info.frames / info.samplerate, settings)
            if not is_whole:  # without decoding the rest
                start, stop = _samples(clip, info.samplerate)
                array, rate = soundfile.read(
                    _source_of(recording), start=start, stop=stop, dtype="float32", always_2d=True
                )
                recording, is_whole = {"array": array, "sampling_rate": rate, "path": clip.id}, True
    except (soundfile.SoundFileError, TypeError, UnicodeError):
        pass  # load_waveform says what is wrong
    waveform = load_waveform(recording, name=clip.id)
    if not is_whole:
        _check_part(clip, len(waveform) / SAMPLING_RATE_HZ, settings)
        waveform = waveform[slice(*_samples(clip, SAMPLING_RATE_HZ))]
    _check_length(len(waveform) / SAMPLING_RATE_HZ, settings)
    return waveform


def _source_of(recording: Any) -> Any:
    """Return the bytes or path that libsndfile can open, or None."""
    if isinstance(recording, dict):
        recording = recording.get("bytes") or recording.get("path")
    if isinstance(recording, (bytes, bytearray)):
        return io.BytesIO(recording)
    return recording if isinstance(recording, (str, os.PathLike)) and os.path.isfile(recording) else None


def _samples(clip: Clip, rate: int) -> tuple[int, int | None]:
    """Return where the part that a clip means begins and ends."""
    return round(clip.start_seconds * rate), None if clip.end_seconds is None else round(clip.end_seconds * rate)


def _check_part(clip: Clip, seconds: float, settings: AudioSettings) -> None:
    """Raise AudioError if a clip is no part of its recording, which lasts so many seconds, or of a wrong length."""
    end = seconds if clip.end_seconds is None else clip.end_seconds
    is_whole = clip.end_seconds is None and clip.start_seconds == 0
    if not is_whole and (not 0 <= clip.start_seconds < end or end > seconds + PART_TOLERANCE_SECONDS):
        part = f"{clip.start_seconds:g} s to {end:g} s"
        raise AudioError(f"{part} is no part of its recording, which lasts {seconds:.2f} s.")
    _check_length(end - clip.start_seconds, settings)


def _check_length(seconds: float, settings: AudioSettings) -> None:
    if seconds > settings.max_seconds:
        most = f"--max_seconds {settings.max_seconds:g}"
        raise AudioError(f"lasts {seconds:.1f} s, longer than {most}; split it, or allow more.")
    if seconds < settings.min_seconds:
        raise AudioError(f"lasts {seconds:.3f} s, shorter than --min_seconds {settings.min_seconds:g}.")


def encode(waveform: np.ndarray) -> bytes:
    """Return a 16 kHz waveform `(samples,)` as a FLAC file of 16 bits, which gives back 16 bits as they were."""
    # Scaled here: libsndfile multiplies by 32767 what it has divided by 32768, and so changes samples.
    scaled = np.clip(np.rint(waveform * FULL_SCALE_16_BITS), -FULL_SCALE_16_BITS, FULL_SCALE_16_BITS - 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, scaled.astype(np.int16), SAMPLING_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


#: A clip with the name of its file, without suffix, or the row of an unusable one.
Item = tuple[Clip, str] | dict[str, Any]


def write_batch(batch: list[Item], output: Path, settings: AudioSettings) -> list[dict[str, Any]]:
    """Write a batch of clips, and return a row of the journal for each."""
    rows = []
    for item in batch:
        check_interrupted()
        if isinstance(item, dict):
            rows.append(item)
            continue
        clip, audio = item[0], f"{item[1]}.flac"
        row: dict[str, Any] = {"id": clip.id, "split": clip.split}
        try:
            waveform = load_clip(clip, settings)
            data = encode(waveform)
            write_whole(output / audio, data, tag="")
        except (AudioError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            if isinstance(error, PermissionError) and not os.access(output, os.W_OK):
                raise
            row |= {"problem": " ".join(str(error).split())}
        else:
            row |= {"audio": audio, "text": clip.text, "duration": round(len(waveform) / SAMPLING_RATE_HZ, 4)}
            row |= {"bytes": len(data), "sha256": sha256_of(data), "fields": dict(clip.fields)}
        rows.append(row)
    return rows
