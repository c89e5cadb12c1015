"""Anything a user may call audio, as one mono waveform at the model's sampling rate. No torchcodec, no ffmpeg binary."""

import io
import os
from mmap import mmap
from typing import Any, Literal

import numpy as np
import soundfile
import soxr

from .audio_bytes import AudioError, name_of, read_bytes

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
#: FFmpeg demuxers for what libsndfile does not read. Playlists, which could open other files, are not among them.
CONTAINER_FORMATS = "aac,amr,asf,avi,flv,matroska,mov,mpegts"
#: Containers that say how long they are; one whose audio ends this much earlier is cut off.
TIMED_CONTAINERS = ("matroska", "mov")
CUT_OFF_TOLERANCE_S = 0.25
FFMPEG_TICKS_PER_S = 1_000_000
#: Byte order of chunk sizes, and the name of the chunk of samples, by a file's first four bytes.
CHUNKED_FORMATS: dict[bytes, tuple[Literal["little", "big"], bytes]] = {
    b"RIFF": ("little", b"data"),
    b"FORM": ("big", b"SSND"),
}
CHUNKED_HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8
#: Sizes from here on are placeholders of programs that wrote to a pipe and could not know the length.
STREAMED_CHUNK_BYTES = 0x7FFF_0000
#: What an MP3 that says how long it is has near the start of its first frame, after an ID3 tag.
MP3_LENGTH_TAGS, MP3_TAG_REACH_BYTES = (b"Xing", b"Info"), 64
ID3_MAGIC, ID3_HEADER_BYTES, ID3_SIZE_BYTES = b"ID3", 10, slice(6, 10)
#: What libsndfile gives as the length of a FLAC stream that does not say its own.
UNKNOWN_FRAMES = 2**63 - 1
OGG_PAGE_MAGIC = b"OggS"
OGG_FLAGS_OFFSET, OGG_NUM_SEGMENTS_OFFSET, OGG_SEGMENTS_OFFSET = 5, 26, 27
OGG_END_OF_STREAM = 4


class ForwardSoundFile(soundfile.SoundFile):
    """
    A file that is only read onwards, block by block. soundfile seeks to where it is after each read, and decoders of
    MP3 lose their state at that: the next thousand samples are wrong.
    """

    def seekable(self) -> bool:
        """No; so that it is not sought in."""
        return False


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
    """
    Decodes a file's bytes to its channels' mean, `(samples,)` float32, and its rate in Hz.

    A file that lacks its end is refused where its format can tell: wav and aiff by the size of their data, FLAC by its
    last frame, Ogg by its last page, MP3 by a Xing header, MP4 and WebM by their duration. It cannot be told of an MP3
    or AAC stream without such a header that was cut between two frames, of a wav or FLAC that was written to a pipe, or
    where less than `CUT_OFF_TOLERANCE_S` is missing from a WebM.
    """
    if not data:
        raise AudioError(f"{name}: the file is empty (0 bytes).")
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        return _decode_container(data, name, error.error_string)
    with file:
        if file.frames == UNKNOWN_FRAMES:
            return _decode_container(data, name, "It is a FLAC stream that does not say its length.", formats="flac")
        if file.frames * file.channels > MAX_SAMPLES:
            raise _too_long(name, f"claims {file.frames} samples in {file.channels} channels")
        try:
            waveform = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{name}: corrupt or cut off ({error.error_string})") from error
        except (MemoryError, ValueError) as error:  # of a damaged header
            raise AudioError(f"{name}: claims {file.frames} samples, which memory cannot hold.") from error
        rate, lacks_end = file.samplerate, is_cut_off(data, file.format, len(waveform), file.frames)
    if lacks_end:
        raise _cut_off(name, len(waveform) / rate)
    return waveform.mean(axis=1), rate


def _cut_off(name: str, seconds: float) -> AudioError:
    return AudioError(
        f"{name}: the file is cut off: it holds {seconds:.2f} s of audio and ends before its own header or last page "
        "says. Copy or download it again."
    )


def _too_long(name: str, claim: str) -> AudioError:
    return AudioError(
        f"{name}: {claim}, more than the {MAX_SAMPLES} that are decoded at once. `audiollm transcribe` and `audiollm "
        "summarize` take recordings of any length; or the header is damaged."
    )


