"""Errors about full or unwritable disks, with the same wording whichever library was writing."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

#: No space left, quota exceeded, file too large.
NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GOES_ON = "what is done is kept: make room, and the same command goes on"
#: Messages of safetensors, which quotes the system's error, and of torch, which does not.
SYSTEM_ERROR = re.compile(r"I/O error: .*\(os error (\d+)\)")
TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container")


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
        raise OSError(
            errno.EIO, f"a file could not be written to its end, as where there is no room; {advice}", str(folder)
        ) from error


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


@contextmanager
def appearing_whole(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output` that replaces it when the block ends, or is removed if the block fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
