"""
Where recordings lie in a folder, and that nothing outside it is read: paths of manifests, links, names of any script.
"""

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from audiollm.files import AUDIO_SUFFIXES, is_inside

from .clips import DEFAULT_SPLIT, STATE_FOLDER, CorpusError
from .manifests import printable, shown

#: Names of splits in folders and files, as the audiofolder of `datasets` knows them.
SPLIT_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
#: In a folder "dev-clean" or "my_test 2" the keyword stands between these, as in `datasets`.
KEYWORD_BOUNDARY = r"[-._ 0-9]"
_KEYWORD = {
    split: re.compile(rf"(?:^|{KEYWORD_BOUNDARY})(?:{'|'.join(words)})(?:$|{KEYWORD_BOUNDARY})", re.IGNORECASE)
    for split, words in SPLIT_KEYWORDS.items()
}
URL_MARK = "://"


class PathError(ValueError):
    """A path that leads to no recording that may be read; the message says why and what to do."""


@dataclass(frozen=True)
class AudioRoot:
    """
    The folder that recordings must lie in.

    Attributes:
        folder: absolute.
        follow_symlinks: whether links may lead out of it.
    """

    folder: str
    follow_symlinks: bool = False

    def locate(self, given: str, start: str | None = None, endings: Sequence[str] = ()) -> str:
        """
        The absolute path of a file that is there, is not empty, and lies in the folder.

        Args:
            given: as a manifest has it; an absolute path may lead into the folder as well.
            start: where relative paths start; the folder itself by default.
            endings: to try where the file has none and is not there.

        Raises:
            PathError: it leads elsewhere, or to nothing that can be read.
        """
        if not given.strip() or "\0" in given:
            raise PathError(f"the path {shown(given)} is empty or has a NUL character")
        if URL_MARK in given:
            raise PathError(f"{shown(given)} is a URL, and nothing is downloaded; fetch it, and name the file")
        path = os.path.normpath(os.path.join(start or self.folder, given))
        if not is_inside(path, self.folder) and not is_inside(path, _real_folder(self.folder)):
            raise PathError(
                f"{given!r} leads out of {self.folder!r}; name the folder that recordings may lie in with --audio_dir"
            )
        try:
            path = _existing(path, endings)
            real = os.path.realpath(path)
            if not self.follow_symlinks and not is_inside(real, _real_folder(self.folder)):
                raise PathError(
                    f"{given!r} is reached by a symbolic link that leads out of {self.folder!r}, to {real!r}; "
                    "--follow_symlinks reads it all the same"
                )
            found = os.stat(real)
        except (OSError, UnicodeError) as error:
            raise PathError(_why_not(given, path, error)) from None
        if stat.S_ISDIR(found.st_mode):
            raise PathError(f"{given!r} is a folder: {path!r}")
        if not stat.S_ISREG(found.st_mode):
            raise PathError(f"{given!r} is not a regular file: {path!r}")
        if found.st_size == 0:
            raise PathError(f"{given!r} is empty (0 bytes)")
        return real

    def identify(self, given: str, start: str | None = None) -> str:
        """What a file of the folder is called without further knowledge: its relative path without audio's ending."""
        path = os.path.normpath(os.path.join(start or self.folder, given))
        for folder in (self.folder, _real_folder(self.folder)):  # a manifest may name either
            if is_inside(path, folder):
                path = os.path.relpath(path, folder)
        stem, ending = os.path.splitext(path)
        return printable((stem if ending.lower() in AUDIO_SUFFIXES else path).replace(os.sep, "/"))


@dataclass(frozen=True)
class Folder:
    """
    One folder of a tree.

    Attributes:
        path: relative to the tree's; "" for the tree's own.
        files: names of its files, links to files and broken links among them, sorted by their bytes.
        problems: (path, reason) of what was not gone into.
    """

    path: str
    files: tuple[str, ...]
    problems: tuple[tuple[str, str], ...] = ()


def walk(root: AudioRoot, max_depth: int | None = None) -> Iterator[Folder]:
    """
    Every folder of a tree once, in an order that is the same on every file system. What is hidden is passed over, and
    folders below that a corpus was prepared in.

    Links to folders inside the tree are not followed, since these are come by anyway; those that lead out of it are
    problems, or with `follow_symlinks` are gone into, each real folder once.

    Args:
        root: the tree.
        max_depth: levels below the tree's folder to go into; all by default.
    """
    top = os.path.realpath(root.folder)
    visited: set[tuple[int, int]] = set()
    pending = [("", 0)]
    while pending:
        path, depth = pending.pop()
        here = os.path.join(root.folder, path)
        problems: list[tuple[str, str]] = []
        files, folders = [], []
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            if path and os.path.isdir(os.path.join(here, STATE_FOLDER)):
                continue
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Folder(path, (), ((path or here, f"the folder cannot be read: {error.strerror}"),))
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                files.append(entry.name)
            elif not entry.is_symlink():
                folders.append(entry.name)
            elif not is_inside(real := os.path.realpath(entry.path), top) and real != top:
                if root.follow_symlinks:
                    folders.append(entry.name)
                else:
                    reason = f"is a symbolic link to the folder {real!r}; --follow_symlinks reads what lies there"
                    problems.append((os.path.join(path, entry.name), reason))
        yield Folder(path, tuple(files), tuple(problems))
        if max_depth is None or depth < max_depth:
            pending += [(os.path.join(path, name), depth + 1) for name in reversed(folders)]


def split_in(path: str) -> str | None:
    """The split that a relative path names in one of its parts, the first that does; None where none does."""
    for part in path.split(os.sep):
        for split, pattern in _KEYWORD.items():
            if pattern.search(part):
                return split
    return None


def split_named(name: str) -> str:
    """A split as everything here calls it: "dev" is "validation", an empty name is the default split."""
    for split, words in SPLIT_KEYWORDS.items():
        if name.lower() in words:
            return split
    return name or DEFAULT_SPLIT


def existing_folder(given: str, option: str) -> str:
    """
    The absolute path of a folder.

    Raises:
        CorpusError: there is none.
    """
    if not given or not os.path.isdir(given):
        raise CorpusError(f"{option} {given!r} is not a folder.")
    return os.path.abspath(given)


@lru_cache(maxsize=16)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _existing(path: str, endings: Sequence[str]) -> str:
    """
    `path`, or where nothing is there, the same in the other Unicode form (macOS writes accents apart), or with one of
    the endings.
    """
    if os.path.lexists(path):
        return path
    others = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")] + [path + ending for ending in endings]
    return next((other for other in others if os.path.lexists(other)), path)


def _why_not(given: str, path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{given!r} does not exist: looked at {path!r}; --audio_dir names the folder that paths start from"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return f"{given!r} is a symbolic link that leads back to itself"
    return f"{shown(given)} cannot be opened: {getattr(error, 'strerror', None) or error}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


__all__ = [
    "AudioRoot",
    "Folder",
    "PathError",
    "existing_folder",
    "split_in",
    "split_named",
    "walk",
]
