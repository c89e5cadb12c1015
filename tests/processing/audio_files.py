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
    "mka": ("matroska", "aac", 44_100, {}),
    "ts": ("mpegts", "aac", 44_100, {}),
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


#: Files that libsndfile reads, as FFmpeg writes them: with an ID3 tag, without a length, to a pipe.
FFMPEG_FORMATS = {
    "tagged.mp3": ("mp3", "libmp3lame", 44_100, {}),
    "no length.mp3": ("mp3", "libmp3lame", 44_100, {"write_xing": "0"}),
    "low rate.mp3": ("mp3", "libmp3lame", 22_050, {}),
    "ffmpeg.flac": ("flac", "flac", 44_100, {}),
    "ffmpeg.opus": ("ogg", "libopus", 48_000, {}),
    "ffmpeg.wav": ("wav", "pcm_s24le", 48_000, {}),
    "mu-law.wav": ("wav", "pcm_mulaw", 16_000, {}),
}


def write_container(path: Path, waveform: np.ndarray, rate: int = RATE_HZ) -> Path:
    """Writes `(samples,)` through FFmpeg, by the ending of `path` or its whole name."""
    kind = FFMPEG_FORMATS.get(path.name) or CONTAINER_FORMATS[path.suffix[1:]]
    container_format, codec, coded_rate, options = kind
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
