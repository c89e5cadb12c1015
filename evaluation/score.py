"""
Score the raw outputs of an evaluation again, without running the model: by another normaliser, or with other metrics.

    audiollm evaluate score runs/evaluation
    audiollm evaluate score runs/evaluation --normaliser leaderboard
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from audiollm.files import write_whole
from audiollm.option_parser import parser_of
from audiollm.publishing.score_table import COUNTS, score_rows, with_interval
from audiollm.publishing.score_table import SYSTEMS as SYSTEM_TITLES

from .bootstrap import SAMPLES, percentiles, ratio, resampled
from .measures import RATIO, Answer, Convention, Measured, measures_of
from .outputs import (
    ERROR,
    LENGTH,
    REPEATED,
    Run,
    convention_of,
    joined_sessions,
    open_run,
    read_answers,
    write_rows,
)
from .systems import DEAF
from .tasks import group_tasks
from .word_error import NORMALISERS

SCORES_FILE, ITEMS = "scores.json", "items"
#: Seconds of audio for each second of work, pooled: not of an answer but of the whole.
RTFX = "rtfx"


def score_run(
    folder: str | Path,
    normaliser: str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Score every finished system of every task, and write `scores.json` and `items/<task>/<system>.jsonl`.

    Args:
        folder: the `--output_dir` of `audiollm evaluate`.
        normaliser: instead of the tasks' own; see `word_error.py`.
        samples: drawn for intervals. seed: of the draws.

    Returns:
        What `scores.json` holds.

    Raises:
        RunFolderError: it is no such folder, or a file in it is damaged.
        ValueError: there is no such metric or normaliser.
        ImportError: a library that a metric needs is not installed.
    """
    run = open_run(folder)
    tasks: dict[str, Any] = {}
    drawn: dict[tuple[str, str, str], np.ndarray] = {}
    for task in run.outputs:
        convention = convention_of(run.task(task), normaliser)
        systems = {}
        for system in run.outputs[task]:
            answers = read_answers(run, task, system)
            scores, figures, items = score_answers(answers, run.task(task)["metrics"], convention, samples, seed)
            expected = run.task(task).get("items")
            if expected is not None and len(answers) < expected:
                scores["counts"]["missing"] = expected - len(answers)
            systems[system] = scores
            write_rows(run.folder / ITEMS / task / f"{system}.jsonl", items)
            if system == DEAF:  # it hears nothing, so no audio is worked off
                scores["metrics"].pop(RTFX, None)
            drawn |= {(task, system, name): each for name, each in figures.items()}
        tasks[task] = {"kind": run.task(task)["kind"], "systems": systems}
    scored = {
        "run": dict(run.record),
        "scoring": {"normaliser": normaliser, "samples": samples, "seed": seed},
        "tasks": tasks,
        "averages": group_averages(run, tasks, drawn),
    }
    write_whole(run.folder / SCORES_FILE, json.dumps(scored, indent=1, ensure_ascii=False, allow_nan=False))
    return scored


def score_answers(
    answers: Sequence[Answer],
    metrics: Sequence[str],
    convention: Convention,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[dict[str, Any]]]:
    """
    Score one system on one task.

    Returns:
        What `scores.json` holds of it; resampled figures `(samples,)` by metric; and its items.
    """
    joined, dropped = joined_sessions(answers)
    measured = measure_answers(joined, metrics, convention)
    drawn = {
        name: resampled(each.statistics, each.pooled, samples, seed)
        for name, each in measured.items()
        if len(each.statistics)
    }
    figures = {name: figure_of(each, drawn.get(name)) for name, each in measured.items()}
    audio, seconds = sum(each.duration_s for each in answers), sum(each.seconds for each in answers)
    if joined and audio > 0 and seconds > 0:
        times = np.array([(each.duration_s, each.seconds) for each in joined], dtype=np.float64)
        speed = Measured(times, [each.id for each in joined], RATIO, "seconds of audio over seconds of work, pooled")
        figures[RTFX] = figure_of(speed, resampled(speed.statistics, samples=samples, seed=seed))
    main = _main_of(measured)
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
    return scores, drawn, list(_items(joined, measured))


def measure_answers(answers: Sequence[Answer], metrics: Sequence[str], convention: Convention) -> dict[str, Measured]:
    """
    Return what each metric's measures make of answers, by their names.

    Raises:
        ValueError: there is no such metric.
        ImportError: a library that one needs is not installed.
    """
    return {name: score(answers, convention) for name, score in measures_of(metrics).items()}


def _main_of(measured: Mapping[str, Measured]) -> Measured:
    """Return the measure whose items are counted as scored: the first that has any."""
    return next((each for each in measured.values() if each.ids), next(iter(measured.values())))


def figure_of(measured: Measured, drawn: np.ndarray | None) -> dict[str, Any]:
    """Return a figure with the interval of resampled ones `(samples,)`, as JSON; null where there is nothing to score."""
    bounds = (math.nan, math.nan) if drawn is None else percentiles(drawn)
    value, low, high = (each if math.isfinite(each) else None for each in (measured.value, *bounds))
    known = {"unit": measured.unit, "scored": len(measured.ids), "signature": measured.signature}
    return {"value": value, "low": low, "high": high, **known}


