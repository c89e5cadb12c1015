"""
Clips: one recording each with what is known of it, in an order that never changes. Every corpus is read as clips.

A source yields them one by one, so that a corpus of any size fits in memory. It yields what cannot become a clip as a
[`BadClip`] with the reason, so that everything wrong with a corpus is reported at once.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

DEFAULT_SPLIT = "train"
#: Names of splits in folders and files, as the audiofolder of `datasets` knows them.
SPLIT_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
#: In a folder "dev-clean" or "my_test 2" the keyword stands between these, as in `datasets`.
_BOUNDARY = r"[-._ 0-9]"
_KEYWORD = {
    split: re.compile(rf"(?:^|{_BOUNDARY})(?:{'|'.join(words)})(?:$|{_BOUNDARY})", re.IGNORECASE)
    for split, words in SPLIT_KEYWORDS.items()
}
#: Folder that marks another as one that a corpus was prepared in; it holds the state of the run.
STATE_FOLDER = ".prepare"
#: Longest file name that an id becomes, in bytes of UTF-8, its hash and ending not counted: file systems allow 255.
MAX_NAME_BYTES = 120
#: Digits of the hash that distinguishes ids which would get the same name.
NAME_HASH_DIGITS = 8
#: Characters of an id that a file name replaces: all but letters and digits of any script, and a few marks.
UNSAFE_CHARACTERS = re.compile(r"[^\w.-]")
#: Types of a clip's further fields.
FieldValue = str | int | float | bool | None


class CorpusError(ValueError):
    """A corpus that cannot be read at all; the message names it, what was expected and what to do."""


@dataclass(frozen=True)
class Clip:
    """
    One recording, or the part of it between two times, with what is known of it.

    Its recording is what `load_waveform` takes (an absolute path, a URL, or a dict with `bytes` or `path`). Or it is made by
    the process that needs it: its `load` returns a waveform `(samples,)` and its rate in Hz, or raises AudioError. Fields
    have the names that tasks use: `translation`, `caption`, `question`, `speaker`, `wer` and so on.
    """

    id: str  # unique in its source
    recording: Any
    text: str = ""  # the transcript; empty if it is not known
    split: str = DEFAULT_SPLIT
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    start_seconds: float = 0.0
    end_seconds: float | None = None


@dataclass(frozen=True)
class BadClip:
    """Something in a corpus that cannot become a clip: its name, the reason, and its split."""

    id: str
    reason: str
    split: str = DEFAULT_SPLIT


class ClipSource:
    """
    A corpus to prepare.

    Attributes:
        name: Its name in messages.
        identity: Everything that decides which clips come and in which order, as JSON knows it: paths, options,
            revisions. A run is never continued with another identity.
        tasks: default questions about its clips: tasks, or their names.
        summary: the source, for people.
        folder, reads_all_below: The local folder that is read, if any, and whether it is read whole.
        wer_unit, wer_doubt: The unit of its own word errors, percent or fraction; or the message for when it cannot be told.
    """

    name: str
    identity: dict[str, Any]
    tasks: Sequence[Any] = ("transcribe",)
    summary = ""
    folder: str | os.PathLike[str] | None = None
    reads_all_below = False
    wer_unit: str | None = None
    wer_doubt: str | None = None

    def every(self) -> Iterator[Clip | BadClip]:
        """Yield all clips, in an order that is the same every time."""
        raise NotImplementedError

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Yield all clips from the `start`-th on."""
        return islice(self.every(), start, None)

    def count(self) -> int | None:
        """Return how many clips there are, bad ones included; None if that is not known."""
        return None


def split_in(path: str) -> str | None:
    """Return the split that a relative path names in one of its parts, the first that does."""
    for part in path.split(os.sep):
        for split, pattern in _KEYWORD.items():
            if pattern.search(part):
                return split
    return None


def split_named(name: str) -> str:
    """Return a split's usual name: "dev" is "validation"."""
    return next((split for split, words in SPLIT_KEYWORDS.items() if name.lower() in words), name)


def safe_name(identity: str) -> str:
    """
    Return a file name without suffix for an id: never a path, never hidden, never too long.

    Plain ids stay as they are. Other names end in a hash of the whole id, so that no two ids share one, not even on file
    systems that fold case or Unicode forms.
    """
    name = UNSAFE_CHARACTERS.sub("_", unicodedata.normalize("NFC", identity)).lstrip(".-")
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    if name and name == identity and identity.isascii() and identity == identity.lower():
        return name
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:NAME_HASH_DIGITS]
    return f"{name}-{digest}" if name else digest
