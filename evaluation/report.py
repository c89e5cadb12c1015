"""
Write the report of an evaluation: one page for people, beside the figures in `scores.json`.

    audiollm evaluate report runs/evaluation
    audiollm evaluate report runs/evaluation --worst 20
"""

import base64
import io
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from audiollm.command_line.files import write_whole
from audiollm.command_line.option_parser import option, parser_of
from audiollm.processing import load_waveform
from audiollm.processing.audio import SAMPLING_RATE_HZ
from audiollm.publishing.score_table import systems_of

from .judge import JUDGE_FILE
from .measures import paired
from .mistakes import confusions, example, worst_rows
from .outputs import (
    JUDGEMENTS,
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
from .score import ITEMS, SCORES_FILE, figure_of, measure_answers
from .systems import MODEL, WRONG_AUDIO
from .tasks import find_task

PAGE_FILE = "report.html"
WORST = 10
#: Bound on the page; recordings that do not fit have no player, and the page says so.
MAX_HTML_MB = 10.0
BYTES_PER_MB = 1_000_000
#: Bytes of the markup around a player.
PLAYER_MARKUP_BYTES = 100
#: Categories that are shown; a task with more has ids for categories.
MAX_CATEGORIES = 60
#: Paired differences are of so many items or more.
MIN_PAIRED_ITEMS = 2


def gather(folder: Path, worst: int) -> dict[str, Any]:
    """
    Return the contents of a report about a scored folder, with so many of the worst items of each task.

    Its fields: `run`, `scoring` and `averages` as in `scores.json`; `judge`, of the marks; `systems`; `tasks`, see
    [`gather_task`]. RunFolderError is raised if the folder is not scored, or a file in it is damaged.
    """
    if not (folder / SCORES_FILE).is_file():
        raise RunFolderError(f"{folder} has no {SCORES_FILE}; run `audiollm evaluate score {folder}` first.")
    scores = read_object(folder / SCORES_FILE, "tasks")
    judge, opened = folder / JUDGEMENTS / JUDGE_FILE, open_run(folder)
    return {
        **{name: scores[name] for name in ("run", "scoring", "averages")},
        "model": str(scores["run"].get("model") or "model"),
        "judge": read_object(judge) if judge.is_file() else {},
        "systems": systems_of(scores),
        "tasks": {task: gather_task(opened, task, scores, worst) for task in scores["tasks"]},
    }


def gather_task(run: Run, task: str, scores: Mapping[str, Any], worst: int) -> dict[str, Any]:
    """
    Return the contents of a report about one task.

    Its fields: `about`; `metrics`, and the one to look at, `metric`; `systems` as in `scores.json`, and the one whose
    mistakes are shown, `main_system`; `left_out`; `verdicts` (sentences), `differences` to the model, `by_category`,
    `confusions`, and `worst` in `worst_order`.
    """
    entry, record = scores["tasks"][task], run.task(task)
    draws = scores["scoring"]["samples"], scores["scoring"]["seed"]
    systems = {system: entry["systems"][system] for system in systems_of(scores) if system in entry["systems"]}
    metrics = list(dict.fromkeys(name for each in systems.values() for name in each["metrics"]))
    # The mistakes shown are the model's, or, without it, those of the first system that is no control.
    first = next(iter(sorted(systems, key=lambda system: system == WRONG_AUDIO)), None)
    found: dict[str, Any] = {
        "about": {**record, **(record.get("source") or {}), **(record.get("settings") or {})},
        **{"left_out": record.get("left_out") or {}, "systems": systems, "main_system": first},
        **{"metrics": metrics, "metric": next(iter(metrics), None)},
        **{"differences": {}, "by_category": {}, "worst": []},
    }
    if first is None:
        return found
    main = found["metric"]
    rows = {system: list(read_rows(run.folder / ITEMS / task / f"{system}.jsonl")) for system in systems}
    convention = convention_of(record, scores["scoring"]["normaliser"])
    answers = {system: joined_sessions(read_answers(run, task, system))[0] for system in systems}
    measured = {system: measure_answers(each, [main], convention)[main] for system, each in answers.items()}
    outputs = {each["id"]: each for each in read_rows(run.outputs[task][first])}
    categories: dict[str, list[str]] = {}
    for one, row in outputs.items():
        if name := (row.get("extra") or {}).get("category"):
            categories.setdefault(str(name), []).append(one)
    if 1 < len(categories) <= MAX_CATEGORIES:
        for name, ids in sorted(categories.items()):
            figures = {system: figure_of(each.of(ids), *draws) for system, each in measured.items()}
            found["by_category"][name] = {system: each for system, each in figures.items() if each["scored"]}
    for system in systems if first == MODEL else ():
        items, test = paired(measured[MODEL], measured[system], *draws)
        if system != MODEL and test is not None and len(items) >= MIN_PAIRED_ITEMS:
            found["differences"][system] = {**asdict(test), "items": len(items)}
    if main == "word_error":
        found["confusions"] = confusions(rows[first])
    found["verdicts"] = list(verdicts(found))
    others = {system: {row["id"]: row for row in rows[system]} for system in systems if system != first}
    found["worst_order"], chosen = worst_rows(rows[first], main, worst)
    for wrong in chosen:
        beside = {system: each[wrong["id"]] for system, each in others.items() if wrong["id"] in each}
        found["worst"].append(example(wrong, main, beside, _question(outputs.get(wrong["id"], {}))))
    return found


def _question(row: Mapping[str, Any]) -> str | None:
    """Return the question of an item in words; None if it only says what to do with the recording."""
    extra = row.get("extra") or {}
    lines = [f"{letter}. {text}" for letter, text in (extra.get("choices") or {}).items() if text]
    return "\n".join([str(extra["question"]), *lines]) if extra.get("question") else None


#: MP3 is what every browser plays; about 5 KB a second at this level of compression.
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.5}
#: Longest stretch of a recording that a player holds.
MAX_PLAYER_SECONDS = 60.0
SILENCE_BETWEEN_SECONDS = 0.5
NOT_READ = "the recordings are not on this machine as far as the run says"
UNREADABLE = "the recording cannot be read"
NO_ROOM = f"the page would be larger than {MAX_HTML_MB:g} MB"


