"""Shared parts of tests of `audiollm evaluate`: runs of the command in this process, and what they leave."""

import json
from pathlib import Path
from typing import Any

from audiollm.evaluation.evaluate import main

#: What two runs of the same cannot have in common.
TIMES = ("seconds",)


def evaluate(model: Path, output_dir: Path, *options: object) -> None:
    """Runs the command on one's own data or on tasks, without its report."""
    main(["--model", str(model), "--output_dir", str(output_dir), "--no_report", *map(str, options)])


def rows_of(folder: Path, task: str, system: str) -> list[dict[str, Any]]:
    """Rows of one system, without times."""
    lines = (folder / "outputs" / task / f"{system}.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def all_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of every system of every task; nothing else may lie there."""
    files = [path for path in (folder / "outputs").rglob("*") if path.is_file()]
    assert all(path.suffix == ".jsonl" and "partial" not in path.name for path in files), files
    return {f"{path.parent.name}/{path.stem}": rows_of(folder, path.parent.name, path.stem) for path in files}