def _items(answers: Sequence[Answer], measured: Mapping[str, Measured]) -> Iterator[dict[str, Any]]:
    """Yield every answer with what its measures say of it; those that do not count have `scored` false."""
    scored = set(_main_of(measured).ids)
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
        yield row


# ---------------------------------------------------------------------------------------------------------------- averages


def group_averages(
    run: Run, tasks: Mapping[str, Any], drawn: Mapping[tuple[str, str, str], np.ndarray]
) -> dict[str, Any]:
    """
    Return unweighted means over the tasks of each group, as leaderboards average; real-time factors are pooled.

    An average of some of a group's tasks is `partial` and names those that are missing: it is not the leaderboard's.
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        if run.task(task).get("group"):
            groups.setdefault(run.task(task)["group"], []).append(task)
    averages: dict[str, Any] = {}
    for group, members in groups.items():
        every = [*dict.fromkeys([*group_tasks(group), *members])]
        systems = dict.fromkeys(system for task in members for system in tasks[task]["systems"])
        averages[group] = {system: _averages(every, system, tasks, drawn) for system in systems}
    return averages


def _averages(
    members: Sequence[str],
    system: str,
    tasks: Mapping[str, Any],
    drawn: Mapping[tuple[str, str, str], np.ndarray],
) -> dict[str, Any]:
    answered = {task: tasks[task]["systems"][system] for task in members if system in _systems(tasks, task)}
    averages = {}
    for name in dict.fromkeys(name for scores in answered.values() for name in scores["metrics"]):
        figures = {
            task: scores["metrics"][name]
            for task, scores in answered.items()
            if scores["metrics"].get(name, {}).get("value") is not None
        }
        if not figures:
            continue
        if name == RTFX:
            times = np.array([[answered[task]["audio_seconds"], answered[task]["seconds"]] for task in figures])
            value, low, high = float(ratio(times.sum(axis=0))), None, None
        else:
            value = float(np.mean([each["value"] for each in figures.values()]))
            # Tasks are drawn from one seed, and independent: each in an order of its own.
            low, high = percentiles(
                np.mean(
                    [
                        np.random.default_rng(index).permutation(drawn[task, system, name])
                        for index, task in enumerate(figures)
                    ],
                    axis=0,
                )
            )
        missing = [task for task in members if task not in figures]
        averages[name] = {
            **{"value": value, "low": low, "high": high, "unit": next(iter(figures.values()))["unit"]},
            **{"tasks": list(figures), "missing": missing, "partial": bool(missing)},
        }
    return averages


def _systems(tasks: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    return tasks.get(task, {}).get("systems", {})


# ------------------------------------------------------------------------------------------------------- shown to people


def score_table(scores: Mapping[str, Any], tasks: Sequence[str] | None = None) -> str:
    """
    Return scores for people: a line for each figure, and what did not count.

    Args:
        tasks: only these, in their order, without means.
    """
    lines: list[tuple[str, str, str, str]] = []
    for row in score_rows(scores, tasks):
        for system, each in row.figures.items():
            count = f"{each['scored']} scored" if "scored" in each else f"{len(each['tasks'])} tasks"
            figure = "nothing to score" if each["value"] is None else with_interval(each)
            told = "; ".join(filter(None, (count, row.note)))
            lines.append((row.task, row.title, SYSTEM_TITLES.get(system, system), f"{figure}  ({told})"))
    for task in scores["tasks"] if tasks is None else tasks:
        for system, found in scores["tasks"].get(task, {}).get("systems", {}).items():
            for reason, told in COUNTS.items():
                if count := found["counts"].get(reason):
                    items = f"{count} of {found['counts']['items']} {told}"
                    lines.append((task, "", SYSTEM_TITLES.get(system, system), items))
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[3]]) for line in lines)


# ------------------------------------------------------------------------------------------------------------ the command


@dataclass
class ScoringOptions:
    """Options of scoring."""

    normaliser: str | None = field(
        default=None,
        metadata={
            "help": "What makes texts alike before words are compared; each task's own if not given.",
            "choices": list(NORMALISERS),
        },
    )
    samples: int = field(default=SAMPLES, metadata={"help": "Samples drawn for intervals and tests."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"--samples is {self.samples}; expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; expected 0 or more")


@dataclass
class ScoreOptions(ScoringOptions):
    """Options of scoring and of the report."""

    no_report: bool = field(default=False, metadata={"help": "Leave out report.html."})


def main(argv: Sequence[str] | None = None) -> None:
    """Run `audiollm evaluate score`."""
    from .report import told_of_report

    parser = parser_of(ScoreOptions, "evaluate score", "FOLDER [options]", __doc__)
    parser.add_argument("folder", help="the --output_dir of audiollm evaluate")
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    folder = given.pop("folder")
    try:
        options = ScoreOptions(**given)
        print(score_table(score_run(folder, options.normaliser, options.samples, options.seed)))
        print(f"Written to {folder}/{SCORES_FILE}.")
        if not options.no_report:
            print(told_of_report(folder))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"audiollm evaluate score: {error}")


if __name__ == "__main__":
    main()
