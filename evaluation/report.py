"""
Write the report of an evaluation: one page for people, beside the figures in `scores.json`.

    audiollm evaluate report runs/evaluation
    audiollm evaluate report runs/evaluation --worst 20
"""

import base64
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.command_line.files import write_whole
from audiollm.command_line.option_parser import option, parser_of
from audiollm.processing import AudioError, load_waveform
from audiollm.processing.audio import SAMPLING_RATE_HZ
from audiollm.publishing.score_table import systems_of

from .bootstrap import SAMPLES
from .judge import JUDGE_FILE
from .measures import Measured, paired
from .mistakes import confusions, example, worst_rows
from .outputs import (
    JUDGEMENTS,
    OUTPUTS,
    Run,
    RunFolderError,
    convention_of,
    joined_sessions,
    open_run,
    read_answers,
    read_object,
    read_rows,
)
from .readers import LOCAL_TASK, read_local_set
from .report_page import render_page, verdicts
from .score import ITEMS, RTFX, SCORES_FILE, finite, measure_answers
from .systems import MODEL, WRONG_AUDIO
from .tasks import find_task

PAGE_FILE = "report.html"
WORST = 10
#: Bound on the page; recordings that do not fit have no player, and the page says so.
MAX_HTML_MB = 10.0
BYTES_PER_MB = 1_000_000
#: What markup around a player takes, in bytes.
PLAYER_MARKUP_BYTES = 100
Row = Mapping[str, Any]

# ---------------------------------------------------------------------------------------------------- figures of some items

#: Categories that are shown; a task with more has ids for categories.
MAX_CATEGORIES = 60
MIN_INTERVAL_ITEMS = 2


def grouped(
    measured: Mapping[str, Measured], groups: Mapping[str, str | None], order: Iterable[str], samples: int, seed: int
) -> list[dict[str, Any]]:
    """
    Return a figure of each group of items, of each system, without empty groups.

    Args:
        measured: one metric, by system.
        groups: the group of each item, by its id. order: of the groups.
    """
    found = []
    for name in order:
        figures = {}
        for system, each in measured.items():
            part = each.of(one for one in each.ids if groups.get(one) == name)
            if not math.isfinite(part.value):
                continue
            several = len(part.ids) >= MIN_INTERVAL_ITEMS
            low, high = map(finite, part.interval(samples, seed)) if several else (None, None)
            figures[system] = {"value": part.value, "low": low, "high": high, "items": len(part.ids)}
        if figures:
            found.append({"name": name, "systems": figures})
    return found


def paired_difference(first: Measured, second: Measured, samples: int, seed: int) -> dict[str, Any] | None:
    """Return how much more the second system has than the first on items that count in both; None without any."""
    items, found = paired(first, second, samples, seed)
    if found is None or len(items) < MIN_INTERVAL_ITEMS:
        return None
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        return None
    return {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "items": len(items)}


# -------------------------------------------------------------------------------------------------- what the report holds


def gather(folder: Path, worst: int) -> dict[str, Any]:
    """
    Return what a report says.

    Its fields: `run` and `scoring` as in `scores.json`; `judge`, who gave marks; `systems`, those there are; `tasks`, each with `kind`, `about`, `metric` (the one to look at), `systems` as in `scores.json`,
    `left_out`, `verdicts` (sentences), `differences` to the model, `by_category`, `confusions` and `worst`; and `averages`.

    Args:
        folder: of `audiollm evaluate`, scored.
        worst: items of each task that are shown.

    Raises:
        RunFolderError: it is not scored, or a file in it is damaged.
    """
    if not (folder / SCORES_FILE).is_file():
        raise RunFolderError(f"{folder} has no {SCORES_FILE}; run `audiollm evaluate score {folder}` first.")
    scores = read_object(folder / SCORES_FILE, "tasks")
    run = scores.get("run") or {}
    systems = systems_of(scores)
    judge, opened = folder / JUDGEMENTS / JUDGE_FILE, open_run(folder)
    return {
        "model": str(run.get("model") or "model"),
        "run": run,
        "scoring": scores.get("scoring") or {},
        "judge": read_object(judge) if judge.is_file() else None,
        "systems": systems,
        "tasks": {task: gather_task(opened, task, scores, systems, worst) for task in scores["tasks"]},
        "averages": scores.get("averages") or {},
    }


