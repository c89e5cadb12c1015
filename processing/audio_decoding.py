"""
Encoded recordings as blocks of samples, and whether a file lacks its end: what reads them whole, what transcribes hours of
them and what measures them all decode alike.
"""

from collections.abc import Iterator
from mmap import mmap
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile

#: Samples, of all channels together, that are decoded at once.
BLOCK_SAMPLES = 1 << 18
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
UNKNOWN_LENGTH = "It is a FLAC stream that does not say its length."
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


class UndecodableError(ValueError):
    """
    A file that cannot be decoded, to its end or at all; the message says why, without the file's name.

    Attributes:
        is_cut_off: it lacks its end.
        seconds: how much of it was decoded before that was found, or is there.
        declared_s: how long it says that it is; 0 where it does not.
    """

    def __init__(self, reason: str, seconds: float = 0.0, is_cut_off: bool = False, declared_s: float = 0.0):
        super().__init__(" ".join(reason.split()))
        self.is_cut_off, self.seconds, self.declared_s = is_cut_off, seconds, declared_s


class Block(NamedTuple):
    """
    Part of a recording.

    Attributes:
        samples: float32 of shape `(frames, channels)`, as stored.
        rate: in Hz.
        declared_s: how long the file says that the whole is, in seconds; 0 where it does not.
    """

    samples: np.ndarray
    rate: int
    declared_s: float


def decoded_blocks(file: BinaryIO, data: bytes | mmap) -> Iterator[Block]:
    """
    Decodes a file block by block, in memory that does not grow with its length.

    A file that lacks its end is refused where its format can tell, before the first block if it can tell then: wav and
    aiff by the size of their data, FLAC by its last frame, Ogg by its last page, MP3 by a Xing header, MP4 and WebM by
    their duration. It cannot be told of an MP3 or AAC stream without such a header that was cut between two frames, of a
    wav or FLAC that was written to a pipe, or where less than `CUT_OFF_TOLERANCE_S` is missing from a WebM.

    Args:
        file: open for reading, at its start.
        data: the same bytes, in memory or mapped; at least one.

    Raises:
        UndecodableError: it is corrupt, cut off or not audio. What is wrong further on is found when it is reached.
    """
    try:
        decoder = ForwardSoundFile(file)
    except soundfile.LibsndfileError as error:
        yield from container_blocks(file, error.error_string)
        return
    with decoder:
        if decoder.frames == UNKNOWN_FRAMES:
            yield from container_blocks(file, UNKNOWN_LENGTH, "flac")
            return
        declared, rate, read = decoder.frames, decoder.samplerate, 0
        declared_s = declared / rate
        if is_cut_off(data, decoder.format, declared, declared):
            raise cut_off(declared_s, declared_s)
        size = max(1, BLOCK_SAMPLES // decoder.channels)
        try:
            while len(samples := decoder.read(size, dtype="float32", always_2d=True)):
                read += len(samples)
                yield Block(samples, rate, declared_s)
        except soundfile.LibsndfileError as error:
            seconds = read / rate
            reason = f"corrupt or cut off after {seconds:.2f} s ({error.error_string})"
            raise UndecodableError(reason, seconds, declared_s=declared_s) from error
        if is_cut_off(data, decoder.format, read, declared):
            raise cut_off(read / rate, declared_s)


def container_blocks(file: BinaryIO, reason: str, formats: str = CONTAINER_FORMATS) -> Iterator[Block]:
    """
    Decodes formats that libsndfile does not read (m4a, mp4, webm, ...) block by block, through PyAV where it is installed.

    Args:
        file: open for reading; read from its start.
        reason: why libsndfile does not read it.
        formats: demuxers of FFmpeg that may be tried.

    Raises:
        UndecodableError: PyAV is not there or does not read it either, or it lacks its end.
    """
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
            declared_s = declared_seconds(container)
            # Blocks of their own rate or layout, of a damaged file, are refused by the resampler. Its output is
            # interleaved, because PyAV 18 reads past the end of planes where there are eight of them.
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
    if seconds < declared_s - CUT_OFF_TOLERANCE_S:
        raise cut_off(seconds, declared_s)


def cut_off(seconds: float, declared_s: float) -> UndecodableError:
    """The error of a file that lacks its end, of which `seconds` are there."""
    said = f" ({declared_s:.2f} s)" if declared_s > seconds else ""
    return UndecodableError(
        f"the file is cut off: it holds {seconds:.2f} s of audio and ends before its own header or last page says{said}. "
        "Copy or download it again.",
        seconds,
        is_cut_off=True,
        declared_s=declared_s,
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


def declared_seconds(container: Any) -> float:
    """How long a container says that its audio is; 0 where it does not say."""
    if not any(kind in container.format.name for kind in TIMED_CONTAINERS):
        return 0.0
    stream = container.streams.audio[0]
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # The longest stream's, which says something about the audio where it is the only one.
    return (container.duration or 0) / FFMPEG_TICKS_PER_S if len(container.streams) == 1 else 0.0


__all__ = [
    "Block",
    "ForwardSoundFile",
    "UndecodableError",
    "container_blocks",
    "cut_off",
    "declared_seconds",
    "decoded_blocks",
    "is_cut_off",
]
