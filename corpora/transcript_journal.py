"""
Texts that a model has made, kept in one file that only ever grows.

Each is found by the sha256 of its source and the settings it was made with. An interrupted pass goes on where it was, two at
the same time share their work, and a text made with other settings is never taken.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audiollm.command_line.files import Journal, sha256_of

#: Files of a model's folder that decide what it writes.
MODEL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
#: Digits of the settings' hash that stand in every line.
SETTINGS_DIGITS = 16

Source = TypeVar("Source")


class TranscriptJournal:
    """
    Journal of the texts made with one set of settings; the file may hold those of others too.

    Memory holds one number for each text, not the texts. A corrupt line is passed over: its text is made again.

    Args:
        path: The file; None keeps nothing.
        settings: Everything that decides what a text says, as JSON knows it.

    Attributes:
        made, recalled: How many texts [`complete`] had to make, and how many more were known.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]):
        self.journal = None if path is None else Journal(path)
        self.settings = dict(settings)
        self.made = self.recalled = 0
        canonical = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        self._digest = hashlib.sha256(canonical.encode()).hexdigest()[:SETTINGS_DIGITS]
        self._starts: dict[bytes, int] = {}
        self._position, self._is_described = 0, False
        self.refresh()

    def refresh(self) -> None:
        """Take in what has been written since, by other processes too."""
        for line in self.journal.lines(self._position) if self.journal else ():
            entry, self._position = line.entry or {}, line.end
            if entry.get("settings") == self._digest:
                self._is_described = self._is_described or "made_with" in entry
                if isinstance(entry.get("text"), str) and _is_sha256(entry.get("sha256")):
                    self._starts[bytes.fromhex(entry["sha256"])] = line.start

    def get(self, sha256: str) -> str | None:
        """Return the text by its source's sha256; None if there is none yet."""
        start = self._starts.get(bytes.fromhex(sha256))
        return None if start is None or self.journal is None else self.journal.at(start)["text"]

    def add(self, texts: Sequence[tuple[str, str]]) -> None:
        """Write pairs of sha256 and text; all of them are on disk when this returns."""
        if self.journal is not None:
            head = [] if self._is_described else [{"settings": self._digest, "made_with": self.settings}]
            entries = ({"sha256": sha256, "settings": self._digest, "text": text} for sha256, text in texts)
            self.journal.append([*head, *entries])
            self.refresh()

    def complete(
        self, sources: Mapping[str, Source], batch_size: int, make: Callable[[list[Source]], Sequence[str]]
    ) -> Iterator[dict[str, str]]:
        """
        Yield the texts of sources by their sha256, batch by batch; each is kept as soon as its batch is made.

        The same sources make the same batches, whichever are known; of a batch only what is not known is made, by `make`.
        """
        digests = list(sources)
        for first in range(0, len(digests), batch_size):
            batch = digests[first : first + batch_size]
            self.refresh()
            texts = {digest: text for digest in batch if (text := self.get(digest)) is not None}
            new = [digest for digest in batch if digest not in texts]
            if new:
                made = list(zip(new, make([sources[digest] for digest in new])))
                self.add(made)
                texts |= dict(made)
            self.made, self.recalled = self.made + len(new), self.recalled + len(batch) - len(new)
            yield texts


def _is_sha256(value: Any) -> bool:
    try:
        return len(bytes.fromhex(value)) == hashlib.sha256().digest_size
    except (TypeError, ValueError):
        return False


def model_checksum(folder: str, config: Any) -> str | None:
    """Return what a model is known by, whatever its name: its commit on the Hub, or the sha256 of its folder's files."""
    if not os.path.isdir(folder):
        return getattr(config, "_commit_hash", None)
    files = sorted({file for pattern in MODEL_FILES for file in Path(folder).glob(pattern)})
    return sha256_of("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode())
