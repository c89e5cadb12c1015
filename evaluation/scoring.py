"""
Scores of a folder of raw outputs: `scores.json`, and `items/` with what each item has to do with them.

The model is not run: a metric, a normaliser or an aligner may change as often as one likes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .bootstrap import SAMPLES, percentiles, ratio, resampled
from .measures import Answer, Convention, Measured, measures_of
from .measures.measure import RATIO
from .outputs import ERROR, LENGTH, REPEATED, write_whole
from .run_answers import Run, convention_of, joined_sessions, open_run, read_answers
from .systems import DEAF
from .tasks import group_tasks

SCORES_FILE, ITEMS = "scores.json", "items"
#: Seconds of audio for each second of work, pooled: not of an answer but of the whole.
RTFX = "rtfx"


def score_run(
    folder: str | Path,
    normaliser: str | None = None,
    aligner: str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Scores every finished system of every task, and writes `scores.json` and `items/<task>/<system>.jsonl`.

    Args:
        folder: the `--output_dir` of `audiollm evaluate`.
        normaliser, aligner: instead of those of the tasks; see `evaluation/word_error.py`.
        samples: drawn for intervals. seed: of the draws.

    Returns:
        What `scores.json` holds.

    Raises:
        RunFolderError: it is no such folder, or a file in it is damaged.
        ValueError: there is no such metric, normaliser or aligner.
        ImportError: a library that a metric needs is not installed.
    """
    run = open_run(folder)
    tasks: dict[str, Any] = {}
    drawn: dict[tuple[str, str, str], np.ndarray] = {}
    for task in run.outputs:
        convention = convention_of(run.task(task), normaliser, aligner)
        systems = {}
        for system in run.outputs[task]:
            answers = read_answers(run, task, system)
            scores, figures, items = score_answers(answers, run.task(task)["metrics"], convention, samples, seed)
            expected = run.task(task).get("items")
            if expected is not None and len(answers) < expected:
                scores["counts"]["missing"] = expected - len(answers)
            systems[system] = scores
            write_whole(run.folder / ITEMS / task / f"{system}.jsonl", items)
            if system == DEAF:  # it hears nothing, so no audio is worked off
                scores["metrics"].pop(RTFX, None)
            drawn |= {(task, system, name): each for name, each in figures.items()}
        tasks[task] = {"kind": run.task(task)["kind"], "systems": systems}
    scored = {
        "run": dict(run.record),
        "scoring": {"normaliser": normaliser, "aligner": aligner, "samples": samples, "seed": seed},
        "tasks": tasks,
        "averages": group_averages(run, tasks, drawn),
    }
    data = json.dumps(scored, indent=1, ensure_ascii=False, allow_nan=False).encode()
    write_whole(run.folder / SCORES_FILE, data)
    return scored


def score_answers(
    answers: Sequence[Answer],
    metrics: Sequence[str],
    convention: Convention,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, np.ndarray], bytes]:
    """
    Scores of one system on one task.

    Returns:
        What `scores.json` holds of it; resampled figures `(samples,)` by metric; and its items as JSON Lines.
    """
    joined, dropped = joined_sessions(answers)
    measured = measure_answers(joined, metrics, convention)
    drawn = {
        name: resampled(each.statistics, each.pooled, samples, seed)
        for name, each in measured.items()
        if len(each.statistics)
    }
    figures = {name: figure(each, drawn.get(name)) for name, each in measured.items()}
    audio, seconds = sum(each.duration_s for each in answers), sum(each.seconds for each in answers)
    if joined and audio > 0 and seconds > 0:
        times = np.array([(each.duration_s, each.seconds) for each in joined], dtype=np.float64)
        speed = Measured(times, [each.id for each in joined], RATIO, "seconds of audio over seconds of work, pooled")
        figures[RTFX] = figure(speed, resampled(speed.statistics, samples=samples, seed=seed))
    main = main_of(measured)
    reasons = {reason: count for each in reversed(list(measured.values())) for reason, count in each.dropped.items()}
    counts = {
        "items": len(answers),
        "scored": len(main.ids),
        "skipped_empty_reference": 0,
        "empty_outputs": sum(not each.text.strip() for each in answers),
        "errors": sum(each.finish == ERROR for each in answers),
        "unparsable": 0,
        "length_limited": sum(each.finish == LENGTH for each in answers),
        "repeated": sum(each.finish == REPEATED for each in answers),
        **reasons,
        **dropped,
    }
    scores = {"metrics": figures, "counts": counts, "audio_seconds": audio, "seconds": seconds}
    return scores, drawn, item_lines(joined, measured)


def measure_answers(answers: Sequence[Answer], metrics: Sequence[str], convention: Convention) -> dict[str, Measured]:
    """
    What each metric's measures make of answers, by their names.

    Raises:
        ValueError: there is no such metric.
        ImportError: a library that one needs is not installed.
    """
    return {measure.name: measure.measure(answers, convention) for measure in measures_of(tuple(metrics))}


def main_of(measured: Mapping[str, Measured]) -> Measured:
    """The measure whose items are counted as scored: the first that has any."""
    return next((each for each in measured.values() if each.ids), next(iter(measured.values())))


