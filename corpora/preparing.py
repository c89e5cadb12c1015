"""
From a corpus to files to train on, in two passes.

The first decodes and writes every clip once, by several processes. A line of its journal stands for a clip, in the source's
order, and is written after the clip's file: after a kill, what has a line is done. The second filters clips and writes
examples; it is repeated when tasks, formats or the limit of word error change. Both give the same bytes every time, in
memory that does not grow with the corpus.
"""

import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
from audiollm.command_line.files import Journal, naming_the_disk, partial_path, sha256_of, write_json, written
from audiollm.command_line.interruption import check_interrupted, interruptible
from audiollm.command_line.option_parser import option
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .clips import STATE_FOLDER, BadClip, Clip, ClipSource, CorpusError, safe_name
from .examples import ExamplesError
from .parallel import available_cpus, in_order
from .prepared_files import (
    CARD_FILE,
    FORMATS,
    PARQUET_FOLDER,
    TABLE_COLUMNS,
    TABLE_FILE,
    FieldTypes,
    JsonWriter,
    ParquetWriter,
    Row,
    ShardWriter,
    dataset_card,
    examples_name,
)
from .recordings import AudioSettings, Item, write_batch
from .tasks import Task, known_tasks
from .values import LONE_SURROGATE, check_at_least, check_known

AUDIO_FOLDER = "audio"
CHECKSUMS_FILE, MANIFEST_FILE = "SHA256SUMS", "manifest.json"
#: Clips that cannot be used, and clips that a filter such as --max_wer leaves out, one JSON object a line.
PROBLEMS_FILE, DROPPED_FILE = "problems.jsonl", "dropped.jsonl"
#: Below the state folder: what a run is made from, its lock, files under way, and its journals.
STATE_FILE, LOCK_FILE, NEW_FOLDER = "state.json", "lock", "new"
JOURNAL_FILE, SETTLED_FILE = "clips.jsonl", "settled.jsonl"
MANIFEST_VERSION = 1
CLIPS_PER_FOLDER = 1000
#: Limits of what a process is given at once, in clips and in bytes of recordings; and how many of these are under way.
CLIPS_PER_BATCH, BYTES_PER_BATCH, BATCHES_PER_WORKER = 32, 8 << 20, 2
#: Dropped clips that are named when the command ends; the file has all.
DROPPED_SHOWN = 5
SECONDS_PER_HOUR = 3600
#: Audio in one Parquet file.
SHARD_BYTES = 500 << 20

#: Completes rows in order with what decides whether they are kept, such as `wer`; is told how many there are.
Settle = Callable[[Iterator[Row], int], Iterator[Row]]
Writer = TypeVar("Writer", ParquetWriter, JsonWriter, ShardWriter)


@dataclass
class PrepareArguments:
    """Place and form of the prepared corpus."""

    output: str | None = option(None, "Folder to write to. Default: one below data, named after the command.")
    tasks: list[str] | None = option(
        None, f"What to ask about each clip, of {', '.join(known_tasks())}. Default: the corpus' own."
    )
    formats: list[str] = option(
        ["json", "parquet"],
        "What examples are written as: json (instruction_examples.json), jsonl, and parquet (with the audio "
        "inside, as load_dataset reads it).",
    )
    min_seconds: float = option(0.1, "Shorter clips cannot be used.")
    max_seconds: float = option(600.0, "Longer clips cannot be used; none is cut short.")
    workers: int | None = option(None, "Processes that decode audio. Default: one for each CPU.")
    on_bad_example: str = option(
        "error",
        "Unusable clips are all listed; then error writes no examples, and skip leaves the clips out.",
        choices=["error", "skip"],
    )
    retry_bad: bool = option(False, "Try clips again that an earlier run could not use, once they are mended.")
    restart: bool = option(False, "Discard what an earlier run wrote to the folder, instead of going on.")

    def __post_init__(self):
        check_known("formats", self.formats, FORMATS)
        if self.tasks is not None:
            check_known("tasks", self.tasks, known_tasks())
        if not 0 <= self.min_seconds < self.max_seconds or not math.isfinite(self.max_seconds):
            given = f"--min_seconds {self.min_seconds:g} and --max_seconds {self.max_seconds:g}"
            raise ValueError(f"{given}: expected 0 or more, and less than the longest, which must be finite.")
        if self.restart and self.retry_bad:
            raise ValueError("--restart tries every clip again; leave out --retry_bad.")
        check_at_least(self, 1, "workers")

    @property
    def audio(self) -> AudioSettings:
        """Return the limits of clips."""
        return AudioSettings(self.min_seconds, self.max_seconds)


