"""
A run: every task's questions put to every system, and what they answer written down as it comes.

Several processes, started by `accelerate launch`, take turns at batches, which are the same however many there are. Nothing
is exchanged between them but files, and one wait at the end. A run that was killed goes on with the batches that are
not on disk yet.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from audiollm.answering import MAX_BATCH_SECONDS
from audiollm.interruption import interruptible
from tqdm.auto import tqdm

from .generating import Answer, failure, transcript_bound
from .outputs import ERROR, LENGTH, REPEATED, OutputsError, SystemOutputs
from .plan import Question, batches_of, recording_identity, recording_name, windows_of
from .systems import SYSTEM_TITLES, System

if TYPE_CHECKING:
    from .tasks import Item, Task

#: Kinds whose answers are as long as what is said.
SPOKEN_KINDS = ("asr", "no_speech", "translation")


@dataclass(frozen=True)
class Job:
    """
    A task as it is run.

    Attributes:
        task: what is asked.
        data: a copy on disk, or None for where the benchmark is.
        limit: at most this many items.
        max_new_tokens: bound on an answer; None leaves it to the length of the recording.
        ids: of its items, in order.
        num_recordings: different recordings that its items have; counted up to two.
        systems: what answers it.
        left_out: systems that would have answered it, and why they cannot.
    """

    task: "Task"
    data: str | None
    limit: int | None
    max_new_tokens: int | None
    ids: tuple[str, ...]
    num_recordings: int
    systems: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def items(self) -> Iterator["Item"]:
        """The questions, from the beginning."""
        return self.task.items(self.data, self.limit)

    def bound(self, seconds: float) -> int:
        """Return how many tokens an answer to so much audio may have."""
        if self.max_new_tokens is not None and self.task.kind not in SPOKEN_KINDS:
            return self.max_new_tokens
        natural = transcript_bound(seconds, self.task.language)
        return natural if self.max_new_tokens is None else min(self.max_new_tokens, natural)


def index(task: "Task", data: str | None, limit: int | None, max_new_tokens: int | None) -> Job:
    """
    Reads a task's items once, before anything is computed: malformed ones are refused now rather than after hours.

    Raises:
        ValueError, OSError: as the task does.
    """
    ids: list[str] = []
    recordings: set[str] = set()
    for item in task.items(data, limit):
        ids.append(item.id)
        if len(recordings) < 2:
            recordings.update(map(recording_identity, item.recordings))
    return Job(task, data, limit, max_new_tokens or task.max_new_tokens, tuple(ids), min(2, len(recordings)))


class Place(Protocol):
    """Which process this is, among how many; accelerate's `PartialState` is one."""

    process_index: int
    num_processes: int


def is_complete(folder: Path, job: Job, system: str) -> bool:
    """Whether every item has an answer on disk."""
    rows = SystemOutputs(folder, job.task.name, system).read()
    return all(one in rows and rows[one]["finish"] != ERROR for one in job.ids)