def figure(measured: Measured, drawn: np.ndarray | None) -> dict[str, Any]:
    """A figure with the interval of resampled ones `(samples,)`, as JSON; null where there was nothing to score."""
    low, high = (math.nan, math.nan) if drawn is None else percentiles(drawn)
    return {
        **{"value": _json(measured.value), "low": _json(low), "high": _json(high)},
        **{"unit": measured.unit, "scored": len(measured.ids), "signature": measured.signature},
    }


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def item_lines(answers: Sequence[Answer], measured: Mapping[str, Measured]) -> bytes:
    """Every answer with what its measures say of it, as JSON Lines; those that do not count have `scored` false."""
    lines = []
    scored = set(main_of(measured).ids)
    for answer in answers:
        row: dict[str, Any] = {
            "id": answer.id,
            "duration_s": answer.duration_s,
            "reference": answer.reference,
            "output": answer.text,
            "finish": answer.finish,
            "scored": answer.id in scored,
        }
        for name, each in measured.items():
            for key, value in each.items.get(answer.id, {}).items():
                row[key if key not in row else f"{name}_{key}"] = value
        lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return b"".join(lines)


def group_averages(
    run: Run, tasks: Mapping[str, Any], drawn: Mapping[tuple[str, str, str], np.ndarray]
) -> dict[str, Any]:
    """
    Unweighted means over the tasks of each group, as leaderboards average; real-time factors are pooled.

    An average of some of a group's tasks is `partial` and names those that are missing: it is not the leaderboard's.
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        if run.task(task).get("group"):
            groups.setdefault(run.task(task)["group"], []).append(task)
    averages: dict[str, Any] = {}
    for group, members in groups.items():
        systems = list(dict.fromkeys(system for task in members for system in tasks[task]["systems"]))
        averages[group] = {
            system: _system_averages([*dict.fromkeys([*group_tasks(group), *members])], system, tasks, drawn)
            for system in systems
        }
    return averages


def _system_averages(
    members: Sequence[str],
    system: str,
    tasks: Mapping[str, Any],
    drawn: Mapping[tuple[str, str, str], np.ndarray],
) -> dict[str, Any]:
    answered = {
        task: tasks[task]["systems"][system]
        for task in members
        if system in tasks.get(task, {"systems": {}})["systems"]
    }
    names = dict.fromkeys(name for scores in answered.values() for name in scores["metrics"])
    averages = {}
    for name in names:
        figures = {
            task: scores["metrics"][name]
            for task, scores in answered.items()
            if scores["metrics"].get(name, {}).get("value") is not None
        }
        missing = [task for task in members if task not in figures]
        if not figures:
            continue
        if name == RTFX:
            times = np.array([[answered[task]["audio_seconds"], answered[task]["seconds"]] for task in figures])
            value, low, high = float(ratio(times.sum(axis=0))), None, None
        else:
            value = float(np.mean([each["value"] for each in figures.values()]))
            low, high = percentiles(
                np.mean([_independent(drawn[task, system, name], index) for index, task in enumerate(figures)], axis=0)
            )
        averages[name] = {
            **{"value": value, "low": low, "high": high, "unit": next(iter(figures.values()))["unit"]},
            **{"tasks": list(figures), "missing": missing, "partial": bool(missing)},
        }
    return averages


def _independent(figures: np.ndarray, index: int) -> np.ndarray:
    """A task's resampled figures in an order of its own, since tasks are drawn from one seed and independent."""
    return np.random.default_rng(index).permutation(figures)


def score_table(scores: Mapping[str, Any]) -> str:
    """Scores for people: a line for each figure, and what did not count."""
    lines = []
    for task, entry in scores["tasks"].items():
        for system, found in entry["systems"].items():
            for name, each in found["metrics"].items():
                lines.append(f"{task:24} {system:12} {name:22} {shown(each)}  ({each['scored']} items)")
            noted = [
                f"{count} {reason}"
                for reason, count in found["counts"].items()
                if count and reason not in ("items", "scored")
            ]
            if noted:
                lines.append(f"{task:24} {system:12} of {found['counts']['items']} items: {', '.join(noted)}")
    for group, systems in scores["averages"].items():
        for system, averages in systems.items():
            for name, each in averages.items():
                title = f"average of {group}" if not each["partial"] else f"part of {group}"
                missing = f"; without {', '.join(each['missing'])}" if each["partial"] else ""
                lines.append(f"{title:24} {system:12} {name:22} {shown(each)}  ({len(each['tasks'])} tasks{missing})")
    return "\n".join(lines)


def shown(figure: Mapping[str, Any]) -> str:
    """A figure with its interval and unit, as a table has it."""
    if figure["value"] is None:
        return "nothing to score"
    spread = "" if figure["low"] is None else f" [{figure['low']:.4g}, {figure['high']:.4g}]"
    return f"{figure['value']:.4g}{spread} {figure['unit']}"


__all__ = ["RTFX", "SCORES_FILE", "measure_answers", "score_answers", "score_run", "score_table", "shown"]
