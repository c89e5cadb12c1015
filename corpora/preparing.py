"""
From a corpus to files to train on: the first pass writes clips, the second filters them and writes examples.

The first is long, and done once: interrupted, it goes on where it was. The second is short and repeated whenever tasks, formats
or the limit of word error change. Both give the same bytes every time, with any number of processes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.disks import naming_the_disk
from audiollm.files import Journal, sha256_of, write_json
from audiollm.interruption import check_interrupted, interruptible
from filelock import FileLock, Timeout

from .clips import STATE_FOLDER, ClipSource, CorpusError
from .conversion import AUDIO_FOLDER, SECONDS_PER_HOUR, ClipJournal, Row, convert, retry
from .examples import ExamplesError
from .output_folder import is_inside, refuse_links
from .prepared_files import (
    CARD_FILE,
    CHECKSUMS_FILE,
    DROPPED_FILE,
    FORMATS,
    MANIFEST_FILE,
    PARQUET_FOLDER,
    PROBLEMS_FILE,
    TABLE_COLUMNS,
    TABLE_FILE,
    FieldTypes,
    JsonWriter,
    ShardWriter,
    TableWriter,
    dataset_card,
    examples_name,
    files_below,
    move_into_place,
    write_problems,
)
from .recordings import AudioSettings
from .tasks import Task

#: Below the state folder: what a run is made from, its lock, files under way, and its journals.
STATE_FILE, LOCK_FILE, NEW_FOLDER = "state.json", "lock", "new"
JOURNAL_FILE, SETTLED_FILE = "clips.jsonl", "settled.jsonl"
MANIFEST_VERSION = 1
#: Clips that a filter leaves out and that are named when the command ends; the file has all.
DROPPED_SHOWN = 5
MIB = 1 << 20

#: Completes rows, one by one and in order, with what tells whether they are kept, such as `wer`; told how many there are.
Settle = Callable[[Iterator[Row], int], Iterator[Row]]


@dataclass(frozen=True)
class PrepareSettings:
    """
    What `audiollm prepare` is told besides the corpus.

    Attributes:
        audio: how clips are kept.
        workers: processes of the first pass.
        formats: which of json, jsonl and parquet examples are written as.
        shard_mib: audio of a Parquet file, in MiB.
        skip_bad: leave out what cannot be used, instead of stopping before examples are written.
        restart: discard what an earlier run into the same folder did.
        retry_bad: try clips again that an earlier run could not use.
        progress: shows bars.
    """

    audio: AudioSettings
    workers: int = 1
    formats: Sequence[str] = ("json", "parquet")
    shard_mib: int = 500
    skip_bad: bool = False
    restart: bool = False
    retry_bad: bool = False
    progress: bool = True


@dataclass
class SplitCounts:
    """Clips, examples and seconds of one split: all that were read, and those that are kept."""

    clips: int = 0
    hours: float = 0.0
    clips_kept: int = 0
    hours_kept: float = 0.0
    examples: int = 0


@dataclass
class Prepared:
    """
    What a run wrote.

    Attributes:
        output: the folder.
        splits: what each split has.
        problems: how many clips could not be used.
        dropped: the first clips that the filter left out, with their word error.
        files: the files and folders that were written.
    """

    output: Path
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: int = 0
    dropped: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """A line for each split."""
        lines = [
            f"{name}: {counts.examples} examples of {counts.clips_kept} clips ({counts.hours_kept:.2f} h)"
            + (f"; {counts.clips - counts.clips_kept} clips are not kept" if counts.clips > counts.clips_kept else "")
            for name, counts in self.splits.items()
        ]
        if self.dropped:
            more = sum(counts.clips - counts.clips_kept for counts in self.splits.values()) - len(self.dropped)
            lines.append(f"Not kept: {', '.join(self.dropped)}" + (f" and {more} more" if more else ""))
            lines.append(f"All of them, with their texts: {self.output / DROPPED_FILE}")
        if self.problems:
            lines.append(f"{self.problems} clips cannot be used: {self.output / PROBLEMS_FILE}")
        return "\n".join([*lines, f"Written to {self.output}: {', '.join(self.files)}"])


def prepare(
    source: ClipSource,
    output: str | os.PathLike[str],
    tasks: Sequence[Task],
    settings: PrepareSettings,
    settle: Settle | None = None,
    is_kept: Callable[[Row], bool] | None = None,
) -> Prepared:
    """
    Prepares a corpus: audio files, examples, the table of all clips, checksums and a manifest.

    Args:
        source: the corpus.
        output: folder to write to; nothing outside it is touched. A run that was interrupted goes on in it.
        tasks: what is asked about clips; each takes part in those whose fields it has.
        settings: how.
        settle: completes rows of the table of all clips before they are filtered.
        is_kept: which rows become examples; all by default.

    Raises:
        CorpusError: the folder holds something else, or another process is at work in it; no clip can be used.
        ExamplesError: clips that cannot be used, with `skip_bad` off; all of them.
        OSError: the folder cannot be written to, or the disk is full.
    """
    output = Path(output)
    with naming_the_disk(output), _owned(output):
        state = output / STATE_FOLDER
        journal = ClipJournal(state / JOURNAL_FILE, output)
        _check_state(source, output, settings)
        finished = _state(output).get("finished", False) and journal.mend() == _state(output)["clips"]
        if not finished:
            convert(source, output, journal, settings.audio, settings.workers, settings.progress)
            clips = sum(1 for _ in journal.entries())
            _write_state(output, _identity(source, settings) | {"finished": True, "clips": clips})
        elif settings.retry_bad:
            retry(source, output, journal, settings.audio, settings.progress)
        return _Files(source, output, journal, tasks, settings, settle, is_kept).write()


class _Files:
    """The second pass."""

    def __init__(self, source, output: Path, journal: ClipJournal, tasks, settings: PrepareSettings, settle, is_kept):
        self.source, self.output, self.journal = source, output, journal
        self.tasks: Sequence[Task] = tasks
        self.settings = settings
        self.settle: Settle = settle or (lambda rows, total: rows)
        self.is_kept: Callable[[Row], bool] = is_kept or (lambda row: True)
        self.new = output / STATE_FOLDER / NEW_FOLDER
        self.settled = Journal(output / STATE_FOLDER / SETTLED_FILE)

    def write(self) -> Prepared:
        types, prepared = FieldTypes(), Prepared(self.output)
        shutil.rmtree(self.new, ignore_errors=True)  # of a run that was interrupted here
        self.new.mkdir(parents=True)
        self._settle_all(types, prepared)
        prepared.problems = write_problems(self.output / PROBLEMS_FILE, self._problems())
        if prepared.problems and not self.settings.skip_bad:
            raise ExamplesError(
                self.source.name, [(f"clip {row['id']!r}", row["problem"]) for row in self._problems()]
            )
        if not prepared.splits:
            raise CorpusError(f"{self.source.name}: no clip can be used, so that there is nothing to write.")
        self._write_rows(types, prepared)
        if "parquet" in self.settings.formats:
            self._write_card(prepared)
        self._finish(prepared)
        return prepared

    def _write_card(self, prepared: Prepared) -> None:
        folder = self.new / PARQUET_FOLDER
        sums = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in files_below(folder))
        contents = f"sha256 {hashlib.sha256(sums.encode()).hexdigest()}"
        card = dataset_card(list(prepared.splits), getattr(self.source, "card", {}), contents)
        (folder / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")

    def _settle_all(self, types: FieldTypes, prepared: Prepared) -> None:
        """Completes every row once; notes what columns and splits there are."""
        rows = (row for row in self.journal.entries() if self._problem_of(row) is None)
        total = sum(self._problem_of(row) is None for row in self.journal.entries())
        with open(self.settled.path, "w", encoding="ascii") as file:
            for row in interruptible(self.settle(rows, total)):
                file.write(json.dumps(row) + "\n")
                if "problem" not in row:
                    types.see(row["fields"])
                    prepared.splits.setdefault(row["split"], SplitCounts())

    def _problems(self) -> Iterator[Row]:
        """What the first pass could not use, what no task can, and what could not be completed."""
        for row in self.journal.entries():
            if problem := self._problem_of(row):
                yield {"id": row["id"], "split": row["split"], "problem": problem}
        for row in self.settled.entries():
            if "problem" in row:
                yield {"id": row["id"], "split": row["split"], "problem": row["problem"]}

    def _write_rows(self, types: FieldTypes, prepared: Prepared) -> None:
        columns = {name: kind for name, kind in types.schema().items() if name not in TABLE_COLUMNS}
        table = TableWriter(self.new / TABLE_FILE, columns)
        splits = list(prepared.splits)
        examples = {split: self._example_writers(split, splits) for split in splits}
        shards = {
            split: ShardWriter(self.new / PARQUET_FOLDER, split, columns, self.settings.shard_mib * MIB)
            for split in (splits if "parquet" in self.settings.formats else ())
        }
        everything: list[TableWriter | JsonWriter | ShardWriter] = [
            table,
            *(one for some in examples.values() for one in some),
            *shards.values(),
        ]
        try:
            for row in interruptible(self.settled.entries()):
                if "problem" not in row:
                    row["fields"] = types.fit(row["fields"])
                    table.add(row | row["fields"])
                    split = row["split"]
                    if self._write_row(row, prepared.splits[split], examples[split], shards.get(split)):
                        continue
                    if not prepared.dropped:
                        everything.append(dropped := JsonWriter(self.new / DROPPED_FILE))
                    dropped.add({"id": row["id"], "split": split, "text": row["text"]} | row["fields"])
                    if len(prepared.dropped) < DROPPED_SHOWN:
                        wer = row["fields"].get("wer")
                        prepared.dropped.append(row["id"] + ("" if wer is None else f" ({wer:.1f} %)"))
        finally:
            for writer in everything:
                writer.close()

    def _problem_of(self, row: Row) -> str | None:
        if "problem" in row:
            return row["problem"]
        known = _known(row)
        missing = {task.name: task.missing(known) for task in self.tasks}
        if all(missing.values()):
            return "takes part in no task: " + "; ".join(
                f"{name} needs {', '.join(map(repr, names))}" for name, names in missing.items()
            )
        try:
            self._asked(row)
        except ValueError as error:
            return str(error)
        return None

    def _asked(self, row: Row) -> list[tuple[Task, str, str]]:
        known = _known(row)
        return [(task, *task.ask(row["id"], known)) for task in self.tasks if not task.missing(known)]

    def _example_writers(self, split: str, splits: list[str]) -> list[JsonWriter]:
        endings = [ending for ending in ("json", "jsonl") if ending in self.settings.formats]
        return [JsonWriter(self.new / examples_name(split, splits, ending)) for ending in endings]

    def _write_row(self, row: Row, counts: SplitCounts, examples: list[JsonWriter], shard: ShardWriter | None) -> bool:
        """Write the examples of a clip; False where the filter leaves it out."""
        hours = row["duration"] / SECONDS_PER_HOUR
        counts.clips += 1
        counts.hours += hours
        if not self.is_kept(row):
            return False
        counts.clips_kept += 1
        counts.hours_kept += hours
        audio = (self.output / row["audio"]).read_bytes() if shard is not None else b""
        for task, prompt, response in self._asked(row):
            counts.examples += 1
            for writer in examples:
                writer.add({"text": prompt, "audio_paths": row["audio"], "response": response})
            if shard is not None:
                shard.add(row, row["fields"], task.name, prompt, response, audio)
        return True

    def _finish(self, prepared: Prepared) -> None:
        """Checksums and manifest, and everything to its place."""
        manifest_file = self.output / MANIFEST_FILE
        former = json.loads(manifest_file.read_text())["files"] if manifest_file.exists() else []
        names = list(files_below(self.new))
        checksums = [(row["sha256"], row["audio"]) for row in self.journal.entries() if "problem" not in row]
        checksums += [(sha256_of(self.new / name), name) for name in names]
        (self.new / CHECKSUMS_FILE).write_text(
            "".join(f"{sha}  {name}\n" for sha, name in checksums), encoding="utf-8"
        )
        manifest = {
            "version": MANIFEST_VERSION,
            **_identity(self.source, self.settings),
            "tasks": [task.name for task in self.tasks],
            "splits": {name: vars(counts) for name, counts in prepared.splits.items()},
            "problems": prepared.problems,
            "files": [*names, CHECKSUMS_FILE],
        }
        check_interrupted()
        move_into_place(self.new, self.output, former)
        write_json(manifest_file, manifest, tag="")
        top = (f"{os.path.dirname(name)}/" if os.path.dirname(name) else name for name in names)
        prepared.files = sorted({f"{AUDIO_FOLDER}/", MANIFEST_FILE, *top})


def _known(row: Row) -> dict[str, Any]:
    return row["fields"] | {"text": row["text"]}


# ------------------------------------------------------------------------------------------------------- the folder


@contextmanager
def _owned(output: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it."""
    refuse_links(output, (AUDIO_FOLDER, PARQUET_FOLDER, STATE_FOLDER), (MANIFEST_FILE, PROBLEMS_FILE))
    (output / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / STATE_FOLDER / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise CorpusError(
            f"Another process prepares a corpus into {output}; wait for it, or give another --output."
        ) from None


def _identity(source: ClipSource, settings: PrepareSettings) -> dict[str, Any]:
    """All that decides what the first pass writes."""
    return {"source": source.identity, "audio": vars(settings.audio)}


def _state(output: Path) -> dict[str, Any]:
    path = output / STATE_FOLDER / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _check_state(source: ClipSource, output: Path, settings: PrepareSettings) -> None:
    """Refuses to go on with what was begun from something else; with `restart`, discards it."""
    state = _state(output)
    wanted = json.loads(json.dumps(_identity(source, settings)))
    if not state and (output / AUDIO_FOLDER).exists():
        raise CorpusError(
            f"{output} has a folder {AUDIO_FOLDER!r} that was not prepared by this command. Give another --output."
        )
    if settings.restart:
        _discard(output)
    elif state:
        differing = [
            f"{group}.{name} was {_get(state, group, name)!r}, is {_get(wanted, group, name)!r}"
            for group in wanted
            for name in {**state.get(group, {}), **wanted[group]}
            if _get(state, group, name) != _get(wanted, group, name)
        ]
        if differing:
            raise CorpusError(
                f"{output} was prepared from something else: {'; '.join(differing)}. Give another --output, or "
                "--restart to discard it."
            )
        return
    _write_state(output, wanted)


def _discard(output: Path) -> None:
    """Removes what an earlier run's first pass wrote, and nothing else."""
    journal = ClipJournal(output / STATE_FOLDER / JOURNAL_FILE, output)
    journal.mend()
    for row in journal.entries():
        if "problem" not in row and is_inside(row["audio"]):
            (output / row["audio"]).unlink(missing_ok=True)
    journal.path.unlink(missing_ok=True)


def _get(state: dict[str, Any], group: str, name: str) -> Any:
    return state.get(group, {}).get(name)


def _write_state(output: Path, state: dict[str, Any]) -> None:
    write_json(output / STATE_FOLDER / STATE_FILE, state, tag="")


__all__ = ["FORMATS", "PrepareSettings", "Prepared", "SplitCounts", "prepare"]
