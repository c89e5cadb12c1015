"""Handling of files by all commands: written whole or not at all, journals, full disks, checksums, audio suffixes."""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from safetensors import SafetensorError

_AUDIO_ENDINGS = (
    "wav flac mp3 ogg opus oga m4a mp4 aac aif aiff aifc au snd caf w64 rf64 webm mka mkv mov wma amr 3gp sph g722"
)
#: Suffixes of audio files. Where a list of recordings leaves the suffix out, the first that exists is taken.
AUDIO_SUFFIXES = tuple(f".{ending}" for ending in _AUDIO_ENDINGS.split())
#: Suffix of a file that is being written.
PARTIAL_SUFFIX = ".partial"
BLOCK_BYTES = 1 << 20
#: No space left, quota exceeded, file too large.
NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GOES_ON = "what is done is kept: make room, and the same command goes on"
#: Messages of safetensors, which quotes the system's error, and of torch, which does not.
SYSTEM_ERROR = re.compile(r"I/O error: .*\(os error (\d+)\)")
TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container")

StrPath = str | os.PathLike[str]


def is_audio(name: StrPath) -> bool:
    """Return True where a file's name ends as an audio file's does."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def is_inside(path: StrPath, folder: StrPath) -> bool:
    """Return True where `path` lies below `folder`, by name: links are not resolved, `..` is."""
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))


def sha256_of(source: StrPath | bytes) -> str:
    """Return the SHA-256 of a file, or of bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else open(source, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------- written whole or not at all


def partial_path(path: StrPath, tag: str = "") -> Path:
    """Return the name that a file has while it is written: hidden, beside its place."""
    path = Path(path)
    return path.with_name(f".{path.name}{tag and '.'}{tag}{PARTIAL_SUFFIX}")


@contextmanager
def written(path: StrPath, mode: str = "w", tag: str | None = None, **options: Any) -> Iterator[IO[Any]]:
    """
    Open a file to write that takes its place when the block ends, and is removed if the block raises.

    Readers see the former file or the whole new one. The folder is made if need be. No link is followed.

    Args:
        path: The place of the file.
        mode: "w" for text in UTF-8 with "\\n" at line ends, or "wb".
        tag: Part of the temporary name. By default it names the process and thread, so that several may write the same
            file. With "" the next run replaces what a kill has left, and the caller keeps other processes away.
        **options: Options of `open`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path, f"{os.getpid()}-{threading.get_ident()}" if tag is None else tag)
    partial.unlink(missing_ok=True)
    if "b" not in mode:
        options = {"encoding": "utf-8", "newline": "\n"} | options
    try:
        with open(partial, mode.replace("w", "x"), **options) as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: StrPath, content: str | bytes, tag: str | None = None) -> None:
    """Write a file as [`written`] does."""
    with written(path, "w" if isinstance(content, str) else "wb", tag) as file:
        file.write(content)


def write_json(path: StrPath, value: Any, tag: str | None = None) -> None:
    """Write a value as indented JSON, as [`written`] does."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", tag)


@contextmanager
def appearing_whole(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output` that replaces it when the block ends, or is removed if the block fails."""
    partial = partial_path(output, str(os.getpid()))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# ------------------------------------------------------------------------------------------------------------ journals


class JournalError(ValueError):
    """A whole line of a journal is no JSON object. The message names file, line, and what to do."""


class JournalLine(NamedTuple):
    """One whole line of a journal, its number counted from 1, its bytes in the file, and its object if it is one."""

    number: int
    start: int
    end: int
    entry: dict[str, Any] | None


class Journal:
    """
    Append-only file of JSON objects, one a line.

    A last line without its end was torn by a kill or a full disk. Reading ignores it, and writing removes it first.
    Processes that write to one journal wait for each other. The first [`append`] makes the file and its folder.
    """

    def __init__(self, path: StrPath):
        self.path = Path(path)

    def lines(self, start: int = 0) -> Iterator[JournalLine]:
        """Yield the whole lines, corrupt ones included, from byte `start` on; line numbers count from there."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(start)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield JournalLine(number, start, start + len(line), _parsed(line))
                start += len(line)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield every object; JournalError where a line is corrupt."""
        for line in self.lines():
            if line.entry is None:
                raise JournalError(f"{self.path}: line {line.number} is no JSON object. Remove the line or the file.")
            yield line.entry

    def at(self, start: int) -> dict[str, Any]:
        """Return the object of the line that begins at byte `start`."""
        with open(self.path, "rb") as file:
            file.seek(start)
            return _parsed(file.readline()) or {}

    def mend(self, is_good: Callable[[dict[str, Any]], bool] = lambda entry: True) -> int:
        """Cut the file off before the first line that is torn, corrupt or not good; return the number of lines left."""
        if not self.path.exists():
            return 0
        kept = end = 0
        for line in self.lines():
            if line.entry is None or not is_good(line.entry):
                break
            kept, end = line.number, line.end
        os.truncate(self.path, end)
        return kept

    def append(self, entries: Iterable[dict[str, Any]], sync: bool = True) -> None:
        """Write objects to the end of the file; with `sync`, they survive a power cut from when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: what another process is writing is not torn
            end = file.seek(0, os.SEEK_END)
            torn = b""
            while end and b"\n" not in torn:
                start = max(end - BLOCK_BYTES, 0)
                file.seek(start)
                torn, end = file.read(end - start), start
            file.truncate(end + torn.rfind(b"\n") + 1)
            file.write(b"".join(json.dumps(entry, ensure_ascii=True).encode() + b"\n" for entry in entries))
            file.flush()
            if sync:
                os.fsync(file.fileno())


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


# ---------------------------------------------------------------------------------------------------------- full disks


@contextmanager
def naming_the_disk(folder: str | os.PathLike[str], advice: str = GOES_ON) -> Iterator[None]:
    """Make an error about lack of space, of safetensors or torch too, an OSError that names the folder and the advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM_ERRORS or "make room" in str(error).lower():
            raise  # another error, or one that has the advice already
        raise _no_room(error.errno, error.filename2 or error.filename or folder, advice) from error
    except SafetensorError as error:
        said = SYSTEM_ERROR.search(str(error))
        if said is None:
            raise
        if int(said[1]) in NO_ROOM_ERRORS:
            raise _no_room(int(said[1]), folder, advice) from error
        raise OSError(int(said[1]), os.strerror(int(said[1])), str(folder)) from error
    except RuntimeError as error:
        if not TORCH_WRITER.search(str(error)):
            raise
        reason = f"a file could not be written to its end, as where there is no room; {advice}"
        raise OSError(errno.EIO, reason, str(folder)) from error


def _no_room(number: int, path: str | bytes | os.PathLike[str], advice: str) -> OSError:
    reason = f"there is no room left ({os.strerror(number)}); {advice}. It was writing to"
    return OSError(number, reason, os.fsdecode(path))


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Create a folder if needed and return it; raise OSError where no files can be created in it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written to this folder", str(folder))
    return folder
