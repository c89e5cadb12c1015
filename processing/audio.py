"""Decoding of recordings of any kind to mono waveforms at the model's sampling rate, without torchcodec or ffmpeg's binary."""

import base64
import binascii
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import fsspec
import numpy as np
import soundfile
import soxr

#: Whisper's rate.
SAMPLING_RATE_HZ = 16_000
#: Rates that recordings have; a header that says otherwise is damaged.
MIN_SAMPLING_RATE_HZ, MAX_SAMPLING_RATE_HZ = 1_000, 768_000
#: Most samples, of all channels, in one recording: 4 GiB. A few megabytes of FLAC may claim more.
MAX_SAMPLES = 1 << 30
#: A two-dimensional array with more channels is no recording.
MAX_CHANNELS = 32
ENCODED_KINDS = (bytes, bytearray, memoryview)
#: Floating-point audio lies in [-1, 1]; beyond this it must be integers that were cast without scaling.
MAX_FLOAT_AMPLITUDE = 100.0
#: 64-bit integers are what lists become: they are scaled as the narrowest of these that holds them.
INTEGER_FULL_SCALES = (2**15, 2**31)

#: Other protocols of fsspec reach into this machine, or into each other.
REMOTE_SCHEMES = ("http", "https", "hf", "s3", "gs", "gcs", "az", "abfs")
#: Read as streams and counted as they come: compressed in transit, a file may be larger than was said.
STREAMED_SCHEMES = ("http", "https")
#: Largest file that is read into memory: 4 GiB, 37 hours of 16 kHz wav.
MAX_FILE_BYTES = 1 << 32
CHUNK_BYTES = 1 << 20
#: RFC 2397.
DATA_SCHEME, BASE64_MARK = "data:", ";base64"
SHOWN_CHARACTERS = 40

#: Samples, of all channels, that are decoded at once.
BLOCK_SAMPLES = 1 << 18
#: FFmpeg demuxers for what libsndfile does not read; no playlists, which could open other files.
CONTAINER_FORMATS = "aac,amr,asf,avi,flv,matroska,mov,mpegts"
#: Containers that state their length, in ticks.
TIMED_CONTAINERS, FFMPEG_TICKS_PER_S = ("matroska", "mov"), 1_000_000
#: libsndfile's length of a FLAC stream that does not say its own.
UNKNOWN_FRAMES = 2**63 - 1


class AudioError(ValueError):
    """Audio that cannot be used; the message names it and says why."""


class UndecodableError(ValueError):
    """
    A file that cannot be decoded; the message says why, without the file's name.

    Attributes:
        seconds: length of what was decoded before.
    """

    def __init__(self, reason: str, seconds: float = 0.0):
        super().__init__(" ".join(reason.split()))
        self.seconds = seconds


# ---- waveforms -------------------------------------------------------------------------------------------------------


def load_waveform(
    audio: Any, sampling_rate: int | None = None, target_rate: int = SAMPLING_RATE_HZ, name: str | None = None
) -> np.ndarray:
    """
    Decode, mix down and resample one recording.

    Args:
        audio: a waveform (numpy, torch or list; `(samples,)`, `(channels, samples)` or `(samples, channels)`; float
            in [-1, 1] or integer), a path, a `file://`, `http(s)://`, `hf://` or `data:audio/…;base64,` URL, encoded bytes,
            or a `datasets` audio dict or decoder.
        sampling_rate: rate of a bare waveform in Hz; `target_rate` where it is not given.
        target_rate: rate of the result in Hz.
        name: the recording's name in errors; a path or URL names itself.

    Returns:
        float32 waveform of shape `(samples,)`, at least one sample.

    Raises:
        FileNotFoundError: the file is not there.
        AudioError: it is empty, corrupt, holds NaN or infinity, or is of a kind that is not audio.
    """
    if isinstance(audio, (str, os.PathLike)):
        location = str(os.fspath(audio))
        name = _name_of(location)
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
    check_samples(waveform, name)
    return _resample(_mix_down(waveform, name), rate, target_rate, name)


def _load_audio_dict(audio: dict[str, Any], target_rate: int, name: str | None) -> np.ndarray:
    name = _name_of(str(audio.get("path") or name or "audio"))
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
    """Return the mean of a file's channels, `(samples,)` float32, and its rate in Hz."""
    if not data:
        raise AudioError(f"{name}: the file is empty (0 bytes).")
    blocks: list[np.ndarray] = []
    rate = samples = 0
    try:
        for block in decoded_blocks(io.BytesIO(data)):
            rate, channels = block.rate, block.samples.shape[1]
            claimed = round(block.declared_s * rate)
            samples += block.samples.size
            if claimed * channels > MAX_SAMPLES:
                raise _too_long(name, f"claims {claimed} samples in {channels} channels")
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
        f"{name}: {claim}, more than the {MAX_SAMPLES} that are decoded at once, or its header is damaged. `audiollm "
        "transcribe` and `audiollm summarize` take recordings of any length."
    )


