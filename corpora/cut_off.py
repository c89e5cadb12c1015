"""Recordings whose end is missing, such as downloads that broke off, as far as their formats can tell."""

from typing import Literal

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


def is_cut_off(data, seconds: float, declared_s: float) -> bool:
    """
    Return whether a file lacks its end.

    Args:
        data: its bytes, in memory or mapped.
        seconds: length of what was decoded.
        declared_s: length that the file states; 0 where it states none.
    """
    is_exact = any(data[: len(magic)] == magic for magic in EXACT_MAGICS)
    least = _stated(data, declared_s) - (0.0 if is_exact else TOLERANCE_S)
    return seconds < least or _lacks_last_chunk(data) or _lacks_last_ogg_page(data)


def _stated(data, declared_s: float) -> float:
    is_mp3 = any(data[: len(magic)] == magic for magic in MP3_MAGICS)
    says_so = any(tag in data[:MP3_TAG_REACH_BYTES] for tag in MP3_LENGTH_TAGS)
    return 0.0 if is_mp3 and not says_so else declared_s


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