@dataclass
class SplitCounts:
    """Clips, hours and examples of one split: all that were read, and those that are kept."""

    clips: int = 0
    hours: float = 0.0
    clips_kept: int = 0
    hours_kept: float = 0.0
    examples: int = 0


@dataclass
class Prepared:
    """Result of a run."""

    output: Path
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: int = 0  # clips that cannot be used
    dropped: list[str] = field(default_factory=list)  # the first clips that the filter left out, with their word error
    files: list[str] = field(default_factory=list)  # files and folders that were written

    def describe(self) -> str:
        """Return what to print: a line for each split, and where everything is."""
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
    settings: PrepareArguments,
    settle: Settle = lambda rows, total: rows,
    is_kept: Callable[[Row], bool] = lambda row: True,
) -> Prepared:
    """
    Prepare a corpus: audio files, examples, the table of all clips, checksums and a manifest.

    An interrupted run goes on in its output folder; nothing outside is touched. A clip takes part in the tasks whose fields
    it has. `settle` completes rows of the table of all clips; those that `is_kept` become examples.

    Raises:
        CorpusError: the folder holds something else, another process works in it, or no clip can be used.
        ExamplesError: clips cannot be used, and are not to be skipped; all of them are named.
        OSError: the folder cannot be written to, or the disk is full.
    """
    output = Path(output)
    with naming_the_disk(output), _owned(output):
        return _Preparation(source, output, tasks, settings, settle, is_kept).run()