def find_recordings(run: Run, task: str, ids: Sequence[str]) -> tuple[dict[str, list[Any]], str | None]:
    """
    Return the recordings of some items by id, of those found, and the reason why others are not; None where all are.

    Those that the run names by a path that is there are taken; else the task is read again where it ships with the
    package or its copy lies on this machine. Nothing is downloaded.
    """
    files = [path for system, path in run.outputs[task].items() if system != WRONG_AUDIO]
    found: dict[str, list[Any]] = {}
    for row in read_rows(files[0]) if files else ():
        if row["id"] in ids and all(os.path.isabs(name) and os.path.isfile(name) for name in row["audio"]):
            found[row["id"]] = row["audio"]
    if len(found) == len(ids):
        return found, None
    record = run.task(task)
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
        found = {item.id: list(item.recordings) for item in items if item.id in ids} | found
    except (ValueError, OSError) as error:
        return found, f"the recordings cannot be read again: {str(error).rstrip('.')}"
    if len(found) == len(ids):
        return found, None
    return found, "the items are made of several recordings, or the data have changed since"


def as_player(recordings: Sequence[Any]) -> dict[str, Any]:
    """Return recordings, one after the other, as the `uri` of an MP3; and the seconds it was cut to, if so, as `cut_s`."""
    gap = np.zeros(int(SILENCE_BETWEEN_SECONDS * SAMPLING_RATE_HZ), np.float32)
    waveform = np.concatenate([piece for one in recordings for piece in (gap, load_waveform(one))][1:])
    limit = int(MAX_PLAYER_SECONDS * SAMPLING_RATE_HZ)
    file = io.BytesIO()
    soundfile.write(file, waveform[:limit], SAMPLING_RATE_HZ, **MP3)
    uri = "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"uri": uri, "cut_s": MAX_PLAYER_SECONDS if len(waveform) > limit else None}


@dataclass(frozen=True)
class ReportFiles:
    """The page of a report."""

    page: Path
    players: int  # recordings that can be played in the page
    left_out: list[str]  # sentences about things that the page lacks, and why


def write_report(folder: str | Path, worst: int = WORST) -> ReportFiles:
    """Write the report of a scored folder, with so many of the worst items of each task; for errors, see [`gather`]."""
    folder = Path(folder)
    report, run = gather(folder, worst), open_run(folder)
    recordings: dict[tuple[str, str], list[Any]] = {}
    notes: dict[str, str] = {}
    shown: list[list[tuple[str, str]]] = []
    for task, entry in report["tasks"].items():
        if ids := [each["id"] for each in entry["worst"] if each["duration_s"]]:
            found, missing = find_recordings(run, task, ids)
            recordings |= {(task, one): held for one, held in found.items()}
            shown.append([(task, one) for one in ids if one in found])
            if missing:
                notes[task] = f"{len(ids) - len(found)} of {len(ids)} examples have no player: {missing}"
    players: dict[tuple[str, str], Mapping[str, Any]] = {key: {"missing": NO_ROOM} for key in recordings}
    room = int(MAX_HTML_MB * BYTES_PER_MB) - len(render_page(report, players, notes).encode())
    # The worst of every task first, then the next.
    for key in filter(None, chain(*zip_longest(*shown))):
        try:
            player = as_player(recordings[key])
        except (ValueError, OSError):
            players[key] = {"missing": UNREADABLE}
            continue
        size = len(player["uri"]) + PLAYER_MARKUP_BYTES
        if size <= room:
            room, players[key] = room - size, player
    reasons = Counter(each["missing"] for each in players.values() if "missing" in each)
    left_out = [f"{task}: {note}." for task, note in notes.items()]
    left_out += [f"{count} players: {reason}." for reason, count in reasons.items()]
    write_whole(folder / PAGE_FILE, render_page(report, players, notes))
    return ReportFiles(folder / PAGE_FILE, len(players) - reasons.total(), left_out)


def told_of_report(folder: str | Path) -> str:
    """Write a report, and return where it is, or why there is none where a library of the extra is missing."""
    try:
        return f"Shown by {write_report(folder).page}."
    except ImportError as error:
        return f"There is no report: {error}"


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
