"""Ogg files with the same bytes whenever they are written: libsndfile draws a stream's serial number at random."""

#: Layout of a page (RFC 3533, section 6), in bytes.
PAGE_MAGIC = b"OggS"
SERIAL, CHECKSUM = slice(14, 18), slice(22, 26)
NUM_SEGMENTS_OFFSET, SEGMENTS_OFFSET = 26, 27
FIXED_SERIAL = (1).to_bytes(4, "little")
CHECKSUM_POLYNOMIAL = 0x04C11DB7


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (CHECKSUM_POLYNOMIAL if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _checksum_table()


def with_fixed_serial(data: bytes) -> bytes:
    """
    An Ogg file of one stream with a serial number of 1, and its pages' checksums to match.

    Raises:
        ValueError: it is not made of whole Ogg pages.
    """
    pages, start = bytearray(data), 0
    while start < len(pages):
        if pages[start : start + 4] != PAGE_MAGIC:
            raise ValueError(f"Expected an Ogg page at byte {start}.")
        segments = pages[start + SEGMENTS_OFFSET : start + SEGMENTS_OFFSET + pages[start + NUM_SEGMENTS_OFFSET]]
        end = start + SEGMENTS_OFFSET + len(segments) + sum(segments)
        page = pages[start:end]
        page[SERIAL], page[CHECKSUM] = FIXED_SERIAL, bytes(4)
        checksum = 0
        for byte in page:
            checksum = ((checksum << 8) & 0xFFFFFFFF) ^ _TABLE[(checksum >> 24) ^ byte]
        page[CHECKSUM] = checksum.to_bytes(4, "little")
        pages[start:end] = page
        start = end
    return bytes(pages)


__all__ = ["with_fixed_serial"]
