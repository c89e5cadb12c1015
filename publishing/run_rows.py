"""The runs of a training record as a card shows them."""

from collections.abc import Mapping
from typing import Any

STAGES = {
    "align": "Align: the projector alone, by CTC on transcripts",
    "instruct": "Instruct: cross-entropy on responses",
    "distill": "Distill: to answer speech as the base answers its transcript",
    "prefer": "Prefer: one response to another, by DPO",
}
SECONDS_PER_MINUTE = 60
UNKNOWN = "not recorded"


def data_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each run read: `stage`, `path` in Markdown, `paths` as they were given, `rows`, `sha256`."""
    rows = []
    for run in runs:
        for index, each in enumerate(run.get("data") or []):
            # Rows are counted over all the sources of a run.
            count = run.get("rows") if index == 0 else "in the row above"
            path = each["path"]
            row = {"stage": run["stage"], "path": f"`{path}`", "paths": [path], "rows": count}
            rows.append({**row, "sha256": f"`{each['sha256']}`" if each.get("sha256") else None})
    return rows


def run_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each run's `title`, `command`, and `rows` of name and value, in Markdown."""
    return [
        {
            "title": STAGES.get(run["stage"], run["stage"]),
            "command": run.get("command") or f"# {UNKNOWN}",
            "rows": [(name, value) for name, value in _facts(run) if value is not None],
        }
        for run in runs
    ]


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    package = run.get("audiollm") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())
    hyperparameters = run.get("hyperparameters") or {}
    resumed = run.get("resumed_from")
    seconds = run.get("seconds")
    minutes = UNKNOWN if seconds is None else f"{seconds / SECONDS_PER_MINUTE:.1f} minutes"
    if resumed:
        minutes += f", of which an interrupted run's part before step {resumed} is not counted"
    length = [f"{run[name]:g} {name}" for name in ("steps", "epochs") if run.get(name) is not None]
    memory = run.get("peak_memory_mib")
    trained = run.get("trainable_parameters")
    return [
        ("started from", None if run.get("starts_from") is None else f"`{run['starts_from']}`"),
        ("trained", None if trained is None else f"{trained:,} parameters; {run.get('precision') or UNKNOWN}"),
        ("length", ", ".join(length) or UNKNOWN),
        ("final loss", None if run.get("final_loss") is None else f"{run['final_loss']:.4g}"),
        ("hyper-parameters", ", ".join(f"{k} {_shown(v)}" for k, v in hyperparameters.items()) or UNKNOWN),
        ("hardware", _machine(run)),
        ("time", minutes),
        ("peak memory", None if memory is None else f"{memory:,} MiB of the first process"),
        ("AudioLLM", f"{package.get('version') or UNKNOWN}, commit {package.get('commit') or UNKNOWN}"),
        ("versions", versions or UNKNOWN),
    ]


def _machine(run: Mapping[str, Any]) -> str:
    machine = run.get("machine") or {}
    if not machine:
        return UNKNOWN
    parts = [f"{run.get('processes') or 1} process{'' if (run.get('processes') or 1) == 1 else 'es'}"]
    parts += [", ".join(machine["gpus"])] if machine.get("gpus") else []
    parts.append(f"{machine.get('cores') or '?'} cores of {machine.get('processor') or UNKNOWN}")
    parts += [f"{machine['memory_gib']:g} GiB of memory"] if machine.get("memory_gib") else []
    return ", ".join([*parts, str(machine.get("system") or "")]).rstrip(", ")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")
