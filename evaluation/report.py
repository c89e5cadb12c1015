"""
Write the report of an evaluation: one page for people, and its figures as JSON.

    audiollm evaluate report runs/evaluation
    audiollm evaluate report runs/evaluation --worst 20
"""

import base64
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from audiollm.files import write_whole
from audiollm.option_parser import parser_of
from audiollm.processing import AudioError, load_waveform
from audiollm.processing.audio import SAMPLING_RATE_HZ
from audiollm.publishing.record import shown_path
from audiollm.publishing.score_table import COUNTS, READING, evaluation_command, score_rows, systems_of
from audiollm.publishing.score_table import SYSTEMS as SYSTEM_TITLES

from .bootstrap import SAMPLES, paired_test, percentiles, resampled
from .judge import JUDGE_FILE
from .measures import FRACTION, Measured
from .mistakes import SPELLED, confusions, example, worst_rows
from .optional import optional_library
from .outputs import (
    JUDGEMENTS,
    OUTPUTS,
    Run,
    RunFolderError,
    convention_of,
    joined_sessions,
    open_run,
    read_answers,
    read_lines,
    read_object,
)
from .readers import LOCAL_TASK, read_local_set
from .score import ITEMS, RTFX, SCORES_FILE, measure_answers
from .systems import CASCADE, DEAF, MODEL, WHISPER, WRONG_AUDIO
from .tasks import find_task

HERE = Path(__file__).parent
FIGURES_FILE, PAGE_FILE = "figures.json", "report.html"
WORST = 10
#: Bound on the page; recordings that do not fit have no player, and the page says so.
MAX_HTML_MB = 10.0
BYTES_PER_MB = 1_000_000
#: What markup around a player takes, in bytes.
PLAYER_MARKUP_BYTES = 100
#: Raise it when a field of the report changes its name or meaning.
REPORT_VERSION = 2
#: What installs the template's engine.
EXTRA = "evaluation"
Row = Mapping[str, Any]

# ------------------------------------------------------------------------------------------------------- how it is shown

NOTHING = "–"
#: A difference is called one below it.
SIGNIFICANCE = 0.05
#: Bars of errors end here: an answer that repeats itself would hide all others.
MAX_ERROR_DRAWN = 2.0


@lru_cache(maxsize=1)
def texts() -> dict[str, dict[str, Any]]:
    """Return what readers are told of metrics, by their names."""
    return yaml.safe_load((HERE / "report.yaml").read_text(encoding="utf-8"))


def number(value: float) -> str:
    """Return a number with three digits that count, never as a power of ten."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figure(value: float | None, unit: str | None) -> str:
    """Return a figure with its unit: fractions as percent."""
    if value is None:
        return NOTHING
    return f"{number(100 * value)} %" if unit == FRACTION else number(value)


def difference(value: float, unit: str | None) -> str:
    """Return a difference with its sign: of fractions in points of a percent."""
    scaled = 100 * value if unit == FRACTION else value
    return f"{'+' if scaled > 0 else ''}{number(scaled)}"


def spread(found: Mapping[str, Any], unit: str | None) -> str:
    """Return a figure's interval in brackets; nothing where it has none."""
    if found.get("low") is None or found.get("high") is None:
        return ""
    scale = 100 if unit == FRACTION else 1
    return f"[{number(scale * found['low'])}, {number(scale * found['high'])}]"


def clock(seconds: float) -> str:
    """Return a length of audio in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def system_title(system: str) -> str:
    """Return what readers call a system."""
    return SYSTEM_TITLES.get(system, system)


def metric_title(metric: str) -> str:
    """Return what readers call a metric."""
    return texts().get(metric, {}).get("title", metric.replace("_", " "))


def metric_about(metric: str) -> str:
    """Return what a metric is, with which way is better."""
    known = texts().get(metric, {})
    better = {True: "lower is better", False: "higher is better", None: ""}[known.get("lower")]
    return "; ".join(filter(None, [known.get("about", ""), better]))


def bar(found: Mapping[str, Any], limit: float) -> dict[str, float]:
    """Return where a figure's bar and its interval begin and end, in percent of the limit."""

    def share(value: float) -> float:
        return round(100 * min(max(value, 0.0), limit) / limit, 2) if limit else 0.0

    low, high = (found["value"] if found.get(end) is None else found[end] for end in ("low", "high"))
    return {"width": share(found["value"]), "low": share(low), "span": round(share(high) - share(low), 2)}


