"""What an evaluation task is: a benchmark's questions, one after the other, with what is needed to score the answers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from audiollm.processing.conversations import AUDIO_PLACEHOLDER

KINDS = (
    *("asr", "translation", "choice", "chat", "instruction", "summary", "description", "no_speech", "text_retention"),
)
MAX_PROBLEMS_SHOWN = 200


class TaskError(ValueError):
    """A task that cannot be run as asked: there is none of that name, or its data cannot be read at all."""


class TaskDataError(TaskError):
    """
    Rows of a task's data that are no questions; the message names every one.

    Attributes:
        problems: (where, reason) of each.
    """

    def __init__(self, task: str, problems: list[tuple[str, str]]):
        self.problems = problems
        lines = [f"{where}: {reason}" for where, reason in problems[:MAX_PROBLEMS_SHOWN]]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
        count = "1 row is" if len(problems) == 1 else f"{len(problems)} rows are"
        super().__init__(f"Task {task}: {count} of no use\n  " + "\n  ".join(lines))


@dataclass(frozen=True)
class Problem:
    """A row that is no question: where it stands, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Item:
    """
    One question of a benchmark.

    Attributes:
        id: stable and unique within the task: a run is resumed by it.
        prompt: with one `<audio>` for each recording; none where the question is text alone.
        recordings: whatever the processor takes: a path or URL, a dict with `bytes`, or one with `array`.
        references: right answers; none where a judge or a rate needs none. Empty where the benchmark's is empty. Of a
            choice: the letter.
        extra: whatever else is known, as JSON: `question`, `choices` (text by letter), `transcript`, `speaker`,
            `language`, `category`, and of a recording cut into chunks `session` and `chunk_index`.
    """

    id: str
    prompt: str
    recordings: list[Any]
    references: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


#: Gives a task's questions: from a copy on disk, or None for where the benchmark is; at least so many, or None for all.
Reader = Callable[["Task", str | None, int | None], Iterator[Item | Problem]]


@dataclass(frozen=True)
class Task:
    """
    A benchmark, or one language or part of one.

    Attributes:
        name: what `--tasks` calls it.
        kind: one of `KINDS`, which decides how answers are asked for and scored.
        metrics: names of the metrics that its answers get.
        language: code of the language that answers are in; None where they are in none.
        normaliser: a name of `NORMALISERS`, applied to references and answers that are compared word by word.
        source: where it comes from, as JSON: benchmark, hub, config, split, licence, terms, citation, and what scoring
            needs to know: `source_language` (spoken, of a translation), `bleu_tokenizer`, `judge`, `parsing`.
        max_new_tokens: bound on an answer; None where it follows from the length of the recording.
        group: tasks whose scores are averaged, unweighted.
        reader: gives the questions.
    """

    name: str
    kind: str
    metrics: tuple[str, ...]
    language: str | None
    normaliser: str
    source: Mapping[str, Any]
    max_new_tokens: int | None
    group: str | None
    reader: Reader = field(repr=False, compare=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise TaskError(f"Task {self.name!r} is of the kind {self.kind!r}; expected one of {', '.join(KINDS)}.")

    def items(self, data: str | None = None, limit: int | None = None) -> Iterator[Item]:
        """
        The questions, one by one, in an order that never changes.

        Args:
            data: a copy on disk, as the benchmark hands it out; None reads it where it is.
            limit: at most this many, the first ones.

        Raises:
            TaskError: the data cannot be read; it is said when the first question is asked for.
            TaskDataError: rows are malformed. Where all rows are known at once (JSON) before the first question, else
                after the last one: what streams is not read twice.
        """
        if limit is not None and limit < 1:
            raise TaskError(f"Task {self.name!r}: expected a limit of 1 or more, not {limit}.")
        seen: dict[str, int] = {}
        problems: list[tuple[str, str]] = []
        found = 0
        for item in self.reader(self, data, limit):
            if isinstance(item, Problem):
                problems.append((item.where, item.reason))
                continue
            placeholders = item.prompt.count(AUDIO_PLACEHOLDER)
            if placeholders != len(item.recordings):
                reason = f"its prompt has {placeholders} {AUDIO_PLACEHOLDER} for {len(item.recordings)} recordings"
                problems.append((item.id, reason))
                continue
            yield _with_unique_id(item, seen)
            found += 1
            if found == limit:
                break
        if problems:
            raise TaskDataError(self.name, problems)
        if not found:
            raise TaskError(f"Task {self.name!r}: {data or 'its data'} holds no questions.")


def _with_unique_id(item: Item, seen: dict[str, int]) -> Item:
    """The item, its id with a number behind it where an earlier one has the same."""
    number, identity = seen.get(item.id, 0) + 1, item.id
    if number > 1:
        identity = f"{item.id}#{number}"
        while identity in seen:
            number += 1
            identity = f"{item.id}#{number}"
        seen[identity] = 1
    seen[item.id] = number
    return item if identity == item.id else replace(item, id=identity)


__all__ = ["KINDS", "Item", "Problem", "Reader", "Task", "TaskDataError", "TaskError"]
