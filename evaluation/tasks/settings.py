"""What `tasks.yaml` says about one task, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SourceSettings:
    """A form that a benchmark comes in: an entry of the tables, and the config and split of it that are read."""

    corpus: str
    split: str
    config: str | None = None


@dataclass(frozen=True)
class Settings:
    """
    One task, as its reader needs it.

    Attributes:
        kind, metrics, prompt, max_new_tokens, group, judge, parsing: see `tasks.yaml`.
        reader: name of the function that reads it.
        sources: forms that the benchmark comes in.
        answer: field that holds the references; None where there are none.
        openslr: name of the split in LibriSpeech's own archives.
        by: fields that tell which rows are about the same recording.
        language: code of the answers' language.
        about: title and licence of a task that has no source.
    """

    kind: str
    metrics: tuple[str, ...]
    reader: str
    max_new_tokens: int | None = None
    prompt: str = ""
    sources: tuple[SourceSettings, ...] = ()
    answer: str | None = None
    openslr: str | None = None
    by: tuple[str, ...] = ()
    language: str | None = None
    group: str | None = None
    judge: str | None = None
    parsing: str | None = None
    about: Mapping[str, Any] | None = None


__all__ = ["Settings", "SourceSettings"]