def limit_of(metric: str, figures: Iterable[Mapping[str, Any] | None]) -> float:
    """Return what a full bar of a metric stands for."""
    ends = [each.get("high") or each["value"] for each in figures if each and each.get("value") is not None]
    most = max(ends, default=0.0)
    return min(most, MAX_ERROR_DRAWN) if metric in SPELLED else most


def verdicts(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences that say what a task's main figures mean, as far as the model and another system have one."""
    metric, systems = task["metric"], task["systems"]
    lower = texts().get(metric, {}).get("lower")
    own = _value(systems, MODEL, metric)
    if own is None or lower is None:
        return
    for system in (WRONG_AUDIO, WHISPER, CASCADE, DEAF):
        other = _value(systems, system, metric)
        found = task["differences"].get(system)
        if other is None:
            continue
        told = f"{metric_title(metric)} {figure(own['value'], own['unit'])}, {system_title(system)} {figure(other['value'], other['unit'])}: "
        if found is None:
            yield told + "not compared item by item."
            continue
        better = own["value"] != other["value"] and (own["value"] < other["value"]) == lower
        clear = found["p"] < SIGNIFICANCE
        sure = f"(p = {found['p']:.2g}, paired on {found['items']} items)."
        if system == WRONG_AUDIO and not (better and clear):
            yield told + f"NOT clearly better than with wrong recordings, so much of it may be guessed {sure}"
        elif system == WRONG_AUDIO:
            yield told + f"the model answers by what it hears {sure}"
        else:
            yield (
                told + f"{'the model is better' if better else 'the model is worse'} {sure}"
                if clear
                else (told + f"no clear difference {sure}")
            )


def _value(systems: Mapping[str, Any], system: str, metric: str | None) -> Mapping[str, Any] | None:
    found = systems.get(system, {}).get("metrics", {}).get(metric)
    return found if found and found.get("value") is not None else None


# ---------------------------------------------------------------------------------------------------- figures of some items

#: Edges between lengths of clips, in seconds, and their names.
DURATION_EDGES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 1800.0)
DURATION_NAMES = (
    *("under 1 s", *(f"{low:g} to {high:g} s" for low, high in pairwise(DURATION_EDGES_S[:7]))),
    *("1 to 5 min", "5 to 30 min", "30 min or more"),
)
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
            rows = each.statistics[[groups.get(one) == name for one in each.ids]]
            if not len(rows) or not math.isfinite(value := float(each.pooled(rows.sum(axis=0)))):
                continue
            bounds = (math.nan, math.nan)
            if len(rows) >= MIN_INTERVAL_ITEMS:
                bounds = percentiles(resampled(rows, each.pooled, samples, seed))
            low, high = (bound if math.isfinite(bound) else None for bound in bounds)
            figures[system] = {"value": value, "low": low, "high": high, "items": len(rows)}
        if figures:
            found.append({"name": name, "systems": figures})
    return found


def duration_name(seconds: float) -> str | None:
    """Return the length of a clip as one of `DURATION_NAMES`; None where it is not known."""
    return DURATION_NAMES[int(np.searchsorted(DURATION_EDGES_S, seconds, side="right"))] if seconds > 0 else None


def error_kinds(rows: Iterable[Row], metric: str) -> dict[str, int] | None:
    """Return substitutions, deletions, insertions and reference words (or characters); None where nothing is scored."""
    prefix, length = SPELLED[metric]
    counted = [row for row in rows if row["scored"] and row.get(length)]
    names = ("substitutions", "deletions", "insertions")
    totals = {name: sum(row[prefix + name] for row in counted) for name in names}
    return {**totals, "reference": sum(row[length] for row in counted)} if counted else None


def paired_difference(first: Measured, second: Measured, samples: int, seed: int) -> dict[str, Any] | None:
    """Return how much more the second system has than the first on items that count in both; None without any."""
    places = [{one: place for place, one in enumerate(each.ids)} for each in (first, second)]
    common = [one for one in first.ids if one in places[1]]
    if len(common) < MIN_INTERVAL_ITEMS:
        return None
    rows = [each.statistics[[place[one] for one in common]] for each, place in zip((first, second), places)]
    found = paired_test(rows[0], rows[1], first.pooled, samples, seed)
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        return None
    return {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "items": len(common)}


# -------------------------------------------------------------------------------------------------- what the report holds


