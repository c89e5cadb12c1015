"""Puts a report beside the scores that it is of: `figures.json`, `report.md` and `report.html`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..outputs import write_whole
from .examples import ids_of
from .gathering import gather
from .markdown import render_markdown
from .page import prepare_page, render_page
from .players import as_player, find_recordings

FIGURES_FILE, MARKDOWN_FILE, PAGE_FILE = "figures.json", "report.md", "report.html"
WORST, MAX_HTML_MB = 10, 10.0
BYTES_PER_MB = 1_000_000
#: What markup around a player takes, in bytes.
PLAYER_MARKUP_BYTES = 100
NO_ROOM = "the page would be larger than {megabytes:g} MB; `audiollm report --max_html_mb` allows more"


@dataclass(frozen=True)
class ReportFiles:
    """
    What was written.

    Attributes:
        page, markdown, figures: the files.
        players: recordings that can be played in the page.
        left_out: what the page lacks, and why, one sentence each.
    """

    page: Path
    markdown: Path
    figures: Path
    players: int
    left_out: list[str]


def write_report(
    folder: str | Path,
    worst: int = WORST,
    max_html_mb: float = MAX_HTML_MB,
    data: Mapping[str, str] | None = None,
) -> ReportFiles:
    """
    Writes the report of a folder that is scored.

    Args:
        worst: items of each task that are shown.
        max_html_mb: bound on the page, in millions of bytes; players that do not fit are left out, and the page says so.
        data: where copies of tasks lie, by task, of which recordings are taken; those that the run read if not given.

    Raises:
        RunFolderError: the folder is not scored, or a file in it is damaged.
        ValueError: a copy in `data` is of no task or cannot be read, or the page is too large without a player.
        OSError: a file cannot be read or written.
    """
    folder = Path(folder)
    report = gather(folder, worst)
    unknown = [task for task in data or {} if task not in report["tasks"]]
    if unknown:
        known = ", ".join(report["tasks"])
        raise ValueError(f"--data is for {unknown[0]!r}, of which there are no scores; expected one of {known}.")
    limit = int(max_html_mb * BYTES_PER_MB)
    recordings, notes = _recordings(folder, report, data or {})
    without = {key: {"uri": None, "missing": NO_ROOM.format(megabytes=max_html_mb)} for key in recordings}
    prepared = prepare_page(report, FIGURES_FILE)
    size = len(render_page(prepared, without, notes).encode())
    if size > limit:
        raise ValueError(
            f"The page has {size / BYTES_PER_MB:.2f} MB without any player, more than --max_html_mb {max_html_mb:g}; "
            "allow more, or show fewer by --worst."
        )
    players = _players(report, recordings, limit - size, without)
    page = render_page(prepared, players, notes)
    left_out = [f"{task}: {note}." for task, note in notes.items()]
    reasons = [each["missing"] for each in players.values() if not each["uri"]]
    left_out += [f"{reasons.count(reason)} players: {reason}." for reason in dict.fromkeys(reasons)]
    files = folder / FIGURES_FILE, folder / MARKDOWN_FILE, folder / PAGE_FILE
    figures = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    for path, text in zip(files, (figures, render_markdown(report), page)):
        write_whole(path, text.encode())
    played = sum(bool(each["uri"]) for each in players.values())
    return ReportFiles(page=files[2], markdown=files[1], figures=files[0], players=played, left_out=left_out)


def told_of_report(folder: str | Path) -> str:
    """Write a report, and return where it is, or why there is none where a library of the extra is missing."""
    try:
        return f"Shown by {write_report(folder).page}."
    except ImportError as error:
        return f"There is no report: {error}"


def _recordings(
    folder: Path, report: Mapping[str, Any], data: Mapping[str, str]
) -> tuple[dict[tuple[str, str], list[Any]], dict[str, str]]:
    """Recordings of the examples by task and item, and by task what is to be said where some were not found."""
    found: dict[tuple[str, str], list[Any]] = {}
    notes = {}
    for task, each in report["tasks"].items():
        ids = [example["id"] for example in each["worst"] if example["duration_s"]]
        if not ids:
            continue
        record = report["run"].get("tasks", {}).get(task, {})
        recordings, missing = find_recordings(folder, task, record, ids, data.get(task))
        found |= {(task, one): held for one, held in recordings.items() if held}
        if missing:
            notes[task] = f"{len(ids) - len(recordings)} of {len(ids)} examples have no player: {missing}"
    return found, notes


def _players(
    report: Mapping[str, Any],
    recordings: Mapping[tuple[str, str], list[Any]],
    room: int,
    without: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Players of as many examples as there is room for, in bytes: the worst of every task first, then the next."""
    players = dict(without)
    for key in _in_turn(report):
        if key not in recordings:
            continue
        try:
            uri, cut_s = as_player(recordings[key])
        except (ValueError, OSError) as error:
            players[key] = {"uri": None, "missing": f"the recording cannot be read: {str(error).rstrip('.')}"}
            continue
        taken = len(uri) + PLAYER_MARKUP_BYTES
        if taken <= room:
            room -= taken
            players[key] = {"uri": uri, "cut_s": cut_s}
    return players


def _in_turn(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ids = [[(task, one) for one in ids_of(each["worst"])] for task, each in report["tasks"].items()]
    for rank in zip_longest(*ids):
        yield from (key for key in rank if key is not None)


__all__ = [
    "FIGURES_FILE",
    "MARKDOWN_FILE",
    "MAX_HTML_MB",
    "PAGE_FILE",
    "WORST",
    "ReportFiles",
    "told_of_report",
    "write_report",
]