def gather_task(run: Run, task: str, scores: Mapping[str, Any], every: Sequence[str], worst: int) -> dict[str, Any]:
    """Return what a report says of one task; see [`gather`]."""
    entry, scoring = scores["tasks"][task], scores.get("scoring") or {}
    record = (scores.get("run") or {}).get("tasks", {}).get(task, {})
    draws = int(scoring.get("samples") or SAMPLES), int(scoring.get("seed") or 0)
    systems = {system: entry["systems"][system] for system in every if system in entry["systems"]}
    metrics = list(dict.fromkeys(name for each in systems.values() for name in each["metrics"]))
    main = next((name for name in metrics if name != RTFX), None)
    # Whose mistakes are shown: the model's, or, without it, those of the first system that is no control.
    first = MODEL if MODEL in systems else next((system for system in systems if system != WRONG_AUDIO), None)
    first = first or next(iter(systems), None)
    found: dict[str, Any] = {
        **{"kind": entry.get("kind"), "about": _about(record), "items": record.get("items")},
        **{"left_out": record.get("left_out") or {}, "metric": main, "metrics": metrics},
        **{"systems": systems, "main_system": first},
        **{"differences": {}, "by_category": [], "confusions": None},
        **{"worst": [], "worst_order": None, "verdicts": []},
    }
    if main is None or first is None:
        return found
    rows = {system: list(read_rows(run.folder / ITEMS / task / f"{system}.jsonl")) for system in systems}
    outputs = {each["id"]: each for each in read_rows(run.outputs[task][first])}
    convention = convention_of(record, scoring.get("normaliser"))
    measured = {
        system: measure_answers(joined_sessions(read_answers(run, task, system))[0], [main], convention)[main]
        for system in systems
    }
    known = {one: (row.get("extra") or {}).get("category") for one, row in outputs.items()}
    categories = {one: str(name) for one, name in known.items() if name}
    if 1 < len(set(categories.values())) <= MAX_CATEGORIES:
        found["by_category"] = grouped(measured, categories, sorted(set(categories.values())), *draws)
    if first == MODEL:
        pairs = {each: paired_difference(measured[MODEL], measured[each], *draws) for each in systems if each != MODEL}
        found["differences"] = {system: each for system, each in pairs.items() if each is not None}
    if main == "word_error":
        found["confusions"] = confusions(rows[first])
    found["verdicts"] = list(verdicts(found))
    others = {system: {row["id"]: row for row in rows[system]} for system in systems if system != first}
    found["worst_order"], chosen = worst_rows(rows[first], main, worst)
    for row in chosen:
        beside = {system: each[row["id"]] for system, each in others.items() if row["id"] in each}
        found["worst"].append(example(row, main, beside, _question(outputs.get(row["id"]))))
    return found


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    known = {**record, **(record.get("source") or {}), **(record.get("settings") or {})}
    names = ("title", "hub", "config", "split", "licence", "citation", "note", "language", "normaliser", "group")
    return {name: known[name] for name in (*names, "limit", "max_new_tokens") if known.get(name)}


def _question(row: Mapping[str, Any] | None) -> str | None:
    """Return what an item asks in words: of items that only say what to do with the recording, nothing."""
    extra = (row or {}).get("extra") or {}
    choices = extra.get("choices") or {}
    lines = [f"{letter}. {text}" for letter, text in choices.items() if text]
    return "\n".join([str(extra["question"]), *lines]) if extra.get("question") else None


# ---------------------------------------------------------------------------------------------------------------- players

#: MP3 is what every browser plays; about 5 KB a second at this level of compression.
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.5}
#: Longest stretch of a recording that a player holds.
MAX_PLAYER_SECONDS = 60.0
SILENCE_BETWEEN_SECONDS = 0.5
NOT_READ = "the recordings are not on this machine as far as the run says"
NO_ROOM = f"the page would be larger than {MAX_HTML_MB:g} MB"


def find_recordings(
    folder: Path, task: str, record: Mapping[str, Any], ids: Sequence[str]
) -> tuple[dict[str, list[Any]], str | None]:
    """
    Find the recordings of some items of a task.

    Those that the run names by a path that is there are taken; else the task is read again where it ships with the
    package or its copy lies on this machine. Nothing is downloaded.

    Args:
        record: what `run.json` says of the task.

    Returns:
        Recordings by item, of those found; and why others are not, None where all are.
    """
    wanted, found = set(ids), {}
    files = [path for path in sorted((folder / OUTPUTS / task).glob("*.jsonl")) if path.stem != WRONG_AUDIO]
    for row in read_rows(files[0]) if files else ():
        names = row.get("audio") or []
        if row["id"] in wanted and names and all(os.path.isabs(name) and os.path.isfile(name) for name in names):
            found[row["id"]] = names
    if found.keys() == wanted:
        return found, None
    settings = record.get("settings") or {}
    copy = settings.get("data")
    is_here = copy is not None and os.path.exists(copy)
    try:
        if task == LOCAL_TASK and is_here:
            items = read_local_set(str(copy), settings.get("audio_dir"), record.get("language")).items()
        elif task != LOCAL_TASK and (is_here or find_task(task).source.get("benchmark") == task):
            items = find_task(task).items(copy)
        else:
            return found, NOT_READ
        found = {item.id: list(item.recordings) for item in items if item.id in wanted} | found
    except (ValueError, OSError) as error:
        return found, f"the recordings cannot be read again: {str(error).rstrip('.')}"
    if found.keys() == wanted:
        return found, None
    return found, "the items are made of several recordings, or the data have changed since"


