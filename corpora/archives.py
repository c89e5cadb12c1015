"""
Members of an archive, one after the other, read without unpacking anything to disk and without trusting a byte of it.

What would leave a folder, is a link or a device, is too large, or grows out of proportion is refused by its name, and so
is an archive that is damaged or cut off; nothing of an archive ends early in silence.
"""

import gzip
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .clips import CorpusError

BLOCK_BYTES = 1 << 20
GZIP_MAGIC, ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"
#: What a tar file says at this place.
TAR_MAGIC, TAR_MAGIC_OFFSET = b"ustar", 257
DRIVE_LETTER = re.compile(r"[A-Za-z]:")
#: Bits of a zip member's flags and attributes: encrypted, and where a Unix file mode stands.
ZIP_ENCRYPTED_FLAG, ZIP_MODE_SHIFT = 0x1, 16
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError)


class ArchiveError(CorpusError):
    """An archive that cannot be read to its end, or must not be; the message names it and the member."""


@dataclass(frozen=True)
class ArchiveLimits:
    """
    How far an archive is trusted.

    Attributes:
        member_bytes: largest member; ten hours of 16 kHz FLAC are about 600 MB, a corpus' clip a thousandth of that.
        header_bytes: most that may lie between two members; long names and their like take a few hundred bytes.
        expansion: times that all members together may exceed the archive; FLAC in gzip stays at 1, text at 4.
        free_bytes: what a small archive may grow to all the same.
    """

    member_bytes: int = 1 << 30
    header_bytes: int = 1 << 20
    expansion: int = 100
    free_bytes: int = 16 << 20

    def total_bytes(self, archive: Path) -> int:
        """Most that an archive may hold."""
        return max(self.free_bytes, self.expansion * archive.stat().st_size)


