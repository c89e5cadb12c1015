"""Table of an evaluation's scores in a card: a row for each task and metric, a column for each system."""

import shlex
from collections.abc import Mapping
from typing import Any

from .header import SCORED_SYSTEM, CardError
from .record import SECRET_OPTION, shown_path

#: Titles of the systems in a card, in the order of the columns.
SYSTEMS = {
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
    "empty_outputs": "answered with nothing",
    "errors": "failed, counted as empty answers",
    "unparsable": "answered in a form that could not be read",
    "length_limited": "cut off at the longest answer allowed",
}
NOT_OPTIONS = ("model", "revision", "output_dir", "output", "device", "device_map", "list_tasks")
COMMAND = "audiollm evaluate"


def score_table(scores: Mapping[str, Any], repo_id: str) -> dict[str, Any]:
    """
    Return the values for the evaluation section of the template.

    Args:
        scores: contents of an evaluation's `scores.json`.
        repo_id: the model in the command that repeats the evaluation.

    Raises:
        CardError: there are no scores, or none of the model.
    """
    tasks = scores.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise CardError("The scores have no tasks; expected the scores.json that `audiollm score` writes.")
    present = {name for found in tasks.values() for name in found.get("systems", {})}
    if SCORED_SYSTEM not in present:
        raise CardError(f"The scores are of {sorted(present)}; there are none of the model itself.")
    systems = [name for name in [*SYSTEMS, *sorted(present - set(SYSTEMS))] if name in present]
    rows, remarks = [], []
    for task, found in tasks.items():
        by_system = found.get("systems", {})
        metrics = dict.fromkeys(metric for name in systems for metric in by_system.get(name, {}).get("metrics", {}))
        counts = by_system.get(SCORED_SYSTEM, {}).get("counts", {})
        for metric in metrics:
            values = [by_system.get(name, {}).get("metrics", {}).get(metric) for name in systems]
            rows.append(
                {
                    "task": _cell(task),
                    "metric": _metric_name(metric, values),
                    "count": counts.get("scored", "not recorded"),
                    "values": [_with_interval(value) for value in values],
                }
            )
        remarks += _source(task, scores.get("run", {}).get("tasks", {}).get(task, {}))
        remarks += [f"{task}: {counts[name]} {what}." for name, what in COUNTS.items() if counts.get(name)]
        remarks += [f"{task}, {metric}: `{score['signature']}`." for metric, score in _signed(by_system)]
    for group, by_system in scores.get("averages", {}).items():
        for metric in dict.fromkeys(metric for name in systems for metric in by_system.get(name, {})):
            values = [by_system.get(name, {}).get(metric) for name in systems]
            label = {"task": f"mean of {_cell(group)}", "metric": _metric_name(metric, values), "count": ""}
            rows.append({**label, "values": [_with_interval(value) for value in values]})
    run = scores.get("run", {})
    versions = {**run.get("versions", {})}
    commit = versions.pop("audiollm_commit", None) or run.get("commit")
    words = [f"{name} {version}" for name, version in versions.items() if isinstance(version, (str, int, float))]
    return {
        "reading": [READING[name] for name in systems if name in READING],
        "setting": _setting(run, scores.get("scoring") or {}),
        "systems": [SYSTEMS.get(name, name) for name in systems],
        "rows": rows,
        "remarks": remarks,
        "versions": ", ".join([*words, *([f"commit {commit}"] if commit else [])]),
        "command": evaluation_command(run, repo_id),
    }


def evaluation_command(run: Mapping[str, Any], repo_id: str) -> str:
    """Return the command that repeats an evaluation on the published model."""
    arguments = run.get("arguments") or {}
    if not isinstance(arguments, dict):
        arguments = {}
    # An evaluation without tasks was one of the user's own data.
    tasks = arguments.get("tasks", ",".join(run.get("tasks", {})))
    words = [f"--model={repo_id}"]
    words += [f"--tasks={tasks if isinstance(tasks, str) else ','.join(tasks)}"] if tasks else []
    without_judge = (
        () if arguments.get("judge_model") else tuple(name for name in arguments if name.startswith("judge_"))
    )
    for name, value in arguments.items():
        if (
            name in without_judge
            or name in (*NOT_OPTIONS, "tasks")
            or SECRET_OPTION.search(name)
            or value in (None, False, "", [], {})
        ):
            continue
        values = value if isinstance(value, list) else [value]
        shown = [_without_place(entry) if isinstance(entry, str) else str(entry) for entry in values]
        words += [f"--{name}", *([] if value is True else shown)]
    quoted = [word if word == f"--model={repo_id}" else shlex.quote(word) for word in words]
    return " ".join([*COMMAND.split(), *quoted, "--output_dir", "evaluation"])


def _without_place(value: str) -> str:
    """Return a value without folders of this machine: a path, or a task's copy as `task=path`."""
    name, is_pair, path = value.partition("=")
    return f"{name}={shown_path(path)}" if is_pair else shown_path(value)


def _source(task: str, record: Mapping[str, Any]) -> list[str]:
    """Return the source of a task's questions and its licence, as far as they are recorded."""
    source = record.get("source") or {}
    found = [source.get("title"), source.get("hub"), source.get("licence") and f"licence {source['licence']}"]
    return [f"{task}: {'; '.join(str(each) for each in found if each)}."] if any(found) else []


def _setting(run: Mapping[str, Any], scoring: Mapping[str, Any]) -> str:
    """Return how answers and intervals were computed, as far as it is recorded."""
    parts = [f"{name} {run[name]}" for name in ("device", "dtype") if run.get(name)]
    if scoring.get("samples"):
        parts.append(f"intervals from {scoring['samples']} bootstrap samples, seed {scoring.get('seed')}")
    return "; ".join(parts)


def _signed(by_system: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    metrics = by_system.get(SCORED_SYSTEM, {}).get("metrics", {})
    return [(metric, score) for metric, score in metrics.items() if score.get("signature")]


def _metric_name(metric: str, values: list[Any]) -> str:
    unit = next((value["unit"] for value in values if value and value.get("unit")), None)
    return _cell(f"{metric} ({unit})" if unit else metric)


def _with_interval(score: Mapping[str, Any] | None) -> str:
    if score is None or score.get("value") is None:
        return "–"
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return _figure(score["value"])
    return f"{_figure(score['value'])} [{_figure(low)}, {_figure(high)}]"


def _figure(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}"


def _cell(text: Any) -> str:
    """Return text that a Markdown table can hold."""
    return str(text).replace("|", "\\|").replace("\n", " ")
