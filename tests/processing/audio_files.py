"""Makes audio files of every kind the tests need, through the libraries that users' files come from."""

import io
from pathlib import Path

import av
import numpy as np
import soundfile

RATE_HZ = 16_000
#: soundfile's format and subtype by the file name's ending.
SOUNDFILE_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}
#: FFmpeg's format, codec, rate and options by the file name's ending.
CONTAINER_FORMATS = {
    "m4a": ("ipod", "aac", 44_100, {}),
    "mp4": ("mp4", "aac", 44_100, {"movflags": "faststart"}),
    "webm": ("webm", "libopus", 48_000, {}),
    "aac": ("adts", "aac", 44_100, {}),
}


def sweep(seconds: float = 2.0, rate: int = RATE_HZ) -> np.ndarray:
    """A tone that rises from 200 to 1000 Hz, `(samples,)`: the same sound at any rate, and unlike itself elsewhere."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 * time + 400 / seconds * time**2))).astype(np.float32)


def encode(ending: str, waveform: np.ndarray, rate: int = RATE_HZ) -> bytes:
    """The bytes of an audio file; `waveform` is `(samples,)` or `(samples, channels)` and is resampled for FFmpeg's."""
    buffer = io.BytesIO()
    container_format, subtype = SOUNDFILE_FORMATS[ending]
    soundfile.write(buffer, waveform, rate, format=container_format, subtype=subtype)
    return buffer.getvalue()


def write_container(path: Path, waveform: np.ndarray, rate: int = RATE_HZ) -> Path:
    """Writes `(samples,)` to a file that libsndfile does not read, by the ending of `path`."""
    container_format, codec, coded_rate, options = CONTAINER_FORMATS[path.suffix[1:]]
    with av.open(str(path), "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=coded_rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=coded_rate)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    return path
