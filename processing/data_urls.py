"""Recordings written out as `data:` URLs (RFC 2397), as programs hand them over that send JSON."""

import base64
import binascii
from urllib.parse import unquote

SCHEME = "data:"
BASE64_MARK = ";base64"
#: Longest URL that is decoded: 100 minutes of 16 kHz wav. Longer recordings are files.
MAX_DATA_URL_CHARACTERS = 1 << 28
#: Media types that recordings have; containers of films and voice messages among them. Without a type anything may be in it.
MEDIA_KINDS = ("audio", "video")
OTHER_MEDIA_TYPES = ("", "application/octet-stream", "application/ogg")
#: Of a media type, in errors.
SHOWN_CHARACTERS = 40


def is_data_url(location: str) -> bool:
    """Whether it is a `data:` URL rather than where something lies."""
    return location[: len(SCHEME)].lower() == SCHEME


def data_url_name(url: str) -> str:
    """What to call a `data:` URL in errors: by its media type, without its data."""
    return f"data: URL of {_media_type(url)[:SHOWN_CHARACTERS] or 'no media type'}"


def read_data_url(url: str) -> bytes:
    """
    The bytes that a `data:` URL holds.

    Raises:
        ValueError: it is not base64, is longer than `MAX_DATA_URL_CHARACTERS`, or holds something else than a recording.
    """
    header, _, data = url.partition(",")
    if not data or not header.lower().endswith(BASE64_MARK):
        raise ValueError("expected data:audio/wav;base64, or another audio type, and then a file's bytes in base64.")
    media_type = _media_type(url)
    if media_type.partition("/")[0] not in MEDIA_KINDS and media_type not in OTHER_MEDIA_TYPES:
        raise ValueError("expected a recording, of a type such as audio/wav or audio/mpeg.")
    if len(url) > MAX_DATA_URL_CHARACTERS:
        raise ValueError(
            f"it is {len(url)} characters long; at most {MAX_DATA_URL_CHARACTERS} are decoded. Pass a file or its bytes."
        )
    try:
        return base64.b64decode(unquote(data) if "%" in data else data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"what follows the comma is no base64 ({error}).") from error


def _media_type(url: str) -> str:
    comma = url.find(",")
    return url[len(SCHEME) : max(comma, 0)].partition(";")[0].strip().lower()


__all__ = ["MAX_DATA_URL_CHARACTERS", "data_url_name", "is_data_url", "read_data_url"]
