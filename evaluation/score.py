"""
Score the raw outputs of an evaluation again, without running the model: by another normaliser, or with other metrics.

    audiollm evaluate score runs/evaluation
    audiollm evaluate score runs/evaluation --normaliser leaderboard
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audiollm.command_line.files import write_whole
from audiollm.command_line.option_parser import option, parser_of
from audiollm.publishing.score_table import COUNTS, SYSTEM_TITLES, score_rows, with_interval

from .bootstrap import SAMPLES, percentiles, resampled
from .measures import RATIO, Answer, Convention, Measured, measures_of
from .outputs import ERROR, LENGTH, REPEATED, Run, convention_of, joined_sessions, open_run, read_answers, write_rows
from .systems import DEAF
from .tasks import group_tasks
from .word_error import NORMALISERS

SCORES_FILE, ITEMS = "scores.json", "items"
#: Seconds of audio for each second of work, pooled: not of an answer but of the whole.
RTFX = "rtfx"
#: Figures by metric, of each task and system.
AllMeasured = Mapping[tuple[str, str], Mapping[str, Measured]]


def score_run(
    folder: str | Path, normaliser: str | None = None, samples: int = SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """
    Score every finished system of every task; write `scores.json`, which is returned, and `items/<task>/<system>.jsonl`.

    The folder is the `--output_dir` of `audiollm evaluate`; RunFolderError is raised if it is none, or damaged. The normaliser
    is instead of the tasks' own; samples, drawn from a seed, are for intervals.
    """
    run = open_run(folder)
    tasks: dict[str, Any] = {}
    measured: dict[tuple[str, str], dict[str, Measured]] = {}
    for task, systems in run.outputs.items():
        record = run.task(task)
        tasks[task] = {"kind": record["kind"], "systems": {}}
        for system in systems:
            answers = read_answers(run, task, system)
            joined, left_out = joined_sessions(answers)
            found = measure_answers(joined, record["metrics"], convention_of(record, normaliser))
            figures = {name: figure_of(each, samples, seed) for name, each in found.items()}
            if system != DEAF and (speed := _speed(joined)) is not None:
                figures[RTFX] = figure_of(speed, samples, seed)
            counts = {**_counts(answers, found), **left_out}
            if record.get("items") is not None and len(answers) < record["items"]:
                counts["missing"] = record["items"] - len(answers)
            tasks[task]["systems"][system] = {
                "metrics": figures,
                "counts": counts,
                "audio_seconds": sum(each.duration_s for each in answers),
                "seconds": sum(each.seconds for each in answers),
            }
            measured[task, system] = found
            write_rows(run.folder / ITEMS / task / f"{system}.jsonl", list(_items(joined, found)))
    scored = {
        "run": dict(run.record),
        "scoring": {"normaliser": normaliser, "samples": samples, "seed": seed},
        "tasks": tasks,
        "averages": group_averages(run, tasks, measured, samples, seed),
    }
    write_whole(run.folder / SCORES_FILE, json.dumps(scored, indent=1, ensure_ascii=False, allow_nan=False))
    return scored


def measure_answers(answers: Sequence[Answer], metrics: Sequence[str], convention: Convention) -> dict[str, Measured]:
    """Return the figures of answers by the names of the measures that a task's metrics stand for."""
    return {name: score(answers, convention) for name, score in measures_of(metrics).items()}


def figure_of(measured: Measured, samples: int, seed: int) -> dict[str, Any]:
    """Return a figure with its interval, as JSON; null where there is nothing to score."""
    values = zip(("value", "low", "high"), (measured.value, *measured.interval(samples, seed)))
    return {
        **{name: value if math.isfinite(value) else None for name, value in values},
        **{"unit": measured.unit, "scored": len(measured.ids), "signature": measured.signature},
    }


def _speed(answers: Sequence[Answer]) -> Measured | None:
    """Return the real-time factor; None where no audio was worked off."""
    times = np.array([(each.duration_s, each.seconds) for each in answers], dtype=np.float64).reshape(-1, 2)
    if not (times.sum(axis=0) > 0).all():
        return None
    return Measured(times, [each.id for each in answers], RATIO, "seconds of audio over seconds of work, pooled")


