"""
What keeps a corpus that is being prepared inside its folder.

A folder may come from anywhere, with links in it that lead elsewhere and lists of files that lie: nothing is written
through the one, and nothing of the other is read or removed that is not below the folder.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from audiollm.files import partial_path

from .clips import CorpusError


def refuse_links(output: Path, folders: Sequence[str], files: Sequence[str]) -> None:
    """
    Raises CorpusError for a symbolic link among what is written below `output`.

    Args:
        folders: those that belong to the command, with all that is in them.
        files: those in `output` itself that are read or written in place; others are replaced, links or not.
    """
    for name in files:
        for path in (output / name, partial_path(output / name)):
            if path.is_symlink():
                raise _refused(path)
    for name in folders:
        _refuse_links_below(output / name)


def _refuse_links_below(folder: Path) -> None:
    if folder.is_symlink():
        raise _refused(folder)
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise _refused(Path(entry.path))
            if entry.is_dir():
                _refuse_links_below(Path(entry.path))


def _refused(path: Path) -> CorpusError:
    return CorpusError(f"{path} is a link to another folder or file; remove it, or give another --output.")


def is_inside(name: str) -> bool:
    """Whether a relative path, with forward slashes, stays in the folder that it is relative to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name


__all__ = ["is_inside", "refuse_links"]