@dataclass
class _Preparation:
    """
    Both passes over one corpus.

    A row of the journal has `id`, `split`, and either `problem`, or `audio` (relative to the output, with forward slashes),
    `text`, `duration` (in seconds), `bytes`, `sha256` and `fields`. The second pass writes everything beside the former
    files and moves it into place at the end, so that a folder never holds half of it.
    """

    source: ClipSource
    output: Path
    tasks: Sequence[Task]
    settings: PrepareArguments
    settle: Settle
    is_kept: Callable[[Row], bool]

    def __post_init__(self):
        self.state_file, self.new = self.output / STATE_FOLDER / STATE_FILE, self.output / STATE_FOLDER / NEW_FOLDER
        self.journal = Journal(self.output / STATE_FOLDER / JOURNAL_FILE)
        self.settled = Journal(self.output / STATE_FOLDER / SETTLED_FILE)
        self.types, self.prepared = FieldTypes(), Prepared(self.output)
        #: All that decides what the first pass writes.
        self.identity: dict[str, Any] = {"source": self.source.identity, "audio": vars(self.settings.audio)}

    def run(self) -> Prepared:
        prepared, state = self.prepared, self._checked_state()
        done, mended = self.journal.mend(self._is_whole), Journal(partial_path(self.journal.path))
        mended.path.unlink(missing_ok=True)  # of a run that was interrupted
        if not state.get("finished") or done != state["clips"]:
            done = self._convert(self.journal, done)
            write_json(self.state_file, self.identity | {"finished": True, "clips": done}, tag="")
        elif self.settings.retry_bad:
            self._convert(mended, 0, self.journal.entries())
            os.replace(mended.path, self.journal.path)
        shutil.rmtree(self.new, ignore_errors=True)  # of a run that was interrupted here
        self.new.mkdir(parents=True)
        self._settle_all()
        if prepared.problems and self.settings.on_bad_example == "error":
            listed = Journal(self.output / PROBLEMS_FILE).entries()
            raise ExamplesError(self.source.name, [(f"clip {row['id']!r}", row["problem"]) for row in listed])
        if not prepared.splits:
            raise CorpusError(f"{self.source.name}: no clip can be used, so that there is nothing to write.")
        self._write_rows()
        if "parquet" in self.settings.formats:
            folder = self.new / PARQUET_FOLDER
            sums = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in _files_below(folder))
            card = dataset_card(list(prepared.splits), f"sha256 {sha256_of(sums.encode())}")
            (folder / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
        self._finish()
        return prepared

    def _checked_state(self) -> dict[str, Any]:
        """Return the state of a run that goes on; refuse what was begun from something else, or discard it to `restart`."""
        state = json.loads(self.state_file.read_text(encoding="utf-8")) if self.state_file.exists() else {}
        wanted = json.loads(json.dumps(self.identity))
        if not state and (self.output / AUDIO_FOLDER).exists():
            raise CorpusError(f"{self.output} has a folder {AUDIO_FOLDER!r} of something else. Give another --output.")
        if self.settings.restart:
            self.journal.mend(self._is_whole)
            for row in self.journal.entries():
                if "problem" not in row:
                    (self.output / row["audio"]).unlink(missing_ok=True)
            self.journal.path.unlink(missing_ok=True)
        elif state:
            differing = [
                f"{group}.{name} was {state.get(group, {}).get(name)!r}, is {wanted[group].get(name)!r}"
                for group in wanted
                for name in {**state.get(group, {}), **wanted[group]}
                if state.get(group, {}).get(name) != wanted[group].get(name)
            ]
            if differing:
                advice = "Give another --output, or --restart to discard it."
                raise CorpusError(f"{self.output} was prepared from something else: {'; '.join(differing)}. {advice}")
            return state
        write_json(self.state_file, wanted, tag="")
        return wanted

    # ------------------------------------------------------------------------------------------------- the first pass

    def _is_whole(self, row: Row) -> bool:
        """Return whether a row is of a bad clip, or of one whose file is there."""
        try:
            return "problem" in row or (
                _stays_inside(row["audio"]) and (self.output / row["audio"]).stat().st_size == row["bytes"]
            )
        except (OSError, KeyError):
            return False

    def _convert(self, journal: Journal, done: int, known: Iterable[Row] = ()) -> int:
        """Write clips from the `done`-th on, and their rows, but for good ones that are known; return how many there are."""
        seen, seconds = set(), 0.0
        for row in journal.entries():
            seen.add(_fingerprint(row["id"]))
            seconds += row.get("duration", 0.0)
        write = functools.partial(write_batch, output=self.output, settings=self.settings.audio)
        work = ((None, batch) for batch in _batches(self.source.clips(done), done, seen, known))
        workers = self.settings.workers or available_cpus()
        with tqdm(total=self.source.count(), initial=done, desc="Clips", unit="clip", disable=None) as bar:
            for _, rows in in_order(write, work, workers, BATCHES_PER_WORKER):
                journal.append(rows, sync=False)
                done += len(rows)
                seconds += sum(row.get("duration", 0.0) for row in rows)
                bar.set_postfix_str(f"{seconds / SECONDS_PER_HOUR:.2f} h of audio", refresh=False)
                bar.update(len(rows))
        journal.append([])  # has everything on disk
        return done

    # ------------------------------------------------------------------------------------------------ the second pass

    def _settle_all(self) -> None:
        """Complete every row once, list those that cannot be used, and note what columns and splits there are."""
        path, total = self.output / PROBLEMS_FILE, 0
        with written(path, tag="") as problems, open(self.settled.path, "w", encoding="ascii") as settled:

            def refuse(row: Row, problem: str) -> None:
                problems.write(json.dumps({"id": row["id"], "split": row["split"], "problem": problem}) + "\n")
                self.prepared.problems += 1

            for row in self.journal.entries():
                if problem := self._problem_of(row):
                    refuse(row, problem)
                else:
                    total += 1
            rows = (row for row in self.journal.entries() if self._problem_of(row) is None)
            for row in interruptible(self.settle(rows, total)):
                if "problem" in row:
                    refuse(row, row["problem"])
                    continue
                settled.write(json.dumps(row) + "\n")
                self.types.see(row["fields"])
                self.prepared.splits.setdefault(row["split"], SplitCounts())
        if not self.prepared.problems:
            path.unlink()

    def _problem_of(self, row: Row) -> str | None:
        if "problem" in row:
            return row["problem"]
        missing = {task.name: task.missing(_known(row)) for task in self.tasks}
        if all(missing.values()):
            needs = (f"{name} needs {', '.join(map(repr, names))}" for name, names in missing.items())
            return f"takes part in no task: {'; '.join(needs)}"
        try:
            self._asked(row)
        except ValueError as error:
            return str(error)
        return None

    def _asked(self, row: Row) -> list[tuple[Task, str, str]]:
        known = _known(row)
        return [(task, *task.ask(row["id"], known)) for task in self.tasks if not task.missing(known)]

    def _write_rows(self) -> None:
        splits, formats = list(self.prepared.splits), self.settings.formats
        columns = {name: kind for name, kind in self.types.schema().items() if name not in TABLE_COLUMNS}
        with ExitStack() as files:

            def opened(writer: Writer) -> Writer:
                return files.enter_context(closing(writer))

            table = opened(ParquetWriter(self.new / TABLE_FILE, pa.schema(TABLE_COLUMNS | columns)))
            dropped = opened(JsonWriter(self.new / DROPPED_FILE))
            shards, examples = {}, {}
            for split in splits:
                names = [examples_name(split, splits, each) for each in ("json", "jsonl") if each in formats]
                examples[split] = [opened(JsonWriter(self.new / name)) for name in names]
                if "parquet" in formats:
                    shards[split] = opened(ShardWriter(self.new / PARQUET_FOLDER, split, columns, SHARD_BYTES))
            for row in interruptible(self.settled.entries()):
                row["fields"] = self.types.fit(row["fields"])
                table.add(row | row["fields"])
                split, hours = row["split"], row["duration"] / SECONDS_PER_HOUR
                counts = self.prepared.splits[split]
                counts.clips, counts.hours = counts.clips + 1, counts.hours + hours
                if not self.is_kept(row):
                    self._drop(row, dropped)
                    continue
                counts.clips_kept, counts.hours_kept = counts.clips_kept + 1, counts.hours_kept + hours
                audio = (self.output / row["audio"]).read_bytes() if shards else b""
                for task, prompt, response in self._asked(row):
                    counts.examples += 1
                    for writer in examples[split]:
                        writer.add({"text": prompt, "audio_paths": row["audio"], "response": response})
                    if shards:
                        shards[split].add(row, task.name, prompt, response, audio)
        if not self.prepared.dropped:
            (self.new / DROPPED_FILE).unlink()

    def _drop(self, row: Row, dropped: JsonWriter) -> None:
        """List a clip that the filter leaves out."""
        dropped.add({"id": row["id"], "split": row["split"], "text": row["text"]} | row["fields"])
        if len(self.prepared.dropped) < DROPPED_SHOWN:
            wer = row["fields"].get("wer")
            self.prepared.dropped.append(row["id"] + ("" if wer is None else f" ({wer:.1f} %)"))

    def _finish(self) -> None:
        """Write checksums and manifest, and move everything to its place."""
        manifest_file = self.output / MANIFEST_FILE
        former = json.loads(manifest_file.read_text())["files"] if manifest_file.exists() else []
        names = list(_files_below(self.new))
        with open(self.new / CHECKSUMS_FILE, "w", encoding="utf-8", newline="\n") as file:
            for row in self.journal.entries():
                if "problem" not in row:
                    file.write(f"{row['sha256']}  {row['audio']}\n")
            file.writelines(f"{sha256_of(self.new / name)}  {name}\n" for name in names)
        manifest = {
            "version": MANIFEST_VERSION,
            **self.identity,
            "tasks": [task.name for task in self.tasks],
            "splits": {name: vars(counts) for name, counts in self.prepared.splits.items()},
            "problems": self.prepared.problems,
            "files": [*names, CHECKSUMS_FILE],
        }
        check_interrupted()
        for name in former:
            if name not in manifest["files"] and _stays_inside(name):
                (self.output / name).unlink(missing_ok=True)
        for name in manifest["files"]:
            (self.output / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.new / name, self.output / name)
        shutil.rmtree(self.new)
        write_json(manifest_file, manifest, tag="")
        top = (f"{os.path.dirname(name)}/" if os.path.dirname(name) else name for name in names)
        self.prepared.files = sorted({f"{AUDIO_FOLDER}/", MANIFEST_FILE, *top})


def _batches(
    clips: Iterable[Clip | BadClip], start: int, seen: set[int], known: Iterable[Row]
) -> Iterator[list[Item]]:
    """Yield clips in batches, with their files' names; what is known, bad clips, and ids that came before, as rows."""
    batch: list[Item] = []
    size, former = 0, iter(known)
    for index, clip in enumerate(interruptible(clips), start=start):
        row, fingerprint, problem = next(former, {}), _fingerprint(clip.id), None
        if isinstance(clip, BadClip):
            problem = clip.reason
        elif LONE_SURROGATE.search("".join(map(str, (clip.id, clip.text, *clip.fields.values())))):
            problem = "its id, transcript or fields are not Unicode text; save the file that they come from as UTF-8"
        elif fingerprint in seen:
            problem = "another clip of this corpus has the same id"
        if "audio" in row:
            batch.append(row)
        elif problem is not None or isinstance(clip, BadClip):
            batch.append({"id": clip.id, "split": clip.split, "problem": problem})
        else:
            batch.append((clip, f"{AUDIO_FOLDER}/{index // CLIPS_PER_FOLDER:05d}/{safe_name(clip.id)}"))
            size += len(clip.recording.get("bytes") or b"") if isinstance(clip.recording, dict) else 0
        seen.add(fingerprint)
        if len(batch) >= CLIPS_PER_BATCH or size >= BYTES_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fingerprint(identity: str) -> int:
    """Return eight bytes in place of an id."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _known(row: Row) -> dict[str, Any]:
    return row["fields"] | {"text": row["text"]}


def _files_below(folder: Path) -> Iterator[str]:
    """Yield relative paths of all files below a folder, with forward slashes, sorted."""
    yield from sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def _owned(output: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it."""
    (output / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / STATE_FOLDER / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        advice = "wait for it, or give another --output"
        raise CorpusError(f"Another process prepares a corpus into {output}; {advice}.") from None


def _stays_inside(name: str) -> bool:
    """Return whether a relative path with forward slashes stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name
