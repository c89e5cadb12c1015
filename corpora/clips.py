"""
What every corpus is read as: clips, one recording each with what is known of it, in an order that never changes.

A source yields them one by one, so that a corpus of any size fits in memory; what cannot become a clip is yielded as a
[`BadClip`] with the reason, so that everything wrong with a corpus is reported at once.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

DEFAULT_SPLIT = "train"
#: Folder that marks another as one that a corpus was prepared in; it holds the state of the run.
STATE_FOLDER = ".prepare"
#: Longest file name that an id becomes, in bytes of UTF-8, its hash and ending not counted: file systems allow 255.
MAX_NAME_BYTES = 120
#: Digits of the hash that tells apart ids which would get the same name.
NAME_HASH_DIGITS = 8
#: What a file name keeps of an id: letters and digits of any script, and these.
UNSAFE_CHARACTERS = re.compile(r"[^\w.-]")
#: What a value of a clip's further fields may be.
FieldValue = str | int | float | bool | None


class CorpusError(ValueError):
    """A corpus that cannot be read at all; the message names it, says what was expected and what to do."""


@dataclass(frozen=True)
class Clip:
    """
    One recording, or a part of one, with what is known of it.

    Attributes:
        id: what the corpus calls it; unique in its source.
        recording: what `load_waveform` takes: an absolute path, a URL, or a dict of `datasets` (`bytes` or `path`); or a
            [`LazyRecording`].
        text: what is said in it; empty where that is not known.
        split: which part of the corpus it belongs to.
        fields: whatever else is known, by the names that tasks use: `translation`, `caption`, `question`, `answer`,
            `speaker`, `language`, `pred_text`, `wer` (in percent) and so on.
        start_seconds, end_seconds: the part of the recording that is meant; all of it by default.
    """

    id: str
    recording: Any
    text: str = ""
    split: str = DEFAULT_SPLIT
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    start_seconds: float = 0.0
    end_seconds: float | None = None


@dataclass(frozen=True)
class BadClip:
    """Something in a corpus that cannot become a clip: what it is called, why, and in which split it stands."""

    id: str
    reason: str
    split: str = DEFAULT_SPLIT


class LazyRecording(Protocol):
    """A recording that is made when it is needed, by the process that needs it; it can be pickled."""

    def load(self) -> tuple[np.ndarray, int]:
        """Waveform, float32 of shape `(samples,)`, and its rate in Hz; raises AudioError where nothing comes of it."""
        ...


class ClipSource(Protocol):
    """
    A corpus to prepare.

    Attributes:
        name: what messages call it.
        identity: everything that decides which clips come and in which order, as JSON knows it: paths, options,
            revisions. What was prepared from another identity is never continued.
    """

    name: str
    identity: dict[str, Any]

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """All clips from the `start`-th on, in an order that is the same every time."""
        ...

    def count(self) -> int | None:
        """How many [`clips`] yields from 0, where that is known without reading them all."""
        ...


def safe_name(identity: str) -> str:
    """
    A file name, without ending, for whatever a corpus calls a clip: never a path, never hidden, never too long.

    Ids that are plain stay as they are; of others the name ends in a hash of the whole id, so that no two ids share one,
    on file systems that fold case or Unicode forms either.
    """
    name = UNSAFE_CHARACTERS.sub("_", unicodedata.normalize("NFC", identity)).lstrip(".-")
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    if name and name == identity and identity.isascii() and identity == identity.lower():
        return name
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:NAME_HASH_DIGITS]
    return f"{name}-{digest}" if name else digest


__all__ = ["BadClip", "Clip", "ClipSource", "CorpusError", "FieldValue", "LazyRecording", "safe_name"]
