"""
Transcripts that a model has made, kept in one file that only ever grows.

Each is found by the sha256 of its recording and the settings it was made with, so that a pass which was broken off goes
on where it was, two at the same time share their work, and what was made of another recording is never taken for it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

#: Digits of the settings' hash that stand in every line.
SETTINGS_DIGITS = 16


class TranscriptJournal:
    """
    An append-only JSON Lines file of transcripts made with one set of settings; it may hold those of others beside.

    In memory it keeps one number a transcript, not the transcripts. A line that was cut off, by a crash or a full disk,
    is removed before the next one is written: its recording is simply heard again.

    Args:
        path: the file; made, with its folder, when the first transcript comes.
        settings: whatever decides what a transcript says, as JSON knows it.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]):
        self.path = Path(path)
        self.settings = dict(settings)
        canonical = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        self._digest = hashlib.sha256(canonical.encode()).hexdigest()[:SETTINGS_DIGITS]
        self._offsets: dict[bytes, int] = {}
        self._position = 0
        self._is_described = False
        self.refresh()

    def __len__(self) -> int:
        return len(self._offsets)

    def refresh(self) -> None:
        """Takes in what has been written since, by another process too."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):  # being written, or cut off
                    break
                self._take_in(line, self._position)
                self._position += len(line)

    def _take_in(self, line: bytes, offset: int) -> None:
        entry = _parse(line)
        if entry.get("settings") == self._digest:
            self._is_described = self._is_described or "made_with" in entry
            if _is_transcript(entry):
                self._offsets[bytes.fromhex(entry["sha256"])] = offset

    def get(self, sha256: str) -> str | None:
        """The transcript of a recording, by the hex digest of its file; None where there is none yet."""
        offset = self._offsets.get(bytes.fromhex(sha256))
        if offset is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(offset)
            return _parse(file.readline())["text"]

    def add(self, transcripts: Sequence[tuple[str, str]]) -> None:
        """Writes pairs of digest and transcript, all of them on disk when this returns."""
        entries: list[dict[str, Any]] = [
            {"sha256": sha256, "settings": self._digest, "text": text} for sha256, text in transcripts
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            self.refresh()
            if not self._is_described:
                entries.insert(0, {"settings": self._digest, "made_with": self.settings})
            with open(self.path, "ab") as file:
                if file.tell() > self._position:  # what another run was cut off in
                    file.truncate(self._position)
                for entry in entries:
                    file.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self.refresh()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _is_transcript(entry: Mapping[str, Any]) -> bool:
    try:
        return isinstance(entry["text"], str) and len(bytes.fromhex(entry["sha256"])) == hashlib.sha256().digest_size
    except (KeyError, TypeError, ValueError):
        return False


__all__ = ["TranscriptJournal"]