def _counts(answers: Sequence[Answer], measured: Mapping[str, Measured]) -> dict[str, int]:
    """Return the numbers of items, of those that count, and of those that do not, by reason."""
    finishes = [each.finish for each in answers]
    dropped = {reason: n for each in reversed(list(measured.values())) for reason, n in each.dropped.items() if n}
    return {
        **{"items": len(answers), "scored": len(_scored(measured)), "skipped_empty_reference": 0},
        **{"empty_outputs": sum(not each.text.strip() for each in answers), "errors": finishes.count(ERROR)},
        **{"unparsable": 0, "length_limited": finishes.count(LENGTH), "repeated": finishes.count(REPEATED)},
        **dropped,
    }


def _scored(measured: Mapping[str, Measured]) -> Sequence[str]:
    """Return the items that count: those of the first measure that has any."""
    return next((each.ids for each in measured.values() if each.ids), ())


def _items(answers: Sequence[Answer], measured: Mapping[str, Measured]) -> Iterator[dict[str, Any]]:
    """Yield every answer with the facts that measures have of it; those that do not count have `scored` false."""
    scored = set(_scored(measured))
    for answer in answers:
        row: dict[str, Any] = {
            **{"id": answer.id, "duration_s": answer.duration_s, "reference": answer.reference},
            **{"output": answer.text, "finish": answer.finish, "scored": answer.id in scored},
        }
        for name, each in measured.items():
            for key, value in each.items.get(answer.id, {}).items():
                row[key if key not in row else f"{name}_{key}"] = value
        yield row


def group_averages(
    run: Run, tasks: Mapping[str, Any], measured: AllMeasured, samples: int, seed: int
) -> dict[str, Any]:
    """
    Return unweighted means over the tasks of each group, as leaderboards average; real-time factors are pooled.

    An average of some of a group's tasks is `partial` and names those that are missing: it is not the leaderboard's.
    """
    groups = {task: run.task(task).get("group") for task in tasks}
    averages: dict[str, Any] = {group: {} for group in groups.values() if group}
    for group, by_system in averages.items():
        present = [task for task in tasks if groups[task] == group]
        members = list(dict.fromkeys([*group_tasks(group), *present]))
        for system in dict.fromkeys(system for task in present for system in tasks[task]["systems"]):
            scores = {task: tasks[task]["systems"][system] for task in members if (task, system) in measured}
            by_system[system] = {}
            for name in dict.fromkeys(name for each in scores.values() for name in each["metrics"]):
                figures = {task: each["metrics"].get(name) for task, each in scores.items()}
                figures = {task: each for task, each in figures.items() if each and each["value"] is not None}
                if not figures:
                    continue
                low = high = None
                if name == RTFX:
                    value = sum(scores[task]["audio_seconds"] for task in figures)
                    value /= sum(scores[task]["seconds"] for task in figures)
                else:
                    value = float(np.mean([each["value"] for each in figures.values()]))
                    # Tasks are drawn from one seed, and independent: each in an order of its own.
                    each = [measured[task, system][name] for task in figures]
                    drawn = [resampled(one.statistics, one.pooled, samples, seed) for one in each]
                    orders = [np.random.default_rng(index).permutation(one) for index, one in enumerate(drawn)]
                    low, high = percentiles(np.mean(orders, axis=0))
                missing = [task for task in members if task not in figures]
                by_system[system][name] = {
                    **{"value": value, "low": low, "high": high, "unit": next(iter(figures.values()))["unit"]},
                    **{"tasks": list(figures), "missing": missing, "partial": bool(missing)},
                }
    return averages


def score_table(scores: Mapping[str, Any], tasks: Sequence[str] | None = None) -> str:
    """Return a line for each figure, and for each reason not to count; `tasks` are only these, without means."""
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


@dataclass
class ScoringOptions:
    """Options of scoring."""

    normaliser: str | None = option(
        None, "Makes texts alike before words are compared; by default each task's own.", choices=list(NORMALISERS)
    )
    samples: int = option(SAMPLES, "Samples drawn for intervals and tests.")
    seed: int = option(0, "Seed of the draws.")

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"--samples is {self.samples}; expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; expected 0 or more")


@dataclass
class ScoreOptions(ScoringOptions):
    """Options of scoring and of the report."""

    no_report: bool = option(False, "Leave out report.html.")


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
