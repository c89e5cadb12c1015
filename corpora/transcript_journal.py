"""Texts that a model has made, kept in one file that only grows, by the sha256 of the source and the model's settings."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audiollm.command_line.files import Journal, sha256_of

from .clips import safe_name

#: Files of a model's folder that decide what it writes.
MODEL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
#: Digits of the settings' hash that stand in every line.
SETTINGS_DIGITS = 16

Source = TypeVar("Source")


class TranscriptJournal:
    """
    Journal `<model>.jsonl` of the texts made with one set of settings; the file may hold those of others too.

    `settings` are everything that decides what a text says, as JSON knows it. Memory holds one number for each text. A
    corrupt line is passed over: its text is made again. `made` counts the texts that [`complete`] had to make, `recalled`
    those that were known.
    """

    def __init__(self, folder: str | os.PathLike[str], model: str, settings: Mapping[str, Any]):
        self.journal = Journal(Path(folder) / f"{safe_name(model)}.jsonl")
        self.settings = dict(settings)
        self.made = self.recalled = 0
        canonical = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        self._digest = sha256_of(canonical.encode())[:SETTINGS_DIGITS]
        self._starts: dict[bytes, int] = {}
        self._end, self._is_described = 0, False
        self._index()

    def _index(self) -> None:
        """Note where the texts are that were written since."""
        for line in self.journal.lines(self._end):
            entry, self._end = line.entry or {}, line.end
            if entry.get("settings") == self._digest:
                self._is_described = self._is_described or "made_with" in entry
                if "text" in entry:
                    self._starts[bytes.fromhex(entry["sha256"])] = line.start

    def complete(
        self, sources: Mapping[str, Source], batch_size: int, make: Callable[[list[Source]], Sequence[str]]
    ) -> Iterator[dict[str, str]]:
        """
        Yield the texts of sources by their sha256, batch by batch; each is on disk as soon as its batch is made.

        The same sources make the same batches, whichever are known; of a batch only what is not known is made, by `make`.
        """
        digests = list(sources)
        for first in range(0, len(digests), batch_size):
            batch = digests[first : first + batch_size]
            new = [digest for digest in batch if bytes.fromhex(digest) not in self._starts]
            if new:
                head = [] if self._is_described else [{"settings": self._digest, "made_with": self.settings}]
                texts = zip(new, make([sources[digest] for digest in new]))
                lines = [{"sha256": digest, "settings": self._digest, "text": text} for digest, text in texts]
                self.journal.append([*head, *lines])
                self._index()
            self.made, self.recalled = self.made + len(new), self.recalled + len(batch) - len(new)
            yield {digest: self.journal.at(self._starts[bytes.fromhex(digest)])["text"] for digest in batch}


def model_checksum(folder: str, config: Any) -> str | None:
    """Return what a model is known by, whatever its name: its commit on the Hub, or the sha256 of its folder's files."""
    if not os.path.isdir(folder):
        return getattr(config, "_commit_hash", None)
    files = sorted({file for pattern in MODEL_FILES for file in Path(folder).glob(pattern)})
    return sha256_of("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode())
