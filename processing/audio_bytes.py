"""The bytes of a recording that a path or URL names: from places that recordings are kept in, and no more than memory takes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import fsspec

from .data_urls import data_url_name, is_data_url, read_data_url

#: Where recordings may be fetched from. Other protocols of fsspec reach into this machine, or into each other.
REMOTE_SCHEMES = ("http", "https", "hf", "s3", "gs", "gcs", "az", "abfs")
#: Of these a stream is read, so that what comes is counted as it comes: compressed in transit, it may be more than was said.
STREAMED_SCHEMES = ("http", "https")
#: Largest file that is read into memory: 4 GiB, 37 hours of 16 kHz wav.
MAX_FILE_BYTES = 1 << 32
CHUNK_BYTES = 1 << 20


class AudioError(ValueError):
    """Audio that cannot be used; the message names it and says why."""


def scheme_of(location: str) -> str:
    """The protocol of a URL, in small letters; empty for a path."""
    return location.partition("://")[0].lower() if "://" in location else ""


def name_of(location: str) -> str:
    """What to call it in errors: by where it lies, but never by a recording's own bytes."""
    return data_url_name(location) if is_data_url(location) else location


def read_bytes(location: str) -> bytes:
    """
    The bytes of a path or URL.

    Raises:
        FileNotFoundError: it is not there.
        AudioError: it is a folder, is too large, or the URL cannot be read.
    """
    if is_data_url(location):
        try:
            return read_data_url(location)
        except ValueError as error:
            raise AudioError(f"{data_url_name(location)}: {error}") from error
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
    A remote recording as a file to be read onwards, in pieces of any size up to the one asked for.

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


__all__ = ["REMOTE_SCHEMES", "AudioError", "name_of", "open_remote", "read_bytes", "scheme_of"]