def is_cut_off(data: bytes | mmap, file_format: str, frames_read: int, frames_declared: int) -> bool:
    """
    Whether a file lacks its end, as far as its format can tell.

    Args:
        data: the file's bytes, in memory or mapped; at least one.
        file_format: libsndfile's name of it.
        frames_read, frames_declared: how many frames libsndfile decoded, and said that there are.
    """
    lacks_frames = frames_read < frames_declared and (file_format != "MP3" or _mp3_says_its_length(data))
    return lacks_frames or _lacks_last_chunk(data) or _lacks_last_ogg_page(data)


def _mp3_says_its_length(data: bytes | mmap) -> bool:
    """Whether an MP3 has a header with its length, rather than one that libsndfile guesses from its size."""
    start = 0
    if data[: len(ID3_MAGIC)] == ID3_MAGIC:
        for byte in data[ID3_SIZE_BYTES]:
            start = start << 7 | byte & 0x7F  # seven bits of each
        start += ID3_HEADER_BYTES
    return any(tag in data[start : start + MP3_TAG_REACH_BYTES] for tag in MP3_LENGTH_TAGS)


def _lacks_last_chunk(data: bytes | mmap) -> bool:
    """Whether a wav or aiff file ends before its chunk of samples does."""
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


def _lacks_last_ogg_page(data: bytes | mmap) -> bool:
    """Whether an Ogg file ends without the page that ends its stream, or within it."""
    if data[: len(OGG_PAGE_MAGIC)] != OGG_PAGE_MAGIC:
        return False
    page = data[data.rfind(OGG_PAGE_MAGIC) :]
    if len(page) < OGG_SEGMENTS_OFFSET:
        return True
    payload = OGG_SEGMENTS_OFFSET + page[OGG_NUM_SEGMENTS_OFFSET]
    page_size = payload + sum(page[OGG_SEGMENTS_OFFSET:payload])
    return len(page) < page_size or not page[OGG_FLAGS_OFFSET] & OGG_END_OF_STREAM


def _decode_container(data: bytes, name: str, reason: str, formats: str = CONTAINER_FORMATS) -> tuple[np.ndarray, int]:
    """Formats that libsndfile does not read (m4a, mp4, webm, …), through PyAV where it is installed."""
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f"{name}: not a format that libsndfile reads, or corrupt ({reason}) For m4a, mp4 and webm install PyAV: "
            "pip install 'audiollm[containers]'."
        ) from error
    try:
        with av.open(io.BytesIO(data), options={"format_whitelist": formats}) as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: the file holds no audio stream.")
            # Blocks of their own rate or layout, of a damaged file, are refused by the resampler.
            blocks, rate = _decode_stream(container, av.AudioResampler(format="flt"), name)
            declared_s = declared_seconds(container)
    except AudioError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, IndexError) as error:  # PyAV's own on damaged files
        raise AudioError(
            f"{name}: corrupt, or not audio: neither libsndfile ({reason}) nor PyAV ({error}) reads it."
        ) from error
    if not blocks:
        raise AudioError(f"{name}: the audio stream holds no samples.")
    waveform = np.concatenate(blocks)
    if len(waveform) < (declared_s - CUT_OFF_TOLERANCE_S) * rate:
        raise _cut_off(name, len(waveform) / rate)
    return waveform, rate


def _decode_stream(container: Any, to_float: Any, name: str) -> tuple[list[np.ndarray], int]:
    """The first audio stream of a PyAV container as blocks of `(samples,)` float32, and its rate in Hz."""
    blocks: list[np.ndarray] = []
    rate = samples = 0
    for frame in container.decode(audio=0):
        rate = frame.sample_rate
        # Interleaved, because PyAV 18 reads past the end of planes where there are eight of them.
        interleaved = [part.to_ndarray().reshape(-1, part.layout.nb_channels) for part in to_float.resample(frame)]
        blocks.extend(part.mean(axis=1) for part in interleaved)
        samples += sum(map(len, interleaved))
        if samples > MAX_SAMPLES:
            raise _too_long(name, "holds more samples")
    return blocks, rate


def declared_seconds(container: Any) -> float:
    """How long a container says that its audio is; 0 where it does not say."""
    if not any(kind in container.format.name for kind in TIMED_CONTAINERS):
        return 0.0
    stream = container.streams.audio[0]
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # The longest stream's, which says something about the audio where it is the only one.
    return (container.duration or 0) / FFMPEG_TICKS_PER_S if len(container.streams) == 1 else 0.0


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


__all__ = ["SAMPLING_RATE_HZ", "AudioError", "declared_seconds", "is_cut_off", "load_waveform", "read_bytes"]
