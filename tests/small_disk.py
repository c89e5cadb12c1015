"""A small disk at a folder, which can be full or read-only for root as well; tests are skipped where none can be mounted."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, kib: int) -> Iterator[Callable[[str], None]]:
    """Mount a small disk at a folder; yield the function that mounts it again with an option."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or sys.platform != "linux":
        pytest.skip("there is no mount for a small disk here")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")

    def remount(option: str) -> None:
        subprocess.run([mount, "-o", f"remount,{option}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