def read_scores(folder: Path) -> dict[str, Any]:
    """
    Return a folder's `scores.json`.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    path = folder / SCORES_FILE
    if not path.is_file():
        raise RunFolderError(f"{folder} has no {SCORES_FILE}; run `audiollm evaluate score {folder}` first.")
    return read_object(path, "tasks")


def gather(folder: Path, worst: int) -> dict[str, Any]:
    """
    Return what a report says, as JSON.

    Its fields: `version`; `run` and `scoring` as in `scores.json`; `judge`, who gave marks; `command` to repeat it;
    `systems`, those there are; `tasks`, each with `kind`, `about`, `metric` (the one to look at), `systems` as in
    `scores.json`, `left_out`, `verdicts` (sentences), `differences` to the model, `by_duration`, `by_category`,
    `error_kinds`, `confusions` and `worst`; and `averages`.

    Args:
        folder: of `audiollm evaluate`, scored.
        worst: items of each task that are shown.

    Raises:
        RunFolderError: it is not scored, or a file in it is damaged.
    """
    scores = read_scores(folder)
    run = scores.get("run") or {}
    systems = systems_of(scores)
    judge, opened = folder / JUDGEMENTS / JUDGE_FILE, open_run(folder)
    return {
        "version": REPORT_VERSION,
        "model": str(run.get("model") or "model"),
        "run": run,
        "scoring": scores.get("scoring") or {},
        "judge": read_object(judge) if judge.is_file() else None,
        "command": command_of(run),
        "systems": systems,
        "tasks": {task: gather_task(opened, task, scores, systems, worst) for task in scores["tasks"]},
        "averages": scores.get("averages") or {},
    }


def command_of(run: Mapping[str, Any]) -> str | None:
    """Return the command that repeats all tasks of a run; None where the run does not say how it was begun."""
    arguments = run.get("arguments")
    if not isinstance(arguments, dict):
        return None
    tasks = list(run.get("tasks", {})) if arguments.get("tasks") else []
    return evaluation_command({**run, "arguments": {**arguments, "tasks": tasks}}, shlex.quote(str(run.get("model"))))


def gather_task(run: Run, task: str, scores: Mapping[str, Any], every: Sequence[str], worst: int) -> dict[str, Any]:
    """Return what a report says of one task; see [`gather`]."""
    folder, entry = run.folder, scores["tasks"][task]
    record = (scores.get("run") or {}).get("tasks", {}).get(task, {})
    scoring = scores.get("scoring") or {}
    draws = int(scoring.get("samples") or SAMPLES), int(scoring.get("seed") or 0)
    systems = [system for system in every if system in entry["systems"]]
    metrics = list(dict.fromkeys(name for each in entry["systems"].values() for name in each["metrics"]))
    main = next((name for name in metrics if name != RTFX), None)
    # Whose mistakes are shown: the model's, or, without it, those of the first system that is no control.
    first = MODEL if MODEL in systems else next((system for system in systems if system != WRONG_AUDIO), None)
    first = first or next(iter(systems), None)
    found: dict[str, Any] = {
        "kind": entry.get("kind"),
        "about": _about(record),
        "items": record.get("items"),
        "left_out": record.get("left_out") or {},
        "metric": main,
        "metrics": metrics,
        "systems": {system: entry["systems"][system] for system in systems},
        "main_system": first,
        **{"differences": {}, "by_duration": [], "by_category": [], "error_kinds": {}},
        **{"confusions": None, "worst": [], "worst_order": None, "verdicts": []},
    }
    if main is None or first is None:
        return found
    rows = {system: list(read_lines(folder / ITEMS / task / f"{system}.jsonl")) for system in systems}
    outputs = {each["id"]: each for each in read_lines(folder / OUTPUTS / task / f"{first}.jsonl")}
    convention = convention_of(record, scoring.get("normaliser"))
    measured = {
        system: measure_answers(joined_sessions(read_answers(run, task, system))[0], [main], convention)[main]
        for system in systems
    }
    # Of the item's own recording, also where a system was given another.
    lengths = {row["id"]: duration_name(float(row.get("duration_s") or 0.0)) for row in rows[first]}
    found["by_duration"] = grouped(measured, lengths, DURATION_NAMES, *draws)
    known = {one: (row.get("extra") or {}).get("category") for one, row in outputs.items()}
    categories = {one: str(name) for one, name in known.items() if name}
    if 1 < len(set(categories.values())) <= MAX_CATEGORIES:
        found["by_category"] = grouped(measured, categories, sorted(set(categories.values())), *draws)
    if first == MODEL:
        pairs = {each: paired_difference(measured[MODEL], measured[each], *draws) for each in systems if each != MODEL}
        found["differences"] = {system: each for system, each in pairs.items() if each is not None}
    if main in SPELLED:
        kinds = {system: error_kinds(rows[system], main) for system in systems}
        found["error_kinds"] = {system: each for system, each in kinds.items() if each is not None}
    if main == "word_error":
        found["confusions"] = confusions(rows[first])
    found["verdicts"] = list(verdicts(found))
    by_id = {system: {row["id"]: row for row in rows[system]} for system in systems if system != first}
    found["worst_order"], chosen = worst_rows(rows[first], main, worst)
    for row in chosen:
        beside = {system: each[row["id"]] for system, each in by_id.items() if row["id"] in each}
        found["worst"].append(example(row, main, beside, _question(outputs.get(row["id"]))))
    return found


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    source = record.get("source")
    source = source if isinstance(source, Mapping) else {}
    settings = record.get("settings") or {}
    kept = ("title", "hub", "config", "split", "licence", "citation", "note")
    return {
        **{name: str(source[name]) for name in kept if source.get(name)},
        **{name: record[name] for name in ("language", "normaliser", "group") if record.get(name)},
        **{name: settings[name] for name in ("limit", "max_new_tokens") if settings.get(name)},
    }


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
    wanted = set(ids)
    found = _named_by_path(folder, task, wanted)
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
        for item in items:
            if item.id in wanted and item.id not in found:
                found[item.id] = list(item.recordings)
            if found.keys() == wanted:
                return found, None
    except (ValueError, OSError) as error:
        return found, f"the recordings cannot be read again: {str(error).rstrip('.')}"
    return found, "the items are made of several recordings, or the data have changed since"


def _named_by_path(folder: Path, task: str, wanted: set[str]) -> dict[str, list[Any]]:
    """Return recordings that a system's rows name by whole paths which are there; the control's are others' recordings."""
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


