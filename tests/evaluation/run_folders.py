"""Folders as `audiollm evaluate` leaves them, written by hand: what scoring and comparing are tested on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TASK = {
    "kind": "asr",
    "metrics": ["word_error"],
    "language": "en",
    "normaliser": "english",
    "group": None,
    "source": {},
}


def row(one: str, reference: str | list[str], output: str | None, **fields: Any) -> dict[str, Any]:
    """One line of a system's outputs."""
    finish = "stop" if output is not None else "error"
    references = [reference] if isinstance(reference, str) else reference
    known = {"prompt": "<audio>", "audio": ["a.wav"], "duration_s": 2.0, "extra": {}, "error": None, "seconds": 0.5}
    return {**known, "id": one, "references": references, "output": output, "finish": finish, **fields}


def write_run(
    folder: Path,
    outputs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """
    A folder with rows of each system of each task.

    Args:
        tasks: what `run.json` says of a task besides what `TASK` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {task: {**TASK, **(tasks or {}).get(task, {})} for task in outputs}
    (folder / "run.json").write_text(json.dumps({"model": folder.name, "tasks": named}), encoding="utf-8")
    for task, systems in outputs.items():
        for system, rows in systems.items():
            path = folder / "outputs" / task / f"{system}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")
    return folder


def items_of(folder: Path, task: str, system: str = "model") -> dict[str, dict[str, Any]]:
    """Return what scoring wrote of each item."""
    lines = (folder / "items" / task / f"{system}.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["id"]: each for each in map(json.loads, lines)}
