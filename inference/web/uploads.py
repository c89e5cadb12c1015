"""Files that visitors of the page have sent: each goes when nobody has it at hand any more."""

import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Uploads:
    """Counts who has which file at hand: the same one, sent by two visitors, is one file on the disk."""

    def __init__(self):
        self._holders: Counter[str] = Counter()
        self._kept: set[str] = set()
        self._lock = threading.Lock()

    def keep(self, paths: Iterable[str]) -> None:
        """Files that are the page's own and stay."""
        self._kept.update(paths)

    def hold(self, path: str) -> None:
        """One more visitor has this file at hand."""
        with self._lock:
            self._holders[path] += 1

    def release(self, path: str) -> None:
        """A visitor is done with a file; the last one's is removed."""
        with self._lock:
            self._holders[path] -= 1
            if self._holders[path] > 0:
                return
            del self._holders[path]
            if path in self._kept:
                return
            with suppress(OSError):
                Path(path).unlink()
                Path(path).parent.rmdir()


__all__ = ["Uploads"]
