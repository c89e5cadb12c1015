"""A user's own test set, in any form that `audiollm train --data_path` reads: {text, audio_paths, response}."""

import unicodedata
from collections.abc import Iterator

from audiollm.corpora.rows import Conversation
from audiollm.corpora.sources import Examples, read_sources
from audiollm.processing.normalisers import normaliser_for

from .task import Item, Problem, Task, TaskDataError, TaskError

LOCAL_TASK = "local"
ENGLISH = "en"
#: The normaliser that makes every character a word, for languages without spaces.
CHARACTERS = "characters"
ASR_ROLES = ["user", "assistant"]


def read_local_set(
    data_path: str, audio_dir: str | None = None, language: str | None = None, normaliser: str | None = None
) -> Task:
    """
    Return the user's own recordings as a task of speech recognition.

    Each row is one question about one recording, answered by its transcript.

    Args:
        data_path: JSON, JSON Lines, Parquet, a folder of Parquet files or of `save_to_disk`, or `hub:org/name`.
        audio_dir: folder that audio paths are relative to and may not leave.
        language: code of the language that is spoken and written; English if not given.
        normaliser: a name of `NORMALISERS`; the language's own if not given.

    Raises:
        TaskDataError: rows are malformed, or no question about one recording; all are named.
        TaskError: no language is given, and the transcripts are not in Latin letters.
        ExamplesError, FileNotFoundError, ValueError: as `read_sources`.
    """
    (examples,) = read_sources(data_path, audio_dir)
    problems = list(examples.problems)
    latin = letters = 0
    for example in examples:
        if reason := _unfit(example):
            problems.append((example.where, reason))
        else:
            written = [letter for letter in example.messages[-1]["content"] if letter.isalpha()]
            letters += len(written)
            latin += sum(unicodedata.name(letter, "").startswith("LATIN") for letter in written)
    if problems:
        raise TaskDataError(LOCAL_TASK, problems)
    if language is None and letters > 2 * latin:
        raise TaskError(f"The transcripts of {data_path} are not in Latin letters; give their --language, such as hi.")
    normaliser = normaliser or normaliser_for(language)

    def reader(task: Task, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
        if data is not None:
            raise TaskError(f"Task {task.name!r} is {data_path!r}; it takes no other --data, got {data!r}.")
        yield from _items(examples)

    return Task(
        name=LOCAL_TASK,
        kind="asr",
        metrics=("character_error",) if normaliser == CHARACTERS else ("word_error",),
        language=language or ENGLISH,
        normaliser=normaliser,
        source={"benchmark": data_path, "title": f"own recordings, {data_path}"},
        max_new_tokens=None,
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