# --------------------------------------------------------------------------------------------------------------- the page

Players = Mapping[tuple[str, str], Mapping[str, Any]]


def render_page(report: Mapping[str, Any], players: Players, player_notes: Mapping[str, str]) -> str:
    """
    Return the page, which holds all it needs; nothing is fetched from anywhere.

    Args:
        report: as gathered.
        players: by task and item: `uri` with `cut_s`, or `missing`, the reason.
        player_notes: what is to be said of a task's players.

    Raises:
        ImportError: jinja2 or markupsafe is not installed.
    """
    jinja2, markupsafe = (optional_library(name, EXTRA) for name in ("jinja2", "markupsafe"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True
    )
    environment.filters |= {
        "system_title": system_title,
        "system_about": lambda system: READING.get(system, "The model under test is given the recording."),
        "metric_title": metric_title,
        "metric_about": metric_about,
        "count_title": lambda count: {"items": "items asked", "scored": "items that count", **COUNTS}.get(
            count, count.replace("_", " ")
        ),
        **{"figure": figure, "difference": difference, "spread": spread, "number": number, "clock": clock, "bar": bar},
        "unit": unit_of,
        "reasons": reasons_of,
    }
    tasks = report["tasks"].values()
    systems = [scored for found in tasks for scored in found["systems"].values()]
    metrics = list(dict.fromkeys(name for found in tasks for name in found["metrics"]))
    return environment.get_template("report.html.jinja").render(
        report=report,
        name=shown_path(report["model"]),
        rows=[
            row
            for row in score_rows(report)
            if report["tasks"].get(row.task, {}).get("metric", row.metric) == row.metric
        ],
        bases=report["run"].get("bases") or {},
        items=sum(max((each["counts"]["items"] for each in found["systems"].values()), default=0) for found in tasks),
        audio_seconds=sum(
            max((each["audio_seconds"] for each in found["systems"].values()), default=0) for found in tasks
        ),
        metrics=metrics,
        limits={name: limit_of(name, (each["metrics"].get(name) for each in systems)) for name in metrics},
        css=markupsafe.Markup((HERE / "report.css").read_text(encoding="utf-8")),
        settings=list(settings_of(report)),
        signatures=signatures_of(report),
        figures_file=FIGURES_FILE,
        players=players,
        player_notes=player_notes,
    )


def unit_of(found: Mapping[str, Any]) -> str | None:
    """Return the unit of a task's main metric."""
    each = (scored["metrics"].get(found["metric"]) for scored in found["systems"].values())
    return next((figure["unit"] for figure in each if figure), None)


def reasons_of(found: Mapping[str, Any]) -> list[str]:
    """Return the counts of a task that are not zero for all systems, and how many items there are and count."""
    counts = [each["counts"] for each in found["systems"].values()]
    names = dict.fromkeys(name for each in counts for name in each)
    return [name for name in names if name in ("items", "scored") or any(each.get(name) for each in counts)]


def settings_of(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how a run was made: what a figure may depend on."""
    run, scoring, judge = report["run"], report["scoring"], report["judge"] or {}
    settings = run.get("settings") or {}
    own = judge.get("temperature")
    rubrics = [
        f"{name}: {each.get('samples')} samples at temperature {own or each.get('temperature')}"
        for name, each in judge.items()
        if isinstance(each, Mapping)
    ]
    facts = {
        "Model": shown_path(report["model"]),
        "Revision": run.get("revision"),
        "Begun": run.get("started"),
        "Device": run.get("device"),
        "Precision": run.get("dtype"),
        "Items at a time": settings.get("batch_size"),
        "Whisper": settings.get("whisper") and shown_path(str(settings["whisper"])),
        "Weight of CTC": settings.get("ctc_weight") or None,
        "Fingerprint of weights": settings.get("weights"),
        "Commit": run.get("commit"),
        "Judge": "; ".join([str(judge["model"]), *rubrics]) if judge.get("model") else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()),
        "Normaliser": scoring.get("normaliser") or "each task's own",
        "Bootstrap": f"{scoring.get('samples', 'unknown')} samples, seed {scoring.get('seed', 'unknown')}",
    }
    yield from ((name, str(value)) for name, value in facts.items() if value not in (None, ""))


def signatures_of(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what every metric was counted by, each once, with its tasks where they differ."""
    by_text: dict[tuple[str, str], list[str]] = {}
    for task, found in report["tasks"].items():
        for scored in found["systems"].values():
            for metric, each in scored["metrics"].items():
                tasks = by_text.setdefault((metric, each.get("signature") or ""), [])
                if task not in tasks:
                    tasks.append(task)
    several = {metric for metric, _ in by_text if sum(name == metric for name, _ in by_text) > 1}
    return [
        (metric_title(metric) + (f" ({', '.join(tasks)})" if metric in several else ""), signature)
        for (metric, signature), tasks in by_text.items()
        if signature
    ]


@dataclass(frozen=True)
class ReportFiles:
    """
    Files of a report.

    Attributes:
        page, figures: the files.
        players: recordings that can be played in the page.
        left_out: what the page lacks, and why, one sentence each.
    """

    page: Path
    figures: Path
    players: int
    left_out: list[str]


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
        ValueError: the page is too large without a player.
        OSError: a file cannot be read or written.
        ImportError: a library of the extra is not installed.
    """
    folder = Path(folder)
    report = gather(folder, worst)
    limit = int(MAX_HTML_MB * BYTES_PER_MB)
    recordings, notes = _recordings(folder, report)
    players: dict[tuple[str, str], Mapping[str, Any]] = {key: {"uri": None, "missing": NO_ROOM} for key in recordings}
    room = limit - len(render_page(report, players, notes).encode())
    if room < 0:
        raise ValueError(
            f"The page has {(limit - room) / BYTES_PER_MB:.2f} MB without any player, more than {MAX_HTML_MB:g}; show "
            "fewer by --worst."
        )
    # The worst of every task first, then the next.
    ids = [[(task, each["id"]) for each in found["worst"]] for task, found in report["tasks"].items()]
    for key in (key for rank in zip_longest(*ids) for key in rank if key in recordings):
        try:
            uri, cut_s = as_player(recordings[key])
        except (ValueError, OSError) as error:
            players[key] = {"uri": None, "missing": f"the recording cannot be read: {str(error).rstrip('.')}"}
            continue
        if len(uri) + PLAYER_MARKUP_BYTES <= room:
            room -= len(uri) + PLAYER_MARKUP_BYTES
            players[key] = {"uri": uri, "cut_s": cut_s}
    reasons = [each["missing"] for each in players.values() if not each["uri"]]
    left_out = [f"{task}: {note}." for task, note in notes.items()]
    left_out += [f"{reasons.count(reason)} players: {reason}." for reason in dict.fromkeys(reasons)]
    page, figures = folder / PAGE_FILE, folder / FIGURES_FILE
    write_whole(figures, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    write_whole(page, render_page(report, players, notes))
    return ReportFiles(page, figures, sum(bool(each["uri"]) for each in players.values()), left_out)


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

    worst: int = field(default=WORST, metadata={"help": "Worst examples of each task that are shown."})

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
    print(f"Written to {written.page} and {written.figures.name}; {written.players} players.")


if __name__ == "__main__":
    main()
