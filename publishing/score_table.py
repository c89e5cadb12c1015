"""
Table of an evaluation's scores: a row for each task and metric, a column for each system.

The card's table, what `audiollm evaluate` prints and the summary of its report are made of the same rows.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .record import SECRET_OPTION, shown_path

SCORED_SYSTEM = "model"
#: Titles of the systems, in the order of the columns.
SYSTEM_TITLES = {
    SCORED_SYSTEM: "this model",
    "wrong_audio": "given the wrong recordings",
    "whisper": "Whisper's own decoder",
    "cascade": "Whisper's transcript read by the base",
    "deaf": "the base without the recording",
}
#: Purpose of a system.
READING = {
    "wrong_audio": "The wrong recordings tell listening from guessing.",
    "whisper": "Whisper's own decoder is the bar that the same encoder sets.",
    "cascade": "The transcript read by the base is what the two do without being joined.",
    "deaf": "The base without the recording is what can be guessed from the question.",
}
#: Counts beside a score, in words.
COUNTS = {
    "skipped_empty_reference": "left out, because their reference is empty",
    "skipped_ignored_segment": "left out, because the benchmark says so",
    "incomplete_sessions": "left out: recordings of which a part is missing",
    "empty_outputs": "answered with nothing",
    "errors": "failed, counted as empty answers",
    "unparsable": "answered in a form that could not be read",
    "length_limited": "cut off at the longest answer allowed",
    "repeated": "stopped, because they repeated themselves",
    "unjudged": "without a judge's mark",
    "judge_failures": "judge's replies that failed or could not be read",
    "not_compared": "not compared with the base",
    "not_measured": "not measured",
    "missing": "not answered yet; the run is not finished",
}
NOT_OPTIONS = ("model", "tasks", "revision", "output_dir", "output", "device", "device_map", "list_tasks")
COMMAND = "audiollm evaluate"


@dataclass(frozen=True)
class ScoreRow:
    """One metric of a task, or its mean over a group of tasks."""

    task: str  # name of the task, or "mean of" a group
    metric: str  # name of the metric
    unit: str | None  # fraction, points or ratio; None where there is no figure
    figures: Mapping[str, Mapping[str, Any]]  # by system, as in `scores.json`; without those that lack the metric
    note: str = ""  # warning about the mean

    @property
    def title(self) -> str:
        """The metric with its unit."""
        return f"{self.metric} ({self.unit})" if self.unit else self.metric


def systems_of(scores: Mapping[str, Any]) -> list[str]:
    """Return the systems that an evaluation has scores of, in the order of the columns."""
    present = {name for found in scores["tasks"].values() for name in found.get("systems", {})}
    return [name for name in [*SYSTEM_TITLES, *sorted(present - set(SYSTEM_TITLES))] if name in present]


def score_rows(scores: Mapping[str, Any], tasks: Sequence[str] | None = None) -> list[ScoreRow]:
    """Return the rows of an evaluation's `scores.json`; of some `tasks`, without means."""
    found = {
        task: scores["tasks"].get(task, {}).get("systems", {})
        for task in (scores["tasks"] if tasks is None else tasks)
    }
    metrics = {task: {name: each.get("metrics", {}) for name, each in found[task].items()} for task in found}
    if tasks is None:
        metrics |= {f"mean of {group}": by_system for group, by_system in (scores.get("averages") or {}).items()}
    rows = []
    for task, by_system in metrics.items():
        ordered = {name: by_system[name] for name in systems_of(scores) if name in by_system}
        for metric in dict.fromkeys(metric for each in ordered.values() for metric in each):
            figures = {name: each[metric] for name, each in ordered.items() if metric in each}
            unit = next((figure["unit"] for figure in figures.values() if figure.get("unit")), None)
            missing = sorted({", ".join(figure["missing"]) for figure in figures.values() if figure.get("partial")})
            note = "; ".join(f"NOT the leaderboard's average: without {names}" for names in missing)
            rows.append(ScoreRow(task, metric, unit, figures, note))
    return rows


def evaluation_command(run: Mapping[str, Any], repo_id: str) -> str:
    """Return the command that repeats an evaluation on the published model."""
    arguments = run.get("arguments") or {}
    # An evaluation without tasks was one of the user's own data.
    tasks = arguments.get("tasks", ",".join(run.get("tasks", {})))
    words = [f"--tasks={tasks if isinstance(tasks, str) else ','.join(tasks)}"] if tasks else []
    for name, value in arguments.items():
        is_idle = name.startswith("judge_") and not arguments.get("judge_model")
        if is_idle or name in NOT_OPTIONS or SECRET_OPTION.search(name) or value in (None, False, "", [], {}):
            continue
        words.append(f"--{name}")
        for entry in [] if value is True else value if isinstance(value, list) else [value]:
            task, mark, path = str(entry).rpartition("=")  # a task's copy is `task=path`
            words.append(task + mark + shown_path(path))
    return " ".join([COMMAND, f"--model={repo_id}", *map(shlex.quote, words), "--output_dir", "evaluation"])


def with_interval(score: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval in brackets, three digits each."""
    if score is None or score.get("value") is None:
        return "–"
    low, high = score.get("low"), score.get("high")
    interval = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
    return f"{score['value']:.3g}{interval}"
