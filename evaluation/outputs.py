"""
What systems answered, on disk as it comes: one JSON Lines file for each task and system.

While a run lasts, every process appends to a file of its own; at the end they become one, in the order of the items. A run
that was killed leaves whole lines and at most one torn one, which counts as not written.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OUTPUTS = "outputs"
PARTIAL = "{system}.rank{rank}.partial.jsonl"
#: How an answer ended: the model ended it, it reached its bound, it repeated itself without end, or there is none.
STOP, LENGTH, REPEATED, ERROR = "stop", "length", "repeated", "error"


class OutputsError(ValueError):
    """Rows in a folder do not belong to what is to be run; the message says which."""


class SystemOutputs:
    """
    The rows of one task and system, of this run and of those before it.

    Args:
        folder: the run's.
        task, system: whose rows.
        rank: of this process, whose file is written to.
    """

    def __init__(self, folder: Path, task: str, system: str, rank: int = 0):
        self.path = folder / OUTPUTS / task / f"{system}.jsonl"
        self._system = system
        self._own = self.path.with_name(PARTIAL.format(system=system, rank=rank))
        self._is_open = False

    def read(self) -> dict[str, dict[str, Any]]:
        """Every row that is there, by id; of an item that failed and was tried again, the answer."""
        rows: dict[str, dict[str, Any]] = {}
        for path in [self.path, *self._partial_files()]:
            for row in read_rows(path):
                if row["id"] not in rows or rows[row["id"]]["finish"] == ERROR:
                    rows[row["id"]] = row
        return rows

    def _partial_files(self) -> list[Path]:
        return sorted(self.path.parent.glob(PARTIAL.format(system=self._system, rank="*")))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to this process' file; they are on disk when this returns."""
        if not rows:
            return
        self._own.parent.mkdir(parents=True, exist_ok=True)
        with open(self._own, "ab") as file:
            if not self._is_open:
                file.truncate(whole_bytes(self._own))
                self._is_open = True
            file.write(b"".join(as_line(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def merge(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """
        Makes one file of all processes' rows, in the order of `ids`, and returns them.

        Raises:
            OutputsError: there is no row for some of them, or there are rows of others.
        """
        rows = self.read()
        missing = [one for one in ids if one not in rows]
        if missing:
            raise OutputsError(
                f"{self.path}: {len(missing)} of {len(ids)} items have no row, the first {missing[0]!r}; another process "
                "has not done its share. Give the same command again."
            )
        others = sorted(rows.keys() - set(ids))
        if others:
            raise OutputsError(
                f"{self.path} holds {len(others)} rows of items that the task does not have, such as {others[0]!r}: its data "
                "have changed since. Choose another --output_dir."
            )
        ordered = [rows[one] for one in ids]
        partial = self._partial_files()
        if partial or not self.path.exists():
            write_whole(self.path, b"".join(map(as_line, ordered)))
            for path in partial:
                path.unlink()
        return ordered


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read_rows(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of a JSON Lines file, one by one, without a line that was torn; none where there is no file."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            row = _parse(line)
            if row is not None:
                yield row


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None


def whole_bytes(path: Path) -> int:
    """Up to where a file consists of whole lines."""
    held = path.read_bytes() if path.is_file() else b""
    return held.rfind(b"\n") + 1


def write_whole(path: Path, data: bytes) -> None:
    """Puts a file in its place as a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


__all__ = [
    "ERROR",
    "LENGTH",
    "OUTPUTS",
    "REPEATED",
    "STOP",
    "OutputsError",
    "SystemOutputs",
    "as_line",
    "read_rows",
    "whole_bytes",
    "write_whole",
]