def _as_float(audio: Any, name: str) -> np.ndarray:
    """Return a waveform of any numeric kind as float32; integers are scaled by their type's range."""
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
    """Return integers as float32 in [-1, 1): signed ones by their full scale, unsigned ones (8-bit wav) around it."""
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


def check_samples(waveform: np.ndarray, name: str, first: int = 0) -> None:
    """Raise AudioError unless there are samples, finite and in range; `first` is the number of the first."""
    if waveform.size == 0:
        raise AudioError(f"{name}: holds no samples.")
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise AudioError(f"{name}: sample {first + bad} is {waveform.flat[bad]}; audio must be finite.")
    peak = float(np.abs(waveform).max())
    if peak > MAX_FLOAT_AMPLITUDE:
        raise AudioError(
            f"{name}: floating-point samples reach {peak:.0f}; expected [-1, 1]. Pass integers as they are, or divide "
            "16-bit values by 32768."
        )


def _mix_down(waveform: np.ndarray, name: str) -> np.ndarray:
    """Return the mean of all channels, `(samples,)`; the shorter of two axes holds the channels."""
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


def check_rate(rate: Any, name: str) -> None:
    """Raise AudioError unless a sampling rate is one that recordings have."""
    is_number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not is_number or not MIN_SAMPLING_RATE_HZ <= rate <= MAX_SAMPLING_RATE_HZ:
        raise AudioError(
            f"{name}: the sampling rate is {rate!r}; expected {MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz."
        )


def _resample(waveform: np.ndarray, rate: Any, target_rate: int, name: str) -> np.ndarray:
    check_rate(rate, name)
    if waveform.size * (target_rate / rate) > MAX_SAMPLES:
        raise _too_long(name, f"lasts {waveform.size / rate:.0f} s, which at {target_rate} Hz is more samples")
    if rate != target_rate:
        resampled = soxr.resample(waveform, rate, target_rate)
        # A sample or two at a high rate may round to none at a lower one.
        waveform = resampled if resampled.size else waveform[:1]
    return np.ascontiguousarray(waveform, dtype=np.float32)


# ---- bytes of a path or URL ------------------------------------------------------------------------------------------


def scheme_of(location: str) -> str:
    """Return the protocol of a URL, in small letters; empty for a path."""
    return location.partition("://")[0].lower() if "://" in location else ""


def read_bytes(location: str) -> bytes:
    """
    Return the bytes of a path or URL.

    Raises:
        FileNotFoundError: it is not there.
        AudioError: it is a folder, is too large, or the URL cannot be read.
    """
    if _is_data_url(location):
        return _read_data_url(location)
    path = location
    if scheme := scheme_of(location):
        if scheme != "file":
            return _read_remote(location)
        try:
            path = url2pathname(urlparse(location).path)
        except ValueError as error:
            raise AudioError(f"{location}: is not a URL ({error}).") from error
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"Audio file {location!r} does not exist.")
    if not os.path.isfile(path):
        raise AudioError(f"Audio file {location!r} is not a file.")
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise _too_large(location)
    with open(path, "rb") as file:
        return file.read()


def _is_data_url(location: str) -> bool:
    return location[: len(DATA_SCHEME)].lower() == DATA_SCHEME


def _name_of(location: str) -> str:
    """Return the name of a location in errors; a `data:` URL goes by its media type, without its data."""
    if not _is_data_url(location):
        return location
    media_type = location[len(DATA_SCHEME) : max(location.find(","), 0)].partition(";")[0].strip().lower()
    return f"data: URL of {media_type[:SHOWN_CHARACTERS] or 'no media type'}"


def _read_data_url(url: str) -> bytes:
    name = _name_of(url)
    header, _, data = url.partition(",")
    if not data or not header.lower().endswith(BASE64_MARK):
        raise AudioError(
            f"{name}: expected data:audio/wav;base64, or another audio type, and a file's bytes in base64."
        )
    try:
        return base64.b64decode(unquote(data) if "%" in data else data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"{name}: what follows the comma is no base64 ({error}).") from error


def _read_remote(url: str) -> bytes:
    content = bytearray()
    with open_remote(url) as remote:
        while chunk := remote.read(CHUNK_BYTES):
            content += chunk
            if len(content) > MAX_FILE_BYTES:
                raise _too_large(url)
    return bytes(content)


