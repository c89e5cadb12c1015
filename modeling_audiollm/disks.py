"""What is said when a disk takes no more, by whichever library it was that wrote."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

#: No room left on the disk, of one's share of it, or below the largest size of a file.
NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GOES_ON = "what is done is kept: make room, and the same command goes on"
#: How safetensors words what the system said; and torch, which keeps to itself what that was.
SYSTEM_ERROR = re.compile(r"I/O error: .*\(os error (\d+)\)")
TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container")


@contextmanager
def naming_the_disk(folder: str | os.PathLike[str], advice: str = GOES_ON) -> Iterator[None]:
    """
    Has an error for want of room say where there is none, and what to do.

    Args:
        folder: what is written to.
        advice: what is kept and what to do, put behind the reason.

    Raises:
        OSError: in place of what safetensors and torch raise when they cannot write; others stay what they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM_ERRORS or "make room" in str(error).lower():
            raise  # something else, or it says so already
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
        raise OSError(
            errno.EIO, f"a file could not be written to its end, as where there is no room; {advice}", str(folder)
        ) from error


def _no_room(number: int, path: str | bytes | os.PathLike[str], advice: str) -> OSError:
    reason = f"there is no room left ({os.strerror(number)}); {advice}. It was writing to"
    return OSError(number, reason, os.fsdecode(path))


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """
    Makes a folder if need be, and finds out whether files can be made in it; returns it.

    Raises:
        OSError: they cannot.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written to this folder", str(folder))
    return folder


@contextmanager
def appearing_whole(output: Path) -> Iterator[Path]:
    """A folder beside `output`, which takes its place once all is written, and is removed if something fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


__all__ = ["GOES_ON", "NO_ROOM_ERRORS", "appearing_whole", "check_writable", "naming_the_disk"]
