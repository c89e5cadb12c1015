"""
Run an evaluation: read tasks, choose systems, put every question to every system, and write answers down as they come.

Several processes, started by `accelerate launch`, take turns at batches, which are the same however many there are. Nothing
is exchanged between them but files, and one wait at the end. A run that was killed goes on with the batches that are not on
disk yet.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from audiollm.checkpoints import fingerprint
from audiollm.command_line.files import sha256_of, write_json
from audiollm.command_line.interruption import interruptible
from audiollm.configuration import AudioLlmConfig
from audiollm.inference.answering import MAX_BATCH_SECONDS, recording_seconds
from audiollm.inference.ctc_rescoring import check_ctc_weight, default_ctc_weight
from audiollm.inference.loading import find_checkpoint, load_model, load_processor
from audiollm.processing import AudioLlmProcessor
from audiollm.publishing.record import library_versions, package_facts
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .arguments import EvaluateArguments
from .generating import Reply, failure, swapped, transcript_bound
from .outputs import ERROR, RUN_FILE, SETTINGS, RunFolderError, SystemOutputs, check_same, place, read_run
from .readers import read_local_set
from .systems import (
    CASCADE,
    DEFAULT_SYSTEMS,
    HEARD_KINDS,
    TRANSCRIPTION,
    WHISPER,
    WRONG_AUDIO,
    System,
    SystemBuilder,
    is_multilingual,
    why_not,
)
from .tasks import Item, Task, tasks_named

LOCK_FILE = ".lock"
#: Items that are held in memory at a time: among them, those of like length share batches, and recordings are swapped.
WINDOW_ITEMS = 512


def windows_of(items: Iterable[Item], total: int, size: int = WINDOW_ITEMS) -> Iterator[list[Item]]:
    """Yield consecutive items of `total`, `size` at a time; the last window takes what is left over too, so it is not small."""
    stream = iter(items)
    for _ in range(total // size - 1):
        yield list(islice(stream, size))
    yield list(stream)


def wrong_recordings(items: Sequence[Item]) -> list[Item]:
    """Return every item with recordings of others: each distinct one is replaced by another one, and each is used."""
    keys = [[recording_identity(one) for one in item.recordings] for item in items]
    distinct = {key: one for item, own in zip(items, keys) for key, one in zip(own, item.recordings)}
    if len(distinct) < 2:
        problem = "there is no other recording beside it to take the place of its own"
        return [replace(item, recordings=[], problem=problem) if item.recordings else item for item in items]
    other = dict(zip(distinct, swapped(list(distinct.values()))))
    return [replace(item, recordings=[other[key] for key in own]) for item, own in zip(items, keys)]


def batches_of(
    items: Sequence[Item], processor: Any, batch_size: int, max_batch_seconds: float = MAX_BATCH_SECONDS
) -> list[list[Item]]:
    """Deal items into batches, short ones first, of at most `max_batch_seconds` each, padded; a longer item is alone."""
    seconds = []
    for item in items:
        try:
            seconds.append(sum(recording_seconds(processor, one) for one in item.recordings))
        except (ValueError, OSError):  # it cannot be read, which is found out when it is played
            seconds.append(0.0)
    order = sorted(range(len(items)), key=lambda index: (seconds[index], len(items[index].prompt)))
    batches: list[list[Item]] = []
    for index in order:
        full = not batches or len(batches[-1]) == batch_size
        if full or (len(batches[-1]) + 1) * seconds[index] > max_batch_seconds:
            batches.append([])
        batches[-1].append(items[index])
    return batches


def recording_identity(recording: Any) -> str:
    """Return the identity of a recording: its path or URL, or a hash of its bytes or samples."""
    if isinstance(recording, dict):
        recording = next(recording[key] for key in ("bytes", "array", "path") if recording.get(key) is not None)
    if isinstance(recording, (str, os.PathLike)):
        return os.fspath(recording)
    is_bytes = isinstance(recording, (bytes, bytearray))
    return sha256_of(bytes(recording) if is_bytes else np.ascontiguousarray(recording).tobytes())


@dataclass(frozen=True)
class Job:
    """A task as it is run."""

    task: Task
    data: str | None  # a copy on disk, or None for where the benchmark is
    limit: int | None  # of items
    max_new_tokens: int | None  # bound on an answer; None leaves it to the length of the recording
    ids: tuple[str, ...]  # of its items, in order
    num_recordings: int  # different recordings that its items have; counted up to two
    systems: tuple[str, ...] = ()  # names of the systems that answer it
    left_out: Mapping[str, str] = field(default_factory=dict)  # systems that cannot answer it, and the reasons

    def items(self) -> Iterator[Item]:
        """Yield the questions, from the beginning."""
        return self.task.items(self.data, self.limit)

    def bound(self, seconds: float) -> int:
        """Return the bound in tokens on an answer to so much audio."""
        if self.max_new_tokens is not None and self.task.kind not in HEARD_KINDS:
            return self.max_new_tokens
        natural = transcript_bound(seconds, self.task.language)
        return natural if self.max_new_tokens is None else min(self.max_new_tokens, natural)


def index(task: Task, data: str | None, limit: int | None, max_new_tokens: int | None) -> Job:
    """Read a task's items once, before anything is computed: malformed ones are refused now rather than after hours."""
    ids: list[str] = []
    recordings: set[str] = set()
    for item in task.items(data, limit):
        ids.append(item.id)
        if len(recordings) < 2:
            recordings.update(map(recording_identity, item.recordings))
    return Job(task, data, limit, max_new_tokens or task.max_new_tokens, tuple(ids), min(2, len(recordings)))