def as_player(recordings: Sequence[Any]) -> tuple[str, float | None]:
    """
    Return recordings, one after the other, as a `data:` URI of an MP3; and after how many seconds it was cut, if it was.

    Raises:
        AudioError: one cannot be read; it is called by its name, without its folders.
        OSError: one is not there.
    """
    gap = np.zeros(int(SILENCE_BETWEEN_SECONDS * SAMPLING_RATE_HZ), np.float32)
    pieces: list[np.ndarray] = []
    for recording in recordings:
        try:
            pieces += [gap, load_waveform(recording)] if pieces else [load_waveform(recording)]
        except AudioError as error:
            path = str(recording.get("path") if isinstance(recording, dict) else recording)
            raise AudioError(str(error).replace(path, os.path.basename(path))) from error
    waveform = np.concatenate(pieces)
    limit = int(MAX_PLAYER_SECONDS * SAMPLING_RATE_HZ)
    file = io.BytesIO()
    soundfile.write(file, waveform[:limit], SAMPLING_RATE_HZ, **MP3)
    uri = "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return uri, MAX_PLAYER_SECONDS if len(waveform) > limit else None


# --------------------------------------------------------------------------------------------------------------- the files


@dataclass(frozen=True)
class ReportFiles:
    """The page of a report."""

    page: Path
    players: int  # recordings that can be played in the page
    left_out: list[str]  # what the page lacks, and why, one sentence each


def write_report(
    folder: str | Path,
    worst: int = WORST,
) -> ReportFiles:
    """
    Write the report of a folder that is scored.

    Args:
        worst: items of each task that are shown.

    Raises:
        RunFolderError: the folder is not scored, or a file in it is damaged.
        OSError: a file cannot be read or written.
        ImportError: a library of the extra is not installed.
    """
    folder = Path(folder)
    report = gather(folder, worst)
    recordings, notes = _recordings(folder, report)
    players: dict[tuple[str, str], Mapping[str, Any]] = {key: {"missing": NO_ROOM} for key in recordings}
    room = int(MAX_HTML_MB * BYTES_PER_MB) - len(render_page(report, players, notes).encode())
    # The worst of every task first, then the next.
    ids = [[(task, each["id"]) for each in found["worst"]] for task, found in report["tasks"].items()]
    for key in (key for rank in zip_longest(*ids) for key in rank if key in recordings):
        try:
            uri, cut_s = as_player(recordings[key])
        except (ValueError, OSError) as error:
            players[key] = {"missing": f"the recording cannot be read: {str(error).rstrip('.')}"}
            continue
        if len(uri) + PLAYER_MARKUP_BYTES <= room:
            room -= len(uri) + PLAYER_MARKUP_BYTES
            players[key] = {"uri": uri, "cut_s": cut_s}
    reasons = Counter(each["missing"] for each in players.values() if "missing" in each)
    left_out = [f"{task}: {note}." for task, note in notes.items()]
    left_out += [f"{count} players: {reason}." for reason, count in reasons.items()]
    page = folder / PAGE_FILE
    write_whole(page, render_page(report, players, notes))
    return ReportFiles(page, len(players) - reasons.total(), left_out)


def told_of_report(folder: str | Path) -> str:
    """Write a report, and return where it is, or why there is none where a library of the extra is missing."""
    try:
        return f"Shown by {write_report(folder).page}."
    except ImportError as error:
        return f"There is no report: {error}"


def _recordings(folder: Path, report: Mapping[str, Any]) -> tuple[dict[tuple[str, str], list[Any]], dict[str, str]]:
    """Return recordings of the examples by task and item, and by task what is to be said where some were not found."""
    found: dict[tuple[str, str], list[Any]] = {}
    notes = {}
    for task, each in report["tasks"].items():
        ids = [one["id"] for one in each["worst"] if one["duration_s"]]
        if not ids:
            continue
        record = report["run"].get("tasks", {}).get(task, {})
        recordings, missing = find_recordings(folder, task, record, ids)
        found |= {(task, one): held for one, held in recordings.items() if held}
        if missing:
            notes[task] = f"{len(ids) - len(recordings)} of {len(ids)} examples have no player: {missing}"
    return found, notes


# ------------------------------------------------------------------------------------------------------------ the command


@dataclass
class ReportOptions:
    """Contents of a report."""

    worst: int = option(WORST, "Worst examples of each task that are shown.")

    def __post_init__(self):
        if self.worst < 0:
            raise ValueError(f"--worst is {self.worst}; expected 0 or more")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `audiollm evaluate report`."""
    parser = parser_of(ReportOptions, "evaluate report", "FOLDER [options]", __doc__)
    parser.add_argument("folder", help="the --output_dir of audiollm evaluate")
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    folder = given.pop("folder")
    try:
        options = ReportOptions(**given)
        written = write_report(folder, options.worst)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"audiollm evaluate report: {error}")
    for sentence in written.left_out:
        print(sentence)
    print(f"Written to {written.page}; {written.players} players.")
