"""A user's own test set, in any form that `audiollm train --data_path` reads: {text, audio_paths, response}."""

from collections.abc import Iterator

from audiollm.corpora.rows import Conversation
from audiollm.corpora.sources import Examples, read_sources

from .task import Item, Problem, Task, TaskDataError, TaskError

LOCAL_TASK = "local"
MAX_NEW_TOKENS = 200
ASR_ROLES = ["user", "assistant"]


def read_local_set(data_path: str, audio_dir: str | None = None) -> Task:
    """
    The user's own recordings as a task of speech recognition: each row one question about one recording, answered by
    its transcript.

    Args:
        data_path: JSON, JSON Lines, Parquet, a folder of Parquet files or of `save_to_disk`, or `hub:org/name`.
        audio_dir: folder that audio paths are relative to and may not leave.

    Raises:
        TaskDataError: rows are malformed, or no question about one recording; all are named.
        ExamplesError, FileNotFoundError, ValueError: as `read_sources`.
    """
    (examples,) = read_sources(data_path, audio_dir)
    problems = list(examples.problems)
    for example in examples:
        if reason := _unfit(example):
            problems.append((example.where, reason))
    if problems:
        raise TaskDataError(LOCAL_TASK, problems)

    def reader(task: Task, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
        if data is not None:
            raise TaskError(f"Task {task.name!r} is {data_path!r}; it takes no other --data, got {data!r}.")
        yield from _items(examples)

    return Task(
        name=LOCAL_TASK,
        kind="asr",
        metrics=("word_error",),
        language="en",
        normaliser="english",
        source={"benchmark": data_path, "title": f"own recordings, {data_path}"},
        max_new_tokens=MAX_NEW_TOKENS,
        group=None,
        reader=reader,
    )


def _unfit(example: Conversation) -> str | None:
    """Why a row is no question about one recording; None where it is one."""
    if len(example.recordings) != 1:
        return f"has {len(example.recordings)} recordings; a transcript has exactly one"
    if [message["role"] for message in example.messages] != ASR_ROLES:
        return "is not one question with one answer, the transcript"
    return None


def _items(examples: Examples) -> Iterator[Item]:
    for example in examples:
        prompt, answer = (message["content"] for message in example.messages)
        yield Item(example.where, prompt, list(example.recordings), [answer], {})


__all__ = ["LOCAL_TASK", "read_local_set"]