def choose_systems(job: Job, asked: Sequence[str], whisper: str | None, multilingual: bool) -> Job:
    """Return a job with its systems: those asked for, of which all must be able to answer it, or those of its kind."""
    reasons = {
        name: why_not(job.task, name, whisper, multilingual, bool(job.num_recordings))
        for name in asked or DEFAULT_SYSTEMS[job.task.kind]
    }
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in left_out.items():
        if asked:
            raise ValueError(f"--systems {name} cannot answer {job.task.name}: {reason}.")
    return replace(job, systems=tuple(name for name in reasons if name not in left_out), left_out=left_out)


def check_control(job: Job, asked: Sequence[str]) -> None:
    """Refuse the wrong-audio control where there is no second recording."""
    names = tuple(asked) or DEFAULT_SYSTEMS[job.task.kind]
    if WRONG_AUDIO in names and job.num_recordings == 1:
        others = ",".join(name for name in names if name != WRONG_AUDIO)
        told = f"{job.task.name} gives {len(job.ids)} clips of one recording; the wrong-audio control needs two different ones"
        raise ValueError(f"{told}. Take more, or leave it out by --systems {others}.")


def answer_job(
    folder: Path,
    job: Job,
    systems: Mapping[str, System],
    processor: Any,
    batch_size: int,
    state: PartialState,
    progress: bool = True,
) -> None:
    """Do this process' share of one task, which is read once; each batch is on disk before the next."""
    outputs = {name: SystemOutputs(folder, job.task.name, name, state.process_index) for name in systems}
    before = {name: each.read() for name, each in outputs.items()}
    turns = {name: count() for name in systems}
    total = -(-len(job.ids) // state.num_processes) * len(systems)
    with tqdm(total=total, desc=job.task.name, unit="answer", disable=not progress) as bar:
        for window in windows_of(job.items(), len(job.ids)):
            for name, system in systems.items():
                for item in window:
                    if item.id in before[name] and before[name][item.id]["references"] != item.references:
                        told = f"{outputs[name].path}: the references of {item.id!r} are not those of the answer there"
                        raise RunFolderError(f"{told}; the data have changed since. Choose another --output_dir.")
                done = {one for one, row in before[name].items() if row["finish"] != ERROR}
                asked = wrong_recordings(window) if name == WRONG_AUDIO else window
                for batch in interruptible(batches_of(asked, processor, batch_size)):
                    if next(turns[name]) % state.num_processes != state.process_index:
                        continue
                    if new := {item.id for item in batch} - done:
                        # All of it, so that what an answer was batched with is what it would have been without a break.
                        rows = answer_batch(job, name, system, processor, batch)
                        outputs[name].add([row for row in rows if row["id"] in new])
                        bar.set_postfix_str(outputs[name].told, refresh=False)
                    bar.update(len(batch))
    for each in outputs.values():
        if progress and each.ended[ERROR]:
            tqdm.write(f"{job.task.name}: {each.told}", file=sys.stderr)


def answer_batch(job: Job, name: str, system: System, processor: Any, batch: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the rows of a batch, of failures too; `seconds` cover decoding, features and generation."""
    began = time.perf_counter()
    heard: dict[int, list[np.ndarray]] = {}
    answers: dict[int, Reply] = {}
    for number, item in enumerate(batch):
        try:
            if item.problem:
                raise ValueError(item.problem)
            heard[number] = [processor.load_audio(recording) for recording in item.recordings]
        except (ValueError, OSError) as error:
            answers[number] = failure(error)
    seconds = {number: sum(map(len, waveforms)) / processor.sampling_rate for number, waveforms in heard.items()}
    if heard:
        bounds = [job.bound(each) for each in seconds.values()]
        given = system([batch[number] for number in heard], list(heard.values()), bounds)
        answers.update(zip(heard, given, strict=True))
    each = (time.perf_counter() - began) / len(batch)
    return [
        {
            "task": job.task.name,
            "system": name,
            "id": item.id,
            "prompt": item.prompt if reply.prompt is None else reply.prompt,
            "audio": [
                str(one["path"]) if isinstance(one, dict) and one.get("path") else recording_identity(one)
                for one in item.recordings
            ],
            "duration_s": round(seconds.get(number, 0.0), 4),
            "references": list(item.references),
            "extra": {**item.extra, **(reply.extra or {})},
            **{"output": reply.text, "finish": reply.finish, "error": reply.error},
            "seconds": round(each + reply.more_seconds, 6),
        }
        for number, item, reply in ((number, item, answers[number]) for number, item in enumerate(batch))
    ]


@dataclass
class Evaluation:
    """An evaluation that is about to run."""

    options: EvaluateArguments  # as they were given
    folder: Path  # for outputs and scores
    state: PartialState  # this process among the others
    jobs: list[Job]  # tasks with their systems
    processor: AudioLlmProcessor  # of the checkpoint
    whisper: str | None  # the Whisper whose decoder answers; None where none is known
    whisper_revision: str | None
    ctc_weight: float  # of CTC in the model's transcripts, as given or the checkpoint's own


def prepare(options: EvaluateArguments, folder: Path, state: PartialState) -> Evaluation:
    """Do everything that can be refused before a model is loaded: for want of data, checkpoint, Whisper or a free folder."""
    if options.tasks:
        tasks = tasks_named(options.tasks)
        copies = options.copies([task.name for task in tasks])
    else:
        tasks = [read_local_set(options.data_path[0], options.audio_dir, options.language, options.normaliser)]
        copies = {}
    jobs = [index(task, copies.get(task.name), options.limit, options.max_new_tokens) for task in tasks]
    for job in jobs:
        check_control(job, options.systems)
    checkpoint = find_checkpoint(options.model)
    processor = load_processor(checkpoint, options.revision)
    config = AudioLlmConfig.from_pretrained(checkpoint, revision=options.revision or "main")
    transcribes = any(task.kind == TRANSCRIPTION for task in tasks)
    weight = options.ctc_weight
    if weight is None:  # the checkpoint's default, which is for transcripts alone
        weight = default_ctc_weight(config) if transcribes else 0.0
    check_ctc_weight(config, weight)
    if weight and not transcribes:
        raise ValueError(f"--ctc_weight is for transcripts, but no task is of the kind {TRANSCRIPTION}; leave it out.")
    # That of an encoder that is no Whisper is not known.
    known = config.audio_model_id if config.audio_config.model_type == WHISPER else None
    whisper = options.whisper or known
    revision = config.audio_model_revision if whisper is not None and whisper == known else None
    hears = {WHISPER, CASCADE} & set(options.systems) or not options.systems
    multilingual = bool(whisper and hears) and is_multilingual(str(whisper), revision)
    jobs = [choose_systems(job, options.systems, whisper, multilingual) for job in jobs]
    run = Evaluation(options, folder, state, jobs, processor, whisper, revision, weight)
    check_same(folder, run_settings(run), task_settings(run))
    if state.is_main_process:
        for job in jobs:
            for name, reason in job.left_out.items():
                print(f"{job.task.name}: {name} is left out: {reason}.")
    return run


def run_settings(run: Evaluation) -> dict[str, Any]:
    """Return the settings that must be alike in all that a folder holds."""
    options = run.options
    device = options.device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **{"model": place(options.model), "revision": options.revision, "whisper": place(run.whisper)},
        **{"dtype": options.dtype, "device": device.partition(":")[0]},
        **{"batch_size": options.batch_size, "ctc_weight": run.ctc_weight},
    }


def task_settings(run: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the same of each task, by its name."""
    own = None if run.options.tasks else run.options.data_path[0]
    return {
        job.task.name: {
            "data": place(job.data or own),
            "audio_dir": place(run.options.audio_dir),
            "limit": job.limit,
            "max_new_tokens": job.max_new_tokens,
            "language": job.task.language,
        }
        for job in run.jobs
    }


def answer_all(run: Evaluation) -> None:
    """Answer what is not on disk yet, of this process' share; then, in one process, make one file of each system's rows."""
    found = [(job, name, SystemOutputs(run.folder, job.task.name, name)) for job in run.jobs for name in job.systems]
    missing: dict[str, list[str]] = {job.task.name: [] for job in run.jobs}
    for job, name, outputs in found:
        if not outputs.done().issuperset(job.ids):
            missing[job.task.name].append(name)
    if any(missing.values()):
        _answer(run, missing)
    run.state.wait_for_everyone()
    if run.state.is_main_process:
        for job, _, outputs in found:
            outputs.merge(job.ids)


@contextmanager
def locked(run: Evaluation) -> Iterator[None]:
    """Keep other runs out of the folder for a while."""
    if not run.state.is_main_process:
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run.folder / LOCK_FILE).acquire(timeout=0)
    except Timeout:
        raise RunFolderError(f"Another run is writing to {run.folder}; wait for it to end.") from None
    with lock:
        yield


def _answer(run: Evaluation, missing: Mapping[str, Sequence[str]]) -> None:
    options, state = run.options, run.state
    device = options.device_map or (str(state.device) if torch.cuda.is_available() else None)
    model = load_model(find_checkpoint(options.model), options.dtype, device, options.revision)
    weights = fingerprint({name: value for name, value in model.state_dict().items() if value.is_floating_point()})
    check_same(run.folder, {"weights": weights}, {})
    state.wait_for_everyone()  # none writes before all have looked
    if state.is_main_process:
        write_json(run.folder / RUN_FILE, record_of(run, model, weights))
    known = (run.whisper, run.whisper_revision, run.folder, options.batch_size, run.ctc_weight)
    builder = SystemBuilder(model, run.processor, *known)
    for job in run.jobs:
        if names := missing[job.task.name]:
            systems = {name: builder.build(job.task, name) for name in names}
            answer_job(run.folder, job, systems, run.processor, options.batch_size, state, state.is_main_process)


def record_of(run: Evaluation, model: Any, weights: str) -> dict[str, Any]:
    """Return the contents of `run.json`; a run that goes on keeps the versions and the time of its beginning."""
    before, package = read_run(run.folder), package_facts()
    versions = {"audiollm": package["version"], **library_versions()}
    for name, then in before.get("versions", {}).items():
        if versions.get(name) != then:
            print(f"Note: {name} was {then} and is {versions.get(name)}, since this run was begun.", file=sys.stderr)
    settings = task_settings(run)
    fields = ("kind", "metrics", "language", "normaliser", "group", "source")
    tasks = {}
    for job in run.jobs:
        known = {name: getattr(job.task, name) for name in fields}
        counted = {"items": len(job.ids), "left_out": job.left_out, SETTINGS: settings[job.task.name]}
        tasks[job.task.name] = {**known, **counted}
    return {
        "model": str(run.options.model),
        "revision": run.options.revision,
        "dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "device": str(model.device),
        "bases": {role: getattr(model.config, f"{role}_model_id") for role in ("audio", "text")},
        "versions": before.get("versions") or versions,
        "commit": before.get("commit") or package["commit"],
        "arguments": json.loads(json.dumps(asdict(run.options), default=str)),
        "started": before.get("started") or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        SETTINGS: {**run_settings(run), "weights": weights},
        "tasks": {**before.get("tasks", {}), **tasks},
    }