@contextmanager
def open_remote(url: str) -> Iterator[Any]:
    """
    Open a remote recording as a file to read from its start.

    Raises:
        FileNotFoundError: it is not there.
        AudioError: the protocol is none of `REMOTE_SCHEMES`, or it cannot be read.
    """
    scheme = scheme_of(url)
    if scheme not in REMOTE_SCHEMES:
        expected = ", ".join(f"{each}://" for each in REMOTE_SCHEMES)
        raise AudioError(
            f"{url}: cannot be read (Protocol not known: {scheme}); expected a path, or one of {expected}."
        )
    try:
        # Not fsspec.open, which would follow `::` within the URL to protocols that are not allowed.
        options = {"block_size": 0} if scheme in STREAMED_SCHEMES else {}
        with fsspec.filesystem(scheme).open(url, "rb", **options) as remote:
            yield remote
    except AudioError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Audio {url!r} cannot be found or reached.") from error
    except Exception as error:  # each protocol's library has its own kinds
        raise AudioError(f"{url}: cannot be read ({type(error).__name__}: {error}).") from error


def _too_large(location: str) -> AudioError:
    return AudioError(
        f"{location}: is larger than the {MAX_FILE_BYTES} bytes that are read at once. `audiollm transcribe` and "
        "`audiollm summarize` take recordings of any length."
    )


# ---- decoding by blocks ----------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Part of a recording: samples `(frames, channels)`, their rate in Hz, and the length in seconds that the file states."""

    samples: np.ndarray
    rate: int
    declared_s: float


class ForwardSoundFile(soundfile.SoundFile):
    """A file in which soundfile does not seek after each read: MP3's decoders would lose their state."""

    def seekable(self) -> bool:
        return False


def decoded_blocks(file: BinaryIO) -> Iterator[Block]:
    """
    Decode a file block by block, in memory that does not grow with its length.

    A file whose end is missing is decoded as far as it goes; `audiollm validate` finds such files.

    Args:
        file: open for reading, at its start; at least one byte.

    Raises:
        UndecodableError: it is corrupt or not audio. What is wrong further on is found when it is reached.
    """
    try:
        decoder = ForwardSoundFile(file)
    except soundfile.LibsndfileError as error:
        yield from _container_blocks(file, error.error_string)
        return
    with decoder:
        if decoder.frames == UNKNOWN_FRAMES:
            yield from _container_blocks(file, "It is a FLAC stream that does not say its length.", "flac")
            return
        rate, read = decoder.samplerate, 0
        size = max(1, BLOCK_SAMPLES // decoder.channels)
        try:
            while len(samples := decoder.read(size, dtype="float32", always_2d=True)):
                read += len(samples)
                yield Block(samples, rate, decoder.frames / rate)
        except soundfile.LibsndfileError as error:
            raise UndecodableError(f"corrupt after {read / rate:.2f} s ({error.error_string})", read / rate) from error


def _container_blocks(file: BinaryIO, reason: str, formats: str = CONTAINER_FORMATS) -> Iterator[Block]:
    """Decode what libsndfile does not read, for `reason`, by these demuxers of FFmpeg, where PyAV is installed."""
    try:
        import av
    except ImportError as error:
        raise UndecodableError(
            f"not a format that libsndfile reads, or corrupt ({reason}) For m4a, mp4 and webm install PyAV: "
            "pip install 'audiollm[containers]'."
        ) from error
    file.seek(0)
    seconds = declared_s = 0.0
    try:
        with av.open(file, options={"format_whitelist": formats}) as opened:
            container: Any = opened
            if not container.streams.audio:
                raise UndecodableError("the file holds no audio stream.")
            declared_s = _declared_seconds(container)
            # The resampler refuses blocks of another rate or layout. Its output is interleaved, because PyAV 18 reads past
            # the end of planes where there are eight of them.
            to_float = av.AudioResampler(format="flt")
            for frame in container.decode(audio=0):
                for part in to_float.resample(frame):
                    samples = part.to_ndarray().reshape(-1, part.layout.nb_channels)
                    seconds += len(samples) / frame.sample_rate
                    yield Block(samples, frame.sample_rate, declared_s)
    except UndecodableError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, IndexError) as error:  # PyAV's own on damaged files
        raise UndecodableError(
            f"corrupt, or not audio: neither libsndfile ({reason}) nor PyAV ({error}) reads it.", seconds
        ) from error
    if not seconds:
        raise UndecodableError("the audio stream holds no samples.")


def _declared_seconds(container: Any) -> float:
    """Return the length that a container states for its audio; 0 where it states none."""
    if not any(kind in container.format.name for kind in TIMED_CONTAINERS):
        return 0.0
    stream = container.streams.audio[0]
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # The longest stream's, which says something about the audio where it is the only one.
    return (container.duration or 0) / FFMPEG_TICKS_PER_S if len(container.streams) == 1 else 0.0