def iterate(
    archive: str | os.PathLike[str],
    wanted: Callable[[str], bool] = lambda name: True,
    limits: ArchiveLimits | None = None,
) -> Iterator[tuple[str, bytes]]:
    """
    Name and bytes of the files in a tar, tar.gz or zip archive, in the archive's own order.

    Args:
        archive: told by its first bytes, not by its name.
        wanted: which names to yield; of the others the bytes are passed over, but all are checked.
        limits: how far it is trusted.

    Raises:
        FileNotFoundError: there is no such archive.
        ArchiveError: it is no archive, is damaged or cut off, or holds what must not be unpacked: absolute paths and
            those with `..`, links, devices, more than the limits allow. What came before it was good.
    """
    path, limits = Path(archive), limits or ArchiveLimits()
    if not path.is_file():
        raise FileNotFoundError(f"Archive {str(archive)!r} does not exist.")
    with open(path, "rb") as file:
        start = file.read(TAR_MAGIC_OFFSET + len(TAR_MAGIC))
        file.seek(0)
        if start.startswith(ZIP_MAGIC):
            yield from _zip_members(path, file, wanted, limits)
        elif start.startswith(GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield from _tar_members(path, unzipped, wanted, limits)
        elif start[TAR_MAGIC_OFFSET:] == TAR_MAGIC:
            yield from _tar_members(path, file, wanted, limits)
        else:
            raise ArchiveError(f"{path} is no archive that can be read here; expected tar, tar.gz or zip.")


def checked_name(path: Path, name: str) -> str:
    """
    A member's name, if it stays inside whatever folder it would be unpacked to.

    Raises:
        ArchiveError: it is absolute, climbs out by `..`, is empty, or holds a NUL.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or DRIVE_LETTER.match(plain):
        raise _refused(path, name, "its path is absolute")
    if ".." in plain.split("/"):
        raise _refused(path, name, "its path leads out of the archive's folder")
    if not plain.strip("/") or "\0" in plain:
        raise _refused(path, name, "its name is empty or holds a NUL")
    return name


def _refused(path: Path, name: str, reason: str) -> ArchiveError:
    return ArchiveError(f"Archive {path} is refused at member {name!r}: {reason}.")


def _damaged(path: Path, name: str, error: object) -> ArchiveError:
    where = f"at member {name!r}" if name else "at its start"
    return ArchiveError(f"Archive {path} is damaged {where}: {error}; delete it and download it again.")


# -------------------------------------------------------------------------------------------------------------- tar


class _ForwardReader:
    """A stream for `tarfile` that is read forwards only, and no further than is allowed."""

    def __init__(self, path: Path, stream: BinaryIO | gzip.GzipFile, limits: ArchiveLimits):
        self.path, self.stream = path, stream
        self.total_bytes = limits.total_bytes(path)
        self.position = self.allowed_to = 0
        self.last_block, self.last_member = b"", ""

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        if position < self.position:
            raise tarfile.ReadError("its members overlap")
        while self.position < position and self.read(min(BLOCK_BYTES, position - self.position)):
            pass
        return self.position

    def read(self, size: int) -> bytes:
        if size < 0 or self.position + size > self.allowed_to:
            raise _refused(self.path, self.last_member, f"the header after it claims {size} bytes")
        self.last_block = self.stream.read(size)
        self.position += len(self.last_block)
        if self.position > self.total_bytes:
            raise _refused(
                self.path, self.last_member, f"there the archive has grown out of proportion, to {self.position} bytes"
            )
        return self.last_block


def _tar_members(
    path: Path, stream: BinaryIO | gzip.GzipFile, wanted: Callable[[str], bool], limits: ArchiveLimits
) -> Iterator[tuple[str, bytes]]:
    reader = _ForwardReader(path, stream, limits)
    try:
        reader.allowed_to = limits.header_bytes
        # It reads the first header at once. The stream is none to mypy: it has the three methods that are used.
        tar = tarfile.TarFile(fileobj=reader, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while (member := tar.next()) is not None:
            reader.last_member = member.name
            _check_tar_member(path, member, limits)
            reader.allowed_to = member.offset_data + max(member.size, 0)
            reader.seek(member.offset_data)
            if member.isfile() and wanted(member.name):
                data = reader.read(member.size)
                if len(data) < member.size:
                    raise EOFError(f"it ends after {len(data)} of {member.size} bytes")
                yield member.name, data
            else:
                reader.seek(member.offset_data + member.size)
            tar.members = []  # type: ignore[attr-defined]  # or it would keep a record of every member
            reader.allowed_to = reader.position + limits.header_bytes
        if reader.last_block.strip(b"\0") or not reader.last_block:
            raise EOFError("what follows it is no tar header" if reader.last_block else "it is cut off after it")
        while reader.last_block:  # what pads the end; the checksum of gzip stands behind it
            reader.allowed_to = reader.position + BLOCK_BYTES
            reader.read(BLOCK_BYTES)
    except ArchiveError:
        raise
    except (*DAMAGE, ValueError, RecursionError) as error:
        raise _damaged(path, reader.last_member, error) from error


def _check_tar_member(path: Path, member: tarfile.TarInfo, limits: ArchiveLimits) -> None:
    checked_name(path, member.name)
    if member.issym() or member.islnk():
        raise _refused(path, member.name, f"it is a link, to {member.linkname!r}")
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise _refused(path, member.name, "it is neither a file nor a folder")
    if not 0 <= member.size <= limits.member_bytes:
        raise _refused(path, member.name, f"it has {member.size} bytes; expected at most {limits.member_bytes}")


# -------------------------------------------------------------------------------------------------------------- zip


def _zip_members(
    path: Path, file: BinaryIO, wanted: Callable[[str], bool], limits: ArchiveLimits
) -> Iterator[tuple[str, bytes]]:
    name, total = "", 0
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = checked_name(path, info.orig_filename)
                total += info.file_size
                _check_zip_member(path, info, total, limits)
                if info.is_dir() or not wanted(name):
                    continue
                with archive.open(info) as member:
                    data = member.read(info.file_size + 1)
                if len(data) != info.file_size:
                    raise EOFError(f"it has {len(data)} bytes instead of {info.file_size}")
                yield name, data
    except ArchiveError:
        raise
    except (*DAMAGE, ValueError, RuntimeError) as error:
        raise _damaged(path, name, error) from error


def _check_zip_member(path: Path, info: zipfile.ZipInfo, total: int, limits: ArchiveLimits) -> None:
    kind = stat.S_IFMT(info.external_attr >> ZIP_MODE_SHIFT)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(path, info.filename, "it is a link or a device")
    if info.flag_bits & ZIP_ENCRYPTED_FLAG or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(path, info.filename, "it is encrypted, or packed by other means than deflate")
    if info.file_size > limits.member_bytes:
        raise _refused(path, info.filename, f"it has {info.file_size} bytes; expected at most {limits.member_bytes}")
    if total > limits.total_bytes(path):
        raise _refused(path, info.filename, f"there the archive has grown out of proportion, to {total} bytes")


__all__ = ["ArchiveError", "ArchiveLimits", "checked_name", "iterate"]
