"""
Large files over HTTP, despite breaks, stalls, mirrors that are gone and wrong bytes.

A file appears under its name complete and verified, or not at all. What has come of it is kept beside it as `*.part` and
continued with HTTP Range, from whichever mirror answers.
"""

import errno
import hashlib
import http.client
import os
import shutil
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from .files import NO_ROOM_ERRORS, naming_the_disk

PART_SUFFIX, REJECTED_SUFFIX = ".part", ".rejected"
BLOCK_BYTES = 1 << 20
SOCKET_TIMEOUT_SECONDS = 60
DOWNLOAD_ATTEMPTS = 5  # in a row that bring little
MIN_PROGRESS_BYTES = 1 << 20  # an attempt that brought this much starts the count again
RETRY_WAIT_SECONDS = 1.0  # doubled with each attempt that brought little
RANGE_NOT_SATISFIABLE = 416
#: Client errors that asking again may change: timeout, too early, too many requests.
PASSING_CLIENT_ERRORS = (408, 425, 429)
LASTING_REASONS = ("CERTIFICATE_VERIFY_FAILED", "unknown url type")


class DownloadError(RuntimeError):
    """A file could not be downloaded; the message names it, says what came of it and what to do."""


class ChecksumError(DownloadError):
    """A file has another checksum than the one expected."""


def download(urls: Sequence[str], target: Path, checksum: str, size: int, progress: bool = True) -> Path:
    """
    Download a file from the first of several mirrors that gives it whole, continuing what an earlier try left.

    A file that is there already is verified. Of two processes that want the same file the second waits.

    Args:
        urls: where the same bytes are, in the order to try.
        target: the file; its folder is made if need be.
        checksum: algorithm and hex digits, as "md5:42e2…" or "sha256:…".
        size: of the file in bytes.
        progress: show a bar on stderr.

    Returns:
        `target`.

    Raises:
        ChecksumError: what came, or was there, is another file; it is kept as `<target>.rejected`.
        OSError: there is no room for it; what has come is kept.
        DownloadError: no mirror gave it; what has come is kept, and running again continues.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, rejected = (target.with_name(target.name + suffix) for suffix in (PART_SUFFIX, REJECTED_SUFFIX))
    failures: list[DownloadError] = []
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            try:
                verify_checksum(target, checksum, f"It was set aside as {rejected.name}: run again.", progress)
            except ChecksumError:
                os.replace(target, rejected)
                raise
            return target
        for url in urls:
            try:
                _from_one_mirror(url, part, rejected, checksum, size, progress)
                os.replace(part, target)
                return target
            except DownloadError as error:
                failures.append(error)
                if progress and len(failures) < len(urls):
                    tqdm.write(f"{error} Trying {urls[len(failures)]}.")
    if len(failures) == 1:
        raise failures[0]
    kind = ChecksumError if any(isinstance(error, ChecksumError) for error in failures) else DownloadError
    reasons = "\n  ".join(map(str, failures))
    raise kind(f"None of {len(urls)} mirrors gave {target.name}:\n  {reasons}") from failures[-1]


def verify_checksum(path: Path, checksum: str, advice: str, progress: bool = False) -> None:
    """Raise ChecksumError, whose message ends in `advice`, where a file is not the one of the checksum."""
    algorithm, _, expected = checksum.partition(":")
    digest, size = hashlib.new(algorithm, usedforsecurity=False), path.stat().st_size
    title, shown = f"Checking {path.name}", {"unit": "B", "unit_scale": True, "leave": False, "disable": not progress}
    with tqdm(total=size, desc=title, **shown) as bar, open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != expected.lower():
        raise ChecksumError(f"{path}: expected {algorithm} {expected}, found {digest.hexdigest()}. {advice}")


# ------------------------------------------------------------------------------------------------------- one mirror


def _from_one_mirror(url: str, part: Path, rejected: Path, checksum: str, size: int, progress: bool) -> None:
    """Fill `part` with all of `url`'s bytes, verified; where what lay there before was to blame, from the start."""
    resumed = _length(part) > 0
    _fill(url, part, size, progress)
    try:
        advice = f"It came from {url}; it is kept as {rejected.name}."
        verify_checksum(part, checksum, advice, progress)
    except ChecksumError:
        os.replace(part, rejected)
        if not resumed:
            raise
        _from_one_mirror(url, part, rejected, checksum, size, progress)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fill(url: str, part: Path, size: int, progress: bool) -> None:
    """Fill `part` with all of `url`'s bytes, however many attempts that takes while they bring something."""
    if _length(part) > size:
        part.unlink()
    name, failures = part.name.removesuffix(PART_SUFFIX), 0
    with tqdm(total=size, unit="B", unit_scale=True, desc=name, disable=not progress) as bar:
        while True:
            offset = _length(part)
            if offset == size:
                return
            try:
                _receive(url, part, offset, size, bar)
                return
            except (OSError, EOFError, http.client.HTTPException) as error:  # a reset, a timeout, a short body
                code, reason = getattr(error, "code", 0), str(getattr(error, "reason", error))
                if code == RANGE_NOT_SATISFIABLE and offset:
                    return  # nothing lies past our part: it is complete, or wrong, as its checksum will tell
                if getattr(error, "errno", None) in NO_ROOM_ERRORS:
                    raise
                is_refused = 400 <= code < 500 and code not in PASSING_CLIENT_ERRORS
                if is_refused or any(lasting in reason for lasting in LASTING_REASONS):
                    raise DownloadError(f"Downloading {url} failed: {error}.") from error
                cause = error
            brought = _length(part) - offset
            failures = 1 if brought >= MIN_PROGRESS_BYTES else failures + 1
            if failures >= DOWNLOAD_ATTEMPTS:
                raise DownloadError(
                    f"Downloading {url} failed {failures} times, last by: {cause}. {offset + brought} bytes are kept in "
                    f"{part}: run again to continue from there."
                ) from cause
            time.sleep(0 if brought else RETRY_WAIT_SECONDS * 2 ** (failures - 1))


def _receive(url: str, part: Path, offset: int, size: int, bar: tqdm) -> None:
    """Append one answer to `part` from `offset`, or rewrite it when the server does not honour Range."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    with urllib.request.urlopen(request, timeout=SOCKET_TIMEOUT_SECONDS) as response:
        honoured = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if honoured and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink(missing_ok=True)
            raise EOFError(f"the server answered with other bytes than those from {offset} on")
        offset = offset if honoured else 0
        total = offset + int(response.headers.get("Content-Length") or size - offset)
        if total != size:
            raise DownloadError(f"{url} holds {total} bytes; expected {size}: another file.")
        if size - offset > (free := shutil.disk_usage(part.parent).free):
            needed = f"{size - offset} more bytes are needed, and the disk has {free} left: make room and run again"
            raise OSError(errno.ENOSPC, needed, str(part))
        bar.n = bar.initial = offset
        bar.refresh()
        with naming_the_disk(part), open(part, "r+b" if honoured else "wb") as file:
            file.seek(offset)
            while block := response.read1(BLOCK_BYTES):  # what has come, so that a stall loses nothing of it
                offset += len(block)
                if offset > size:
                    raise EOFError(f"the server sent more than the {size} bytes of the file")
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        if offset < size:
            raise EOFError(f"the connection closed after {offset} of {size} bytes")
