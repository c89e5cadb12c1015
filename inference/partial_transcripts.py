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

    Two processes that transcribe the same recording may share the file: each line is appended whole, and whoever is done
    first removes it.

    Args:
        path: the file; made, with its folder, when the first window comes.
        made_with: whatever decides what the transcript says, the recording's checksum included, as JSON knows it.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]):
        self.path = path
        self._header = json.dumps({"made_with": made_with}, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        self._entries: dict[tuple[int, int], dict[str, Any]] = {}
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
        for line in lines[1:]:
            entry = _parse(line)
            if entry is not None and line.endswith(b"\n"):
                self._entries[entry["start"], entry["end"]] = entry

    def get(self, start: int, end: int) -> tuple[str, bool] | None:
        """Text of the window between two samples, and whether it was cut off; None where it was not heard yet."""
        entry = self._entries.get((start, end))
        return None if entry is None else (entry["text"], entry["is_cut_off"])

    def add(self, windows: Mapping[tuple[int, int], tuple[str, bool]]) -> None:
        """Writes windows, by their first and last sample; they are on disk when this returns."""
        for (start, end), (text, is_cut_off) in windows.items():
            self._entries[start, end] = {"start": start, "end": end, "text": text, "is_cut_off": is_cut_off}
        lines = b"".join(json.dumps(self._entries[window], ensure_ascii=False).encode() + b"\n" for window in windows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_begun = self._mend()
        with open(self.path, "ab" if is_begun else "wb") as file:
            file.write(lines if is_begun else self._header + lines)
            file.flush()
            os.fsync(file.fileno())

    def _mend(self) -> bool:
        """Whether the file is of this recording and settings; cuts off a last line that is torn."""
        try:
            held = self.path.read_bytes()
        except FileNotFoundError:
            return False
        whole = held.rfind(b"\n") + 1
        if not held.startswith(self._header):
            return False
        if whole < len(held):
            os.truncate(self.path, whole)
        return True

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
