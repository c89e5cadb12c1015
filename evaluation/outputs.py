"""
The folder of a run: `run.json`, which says how it was made, and answers in one JSON Lines file for each task and system.

While a run lasts, every process appends to a file of its own; at the end they become one, in the order of the items. A run
that was killed leaves whole lines and at most one torn one, which counts as not written.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiollm.command_line.files import Journal, write_whole
from audiollm.publishing.score_table import SYSTEM_TITLES

from .measures import Answer, Convention

RUN_FILE, OUTPUTS, JUDGEMENTS = "run.json", "outputs", "judgements"
PARTIAL = ".partial.jsonl"
#: Ends of an answer: the model ended it, it reached its bound, it repeated itself without end, or there is none.
STOP, LENGTH, REPEATED, ERROR = "stop", "length", "repeated", "error"
#: Field of the run, and of each of its tasks, that must be alike in all that one folder holds.
SETTINGS = "settings"
#: Of `extra`, of recordings that come in chunks.
SESSION, CHUNK = "session", "chunk_index"
#: Normaliser of leaderboards, which score their tasks by their own, by group.
GROUP_NORMALISERS = {"open_asr": "leaderboard"}


class RunFolderError(ValueError):
    """A folder is no run of `audiollm evaluate`, is damaged, or holds a run of other settings or data."""


class SystemOutputs:
    """The rows of one task and system, of this run and of those before it; the process `rank` writes to its own file."""

    def __init__(self, folder: Path, task: str, system: str, rank: int = 0):
        self.path = folder / OUTPUTS / task / f"{system}.jsonl"
        self.ended: Counter[str] = Counter()  # answers of this process, by their end
        self._system = system
        self._own = Journal(self.path.with_name(f"{system}.rank{rank}{PARTIAL}"))

    def _partial_files(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self._system}.rank*{PARTIAL}"))

    def read(self) -> dict[str, dict[str, Any]]:
        """Return every row by id; of an item that failed and was tried again, the answer."""
        rows: dict[str, dict[str, Any]] = {}
        for row in (row for path in [self.path, *self._partial_files()] for row in read_rows(path)):
            if row["id"] not in rows or rows[row["id"]]["finish"] == ERROR:
                rows[row["id"]] = row
        return rows

    def done(self) -> set[str]:
        """Return the items that have an answer."""
        return {one for one, row in self.read().items() if row["finish"] != ERROR}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows to this process' file; they are on disk when this returns."""
        self._own.append(rows)
        self.ended.update(row["finish"] for row in rows)

    @property
    def told(self) -> str:
        """Return the errors of this process's answers."""
        cut_off = self.ended[LENGTH] + self.ended[REPEATED]
        return f"{SYSTEM_TITLES[self._system]}: {self.ended[ERROR]} failed, {cut_off} cut off"

    def merge(self, ids: Sequence[str]) -> None:
        """Make one file of all processes' rows, in the order of `ids`; there must be one for each, and no other."""
        rows = self.read()
        missing, others = [one for one in ids if one not in rows], sorted(rows.keys() - set(ids))
        if missing:
            told = f"{len(missing)} of {len(ids)} items have no row, such as {missing[0]!r}"
            raise RunFolderError(f"{self.path}: {told}. Give the same command again.")
        if others:
            told = f"{len(others)} rows of items that the task does not have, such as {others[0]!r}"
            raise RunFolderError(f"{self.path} holds {told}: its data have changed. Choose another --output_dir.")
        partial = self._partial_files()
        if partial or not self.path.exists():
            write_rows(self.path, [rows[one] for one in ids])
            for path in partial:
                path.unlink()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file; torn and damaged lines count as not written, and so does a missing file."""
    for line in Journal(path).lines():
        if line.entry is not None and isinstance(line.entry.get("id"), str):
            yield line.entry


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_run(folder: Path) -> dict[str, Any]:
    """Return the record of a folder; empty where there is none."""
    path = folder / RUN_FILE
    return read_object(path, "tasks") if path.is_file() else {}


def read_object(path: Path, key: str | None = None) -> dict[str, Any]:
    """Return the JSON object that a file of a run holds; `key` names what must be an object in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is no JSON: {error}. Run the command that wrote it again.") from error
    if not isinstance(found, dict) or (key and not isinstance(found.get(key), dict)):
        raise RunFolderError(f"{path} names no {key or 'fields'}; expected what `audiollm evaluate` writes.")
    return found


