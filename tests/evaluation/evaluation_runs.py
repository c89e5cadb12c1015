"""Folders of `audiollm evaluate`: runs of the command in this process, and folders written by hand to be scored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audiollm.evaluation.evaluate import main

TASK = {
    "kind": "asr",
    "metrics": ["word_error"],
    "language": "en",
    "normaliser": "english",
    "group": None,
    "source": {},
}


def evaluate(model: Path, output_dir: Path, *options: object) -> None:
    """Runs the command on one's own data or on tasks, without its report."""
    main(["--model", str(model), "--output_dir", str(output_dir), "--no_report", *map(str, options)])


def scores_of(folder: Path, task: str) -> dict[str, Any]:
    """Returns what `scores.json` says of each system of a task."""
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))["tasks"][task]["systems"]


def rows_of(folder: Path, task: str, system: str) -> list[dict[str, Any]]:
    """Returns the rows of one system, without times, which no two runs have in common."""
    lines = (folder / "outputs" / task / f"{system}.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def all_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of every system of every task; nothing else may lie there."""
    files = [path for path in (folder / "outputs").rglob("*") if path.is_file()]
    assert all(path.suffix == ".jsonl" and "partial" not in path.name for path in files), files
    return {f"{path.parent.name}/{path.stem}": rows_of(folder, path.parent.name, path.stem) for path in files}


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
    **record: Any,
) -> Path:
    """
    Writes a folder with rows of each system of each task.

    Args:
        tasks: what `run.json` says of a task besides what `TASK` says.
        record: what `run.json` says of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {task: {**TASK, **(tasks or {}).get(task, {})} for task in outputs}
    (folder / "run.json").write_text(json.dumps({"model": folder.name, "tasks": named, **record}), encoding="utf-8")
    for task, systems in outputs.items():
        for system, rows in systems.items():
            write_lines(folder / "outputs" / task / f"{system}.jsonl", rows)
    return folder


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")


def items_of(folder: Path, task: str, system: str = "model") -> dict[str, dict[str, Any]]:
    """Returns what scoring wrote of each item."""
    lines = (folder / "items" / task / f"{system}.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["id"]: each for each in map(json.loads, lines)}