def answer_job(
    folder: Path,
    job: Job,
    systems: Mapping[str, System],
    processor: Any,
    batch_size: int,
    place: Place,
    progress: bool = True,
    max_batch_seconds: float = MAX_BATCH_SECONDS,
) -> None:
    """
    This process' share of what systems answer to one task, which is read once; each batch is on disk before the next.

    Args:
        folder: where outputs go.
        systems: those that answer, by name.
        processor: decodes recordings; the model's.
        progress: shows a bar with rate and time left.

    Raises:
        OutputsError: the folder has answers to other questions by the same ids.
    """
    shares = [_Share(SystemOutputs(folder, job.task.name, name, place.process_index), name) for name in systems]
    total = -(-len(job.ids) // place.num_processes) * len(systems)
    with tqdm(total=total, desc=job.task.name, unit="answer", disable=not progress) as bar:
        for window in windows_of(job.items(), len(job.ids)):
            for share in shares:
                _check_same_questions(share.outputs.path, window, share.rows)
                system = systems[share.name]
                batches = batches_of(system.questions(window), processor, batch_size, max_batch_seconds)
                for batch in interruptible(batches):
                    share.turn += 1
                    if (share.turn - 1) % place.num_processes != place.process_index:
                        continue
                    new = {question.item.id for question in batch} - share.done
                    if new:
                        # All of it, so that what an answer was batched with is what it would have been without a break.
                        answered = answer_batch(job, share.name, system, processor, batch)
                        share.outputs.add([row for row in answered if row["id"] in new])
                        share.count(answered)
                        bar.set_postfix_str(share.said, refresh=False)
                    bar.update(len(batch))
    for share in shares:
        if progress and share.failed:
            tqdm.write(f"{job.task.name}: {share.said}", file=sys.stderr)


class _Share:
    """Where one system has got to in this process."""

    def __init__(self, outputs: SystemOutputs, name: str):
        self.outputs, self.name = outputs, name
        self.rows = outputs.read()
        self.done = {one for one, row in self.rows.items() if row["finish"] != ERROR}
        self.turn = self.failed = self.cut_off = 0

    def count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.failed += sum(row["finish"] == ERROR for row in rows)
        self.cut_off += sum(row["finish"] in (LENGTH, REPEATED) for row in rows)

    @property
    def said(self) -> str:
        return f"{SYSTEM_TITLES[self.name]}: {self.failed} failed, {self.cut_off} cut off"


def _check_same_questions(path: Path, window: Sequence["Item"], rows: dict[str, dict[str, Any]]) -> None:
    for item in window:
        row = rows.get(item.id)
        if row is not None and row["references"] != item.references:
            raise OutputsError(
                f"{path}: the references of {item.id!r} are not those of the answer that is there; the data have changed since. "
                "Choose another --output_dir."
            )


def answer_batch(
    job: Job, name: str, system: System, processor: Any, batch: Sequence[Question]
) -> list[dict[str, Any]]:
    """
    Rows of one batch, in its order. What cannot be played or asked is a row too, with the reason.

    Their `seconds` cover decoding, features and generation.
    """
    began = time.perf_counter()
    heard: dict[int, list[np.ndarray]] = {}
    answers: dict[int, Answer] = {}
    for place, question in enumerate(batch):
        try:
            if question.problem:
                raise ValueError(question.problem)
            heard[place] = [processor.load_audio(recording) for recording in question.recordings]
        except (ValueError, OSError) as error:
            answers[place] = failure(error)
    seconds = {place: sum(map(len, waveforms)) / processor.sampling_rate for place, waveforms in heard.items()}
    if heard:
        given = system.answer(
            [batch[place] for place in heard], list(heard.values()), [job.bound(seconds[place]) for place in heard]
        )
        answers.update(zip(heard, given, strict=True))
    each = (time.perf_counter() - began) / len(batch)
    return [
        _row(job.task.name, name, question, answers[place], seconds.get(place, 0.0), each)
        for place, question in enumerate(batch)
    ]


def _row(
    task: str, system: str, question: Question, answer: Answer, duration_s: float, seconds: float
) -> dict[str, Any]:
    item = question.item
    return {
        "task": task,
        "system": system,
        "id": item.id,
        "prompt": item.prompt if answer.prompt is None else answer.prompt,
        "audio": [recording_name(recording) for recording in question.recordings],
        "duration_s": round(duration_s, 4),
        "references": list(item.references),
        "extra": {**item.extra, **(answer.extra or {})},
        "output": answer.text,
        "finish": answer.finish,
        "error": answer.error,
        "seconds": round(seconds + answer.more_seconds, 6),
    }


def with_systems(job: Job, systems: Sequence[str], left_out: Sequence[tuple[str, str]]) -> Job:
    """The same, with what answers it."""
    return replace(job, systems=tuple(systems), left_out=tuple(left_out))


__all__ = ["Job", "Place", "answer_batch", "answer_job", "index", "is_complete", "with_systems"]