def check_same(folder: Path, settings: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a folder that holds outputs of other settings, of the run or of a task; one that lacks a task will do."""
    record = read_run(folder)
    sides = [("", record, settings)]
    sides += [(f"{name}: ", record.get("tasks", {}).get(name, {}), own) for name, own in tasks.items()]
    differences = []
    for where, recorded, now in sides:
        then = recorded.get(SETTINGS, {})
        changed = {name: value for name, value in now.items() if then.get(name, value) != value}
        differences += [f"{where}{name} was {then[name]!r} and is {value!r}" for name, value in changed.items()]
    if differences:
        told = "\n  ".join([f"{folder} holds outputs that were made otherwise:", *differences])
        raise RunFolderError(f"{told}\nGive what was given then, or choose another --output_dir.")


def place(path: str | None) -> str | None:
    """Return a path so that it means the same from any folder; other names of data as they are."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


@dataclass(frozen=True)
class Run:
    """A folder of outputs."""

    folder: Path
    record: Mapping[str, Any]  # contents of `run.json`
    outputs: Mapping[str, Mapping[str, Path]]  # the file of each system, by task

    def task(self, name: str) -> Mapping[str, Any]:
        """Return the record of a task."""
        return self.record["tasks"][name]


def finished_outputs(folder: Path, task: str) -> dict[str, Path]:
    """Return the files of answers to a task by system; none that a run is still writing to."""
    files = sorted((folder / OUTPUTS / task).glob("*.jsonl"))
    return {file.stem: file for file in files if not file.name.endswith(PARTIAL)}


def open_run(folder: str | Path) -> Run:
    """Open a folder of outputs, or refuse one that is none or holds outputs of a task that `run.json` does not name."""
    folder = Path(folder)
    record = read_run(folder)
    if not record:
        raise RunFolderError(f"{folder} has no {RUN_FILE}; expected the --output_dir of `audiollm evaluate`.")
    outputs = {task: finished_outputs(folder, task) for task in record["tasks"]}
    unknown = sorted({each.name for each in (folder / OUTPUTS).glob("*") if each.is_dir()} - outputs.keys())
    if unknown:
        raise RunFolderError(f"{folder / OUTPUTS} holds {', '.join(unknown)}, which {RUN_FILE} does not name.")
    if not any(outputs.values()):
        raise RunFolderError(f"{folder} has no finished outputs; give the command that began it again.")
    return Run(folder, record, outputs)


def read_answers(run: Run, task: str, system: str) -> list[Answer]:
    """Return the answers of a system with their verdicts; an item on which it failed has an empty one."""
    verdicts: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(run.folder / JUDGEMENTS / task / f"{system}.jsonl"):
        verdicts.setdefault(row["id"], []).append(row)
    kept = ("id", "references", "extra", "duration_s", "seconds", "finish")
    return [
        Answer(text=row["output"] or "", verdicts=verdicts.get(row["id"], ()), **{name: row[name] for name in kept})
        for row in read_rows(run.outputs[task][system])
    ]


def convention_of(task: Mapping[str, Any], normaliser: str | None = None) -> Convention:
    """Return the rules for a task's answers: those asked for, the leaderboard's, or those of `run.json`."""
    own = GROUP_NORMALISERS.get(task.get("group") or "", task.get("normaliser") or "english")
    return Convention(normaliser or own, task.get("language"))


def joined_sessions(answers: Sequence[Answer]) -> tuple[list[Answer], dict[str, int]]:
    """
    Join answers to chunks of a recording to one answer to the recording, as the Open ASR Leaderboard does; others stay.

    A recording of which a chunk in between is missing does not count; the number of those is returned too.
    """
    joined = [answer for answer in answers if answer.extra.get(SESSION) is None]
    sessions: dict[str, dict[int, Answer]] = {}
    for answer in answers:
        if answer.extra.get(SESSION) is not None:
            sessions.setdefault(str(answer.extra[SESSION]), {})[answer.extra[CHUNK]] = answer
    incomplete = 0
    for session, by_index in sessions.items():
        chunks = [by_index[index] for index in range(len(by_index)) if index in by_index]
        if len(chunks) < len(by_index):
            incomplete += 1
            continue
        finishes = {chunk.finish for chunk in chunks}
        joined.append(
            replace(
                chunks[0],
                id=session,
                text=" ".join(chunk.text.strip() for chunk in chunks if chunk.text.strip()),
                duration_s=sum(chunk.duration_s for chunk in chunks),
                seconds=sum(chunk.seconds for chunk in chunks),
                finish=next((bad for bad in (ERROR, LENGTH, REPEATED) if bad in finishes), chunks[0].finish),
            )
        )
    return joined, {"incomplete_sessions": incomplete} if incomplete else {}
