"""Recordings of the items that a report shows, found where a run read them, and as small MP3s within the page."""

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.processing import AudioError, load_waveform
from audiollm.processing.audio_io import SAMPLING_RATE_HZ

from ..outputs import OUTPUTS
from ..run_answers import read_lines
from ..systems import WRONG_AUDIO
from ..tasks import LOCAL_TASK, find_task, read_local_set

#: MP3 is what every browser plays; about 5 KB a second at this level of compression.
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.5}
#: Longest stretch of a recording that a player holds.
MAX_PLAYER_SECONDS = 60.0
SILENCE_BETWEEN_SECONDS = 0.5
NOT_READ = (
    "the recordings are not on this machine as far as the run says; `audiollm report --data` says where they are"
)

Recordings = list[Any]


def find_recordings(
    folder: Path, task: str, record: Mapping[str, Any], ids: Sequence[str], data: str | None = None
) -> tuple[dict[str, Recordings], str | None]:
    """
    Recordings of some items of a task.

    Those that the run names by a path that is there are taken; else the task is read again where it ships with the
    package or its copy lies on this machine. Nothing is downloaded.

    Args:
        record: what `run.json` says of the task.
        data: the copy of the task, instead of the one that the run read.

    Returns:
        Recordings by item, of those found; and why others are not, None where all are.

    Raises:
        ValueError, OSError: `data` was given and cannot be read.
    """
    if data and not os.path.exists(data):
        raise FileNotFoundError(f"--data {task}={data}: there is no {data}")
    wanted = set(ids)
    found = {} if data else _named_by_path(folder, task, wanted)
    if found.keys() == wanted:
        return found, None
    settings = record.get("settings") or {}
    copy = data or settings.get("data")
    try:
        items = _items(task, copy, settings.get("audio_dir"), record.get("language"))
        if items is None:
            return found, NOT_READ
        for item in items:
            if item.id in wanted and item.id not in found:
                found[item.id] = list(item.recordings)
            if found.keys() == wanted:
                return found, None
    except (ValueError, OSError) as error:
        if data:
            raise
        return found, f"the recordings cannot be read again: {str(error).rstrip('.')}"
    return found, "the items are made of several recordings, or the data have changed since"


def _named_by_path(folder: Path, task: str, wanted: set[str]) -> dict[str, Recordings]:
    """Recordings that a system's rows name by whole paths which are there; another item's, of the control, are no use."""
    for path in sorted((folder / OUTPUTS / task).glob("*.jsonl")):
        if path.stem == WRONG_AUDIO or path.name.endswith(".partial.jsonl"):
            continue
        names = {row["id"]: [str(name) for name in row.get("audio") or []] for row in read_lines(path)}
        return {
            one: list(names[one])
            for one in wanted
            if names.get(one) and all(os.path.isabs(name) and os.path.isfile(name) for name in names[one])
        }
    return {}


def _items(task: str, copy: str | None, audio_dir: str | None, language: str | None) -> Iterable[Any] | None:
    """A task's items, read again; None where that would need the network."""
    is_here = copy is not None and os.path.exists(copy)
    if task == LOCAL_TASK:
        return read_local_set(copy, audio_dir, language).items() if copy and is_here else None
    found = find_task(task)
    ships_with_package = found.source.get("benchmark") == task
    return found.items(copy) if is_here or ships_with_package else None


def as_player(recordings: Recordings) -> tuple[str, float | None]:
    """
    Recordings, one after the other, as a `data:` URI of an MP3.

    Returns:
        The URI, and after how many seconds it was cut off; None where it is whole.

    Raises:
        AudioError: one cannot be read; it is called by its name, without its folders.
        OSError: one is not there.
    """
    gap = np.zeros(int(SILENCE_BETWEEN_SECONDS * SAMPLING_RATE_HZ), np.float32)
    pieces: list[np.ndarray] = []
    for recording in recordings:
        pieces += [gap, _waveform(recording)] if pieces else [_waveform(recording)]
    waveform = np.concatenate(pieces)
    limit = int(MAX_PLAYER_SECONDS * SAMPLING_RATE_HZ)
    file = io.BytesIO()
    soundfile.write(file, waveform[:limit], SAMPLING_RATE_HZ, **MP3)
    uri = "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return uri, MAX_PLAYER_SECONDS if len(waveform) > limit else None


def _waveform(recording: Any) -> np.ndarray:
    try:
        return load_waveform(recording)
    except AudioError as error:
        path = str(recording.get("path") if isinstance(recording, dict) else recording)
        raise AudioError(str(error).replace(path, os.path.basename(path))) from error


__all__ = ["MAX_PLAYER_SECONDS", "as_player", "find_recordings"]
