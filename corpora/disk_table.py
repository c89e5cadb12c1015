"""A table of keys and texts that lies on disk, so that joining and checking corpora of any size takes constant memory."""

import sqlite3
from types import TracebackType


class DiskTable:
    """
    Keys, each with a text, in a temporary database that goes when it is closed. Keys and texts may be any `str`.

    Use as a context manager, or call [`close`].
    """

    def __init__(self) -> None:
        # An empty name is SQLite's for a private database in a temporary file. Any thread may go on with a generator.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def add(self, key: str, value: str = "") -> bool:
        """Whether `key` was new; where it was not, what it stands for stays as it is."""
        added = self._database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?)", (_bytes(key), _bytes(value)))
        return added.rowcount == 1

    def get(self, key: str) -> str | None:
        """The text of `key`, or None."""
        row = self._database.execute("SELECT value FROM entries WHERE key = ?", (_bytes(key),)).fetchone()
        return None if row is None else row[0].decode("utf-8", "surrogatepass")

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> "DiskTable":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


__all__ = ["DiskTable"]
