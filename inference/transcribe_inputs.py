"""What a command is to transcribe: files, folders, patterns and URLs as a list of recordings, each with a name of its own."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from audiollm.files import AUDIO_SUFFIXES, is_audio
from audiollm.processing import AudioError

from .audio_blocks import check_file, is_remote, path_of
from .transcribing import Failure

GLOB_MARKS = "*?["
UNNAMED = "recording"


@dataclass(frozen=True)
class Recording:
    """
    A recording that is to be transcribed.

    Attributes:
        location: path or URL.
        name: what its transcript is called, within the output folder, without ending; of a folder's recordings with the
            folders between.
    """

    location: str
    name: str


def find_recordings(given: Sequence[str]) -> list[Recording | Failure]:
    """
    Everything that is named on a command line, in that order, each once; a [`Failure`] for what is not there.

    Args:
        given: files, URLs, folders, whose recordings are all taken, by name, those of folders within too; and patterns
            with `*`, `?`, `[…]` or `**`, for shells that leave them.

    Raises:
        ValueError: two recordings would have transcripts of the same name.
    """
    found: list[tuple[str, PurePosixPath] | Failure] = []
    for each in given:
        found += _find(each)
    distinct: dict[str, tuple[str, PurePosixPath] | Failure] = {}
    for one in found:
        distinct.setdefault(_identity(one), one)
    stems = Counter(str(one[1].with_suffix("")) for one in distinct.values() if not isinstance(one, Failure))
    recordings: list[Recording | Failure] = []
    owners: dict[str, str] = {}
    for one in distinct.values():
        if isinstance(one, Failure):
            recordings.append(one)
            continue
        location, relative = one
        stem = str(relative.with_suffix(""))
        name = stem if stems[stem] == 1 else str(relative)
        if name in owners:
            raise ValueError(
                f"{owners[name]} and {location} would both be transcribed to {name!r}. Give the folder that holds both, "
                "or transcribe them one after the other, to folders of their own."
            )
        owners[name] = location
        recordings.append(Recording(location, name))
    return recordings


def _find(given: str) -> list[tuple[str, PurePosixPath] | Failure]:
    if is_remote(given):
        return [(given, _url_name(given))]
    path = path_of(given)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_audio(file) and file.is_file())
        if not files:
            return [Failure(given, f"Folder {given!r} holds no recordings ({', '.join(AUDIO_SUFFIXES)}).")]
        return [(str(file), PurePosixPath(file.relative_to(path).as_posix())) for file in files]
    if not path.exists() and any(mark in given for mark in GLOB_MARKS):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if match.is_file()]
        if not files:
            return [Failure(given, f"No file matches {given!r}.")]
        return [(str(file), PurePosixPath(file.name)) for file in files]
    try:
        check_file(path, given)
    except (AudioError, OSError) as error:
        return [Failure(given, str(error))]
    return [(str(path), PurePosixPath(path.name))]


def _url_name(url: str) -> PurePosixPath:
    """A file name for a URL: its last part, of which nothing leads out of a folder."""
    name = PurePosixPath(unquote(urlparse(url).path).replace("\\", "/")).name.replace("\0", "")
    return PurePosixPath(name if name.strip(".") else UNNAMED)


def _identity(found: tuple[str, PurePosixPath] | Failure) -> str:
    if isinstance(found, Failure):
        return found.audio
    return found[0] if is_remote(found[0]) else str(Path(found[0]).resolve())


__all__ = ["Recording", "find_recordings"]
