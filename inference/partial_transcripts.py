"""What has been transcribed of a recording so far, on disk: killed and given again, a command goes on from there."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HASH_BLOCK_BYTES = 1 << 20


class PartialTranscript:
    """
    An append-only JSON Lines file of one recording's windows. The first line says of what recording and with what settings
    they were made; a file of others is begun anew. A last line that was cut off by a crash is dropped.

    Args:
        path: the file; made, with its folder, when the first window comes.
        made_with: whatever decides what the transcript says, the recording's checksum included, as JSON knows it.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]):
        self.path = path
        self._header = json.dumps({"made_with": made_with}, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        self._entries: dict[tuple[int, int], dict[str, Any]] = {}
        self._good_bytes = 0
        self._read()

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        if not lines or lines[0] != self._header:
            return
        self._good_bytes = len(lines[0])
        for line in lines[1:]:
            entry = _parse(line) if line.endswith(b"\n") else None
            if entry is None:
                return
            self._entries[entry["start"], entry["end"]] = entry
            self._good_bytes += len(line)

    def get(self, start: int, end: int) -> tuple[str, bool] | None:
        """Text of the window between two samples, and whether it was cut off; None where it was not heard yet."""
        entry = self._entries.get((start, end))
        return None if entry is None else (entry["text"], entry["is_cut_off"])

    def add(self, windows: Mapping[tuple[int, int], tuple[str, bool]]) -> None:
        """Writes windows, by their first and last sample; they are on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "r+b" if self._good_bytes else "wb") as file:
            file.seek(self._good_bytes)
            file.truncate()
            if not self._good_bytes:
                file.write(self._header)
            for (start, end), (text, is_cut_off) in windows.items():
                entry = {"start": start, "end": end, "text": text, "is_cut_off": is_cut_off}
                file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                self._entries[start, end] = entry
            file.flush()
            os.fsync(file.fileno())
            self._good_bytes = file.tell()

    def remove(self) -> None:
        """Removes the file, once nothing needs it any more."""
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        kinds = {"start": int, "end": int, "text": str, "is_cut_off": bool}
        return entry if all(isinstance(entry[name], kind) for name, kind in kinds.items()) else None
    except (ValueError, KeyError, TypeError):
        return None


def content_checksum(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["PartialTranscript", "content_checksum"]
