"""
What `audiollm validate` remembers of the rows it has seen: faults, measured recordings, digests of sounds and texts.

It lies in a temporary database that SQLite keeps on disk beyond a few megabytes and removes by itself, so that memory
does not grow with the corpus. From it come the faults between rows, in an order that depends on the rows alone.
"""

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

from .audio_facts import AudioFacts
from .faults import FAULTS, NOT_COMPARED

DIGEST_BYTES = 16
#: What may be in one split only, and what reasons call it.
LEAKS = {"audio": "sound", "transcript": "transcript"}
#: Place of a file as a whole among its rows.
WHOLE_FILE = -1
TABLES = """
    CREATE TABLE facts (recording BLOB PRIMARY KEY, facts TEXT) WITHOUT ROWID;
    CREATE TABLE faults (file INT, row INT, place INT, fault TEXT, details TEXT);
    CREATE TABLE questions (split INT, sound BLOB, file INT, row INT, question BLOB, response BLOB, name BLOB, spot TEXT);
    CREATE TABLE shared (kind TEXT, digest BLOB, split INT, file INT, row INT, spot TEXT);
    CREATE TABLE leaks (file INT, row INT, split INT, PRIMARY KEY (file, row, split)) WITHOUT ROWID;
"""


class Finding(NamedTuple):
    """
    One fault of one row.

    Attributes:
        file: number of the file.
        row: place in the file, from 0; None for the file as a whole.
        where: what the file's errors call it.
        fault: a name of `FAULTS`.
        reason: in words.
        audio: the recording that it is about, where it is about one.
    """

    file: int
    row: int | None
    where: str
    fault: str
    reason: str
    audio: str | None = None


@dataclass(frozen=True)
class Asked:
    """
    A row whose recordings could all be read: digests of its sound, of what is asked and answered, and of its name; and
    what the file's errors call the row.
    """

    file: int
    row: int
    sound: bytes
    question: bytes
    response: bytes
    name: bytes
    where: str


def digest(*parts: str | bytes) -> bytes:
    """Sixteen bytes that stand for texts or bytes, in this order."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.digest()


class FaultIndex:
    """
    Everything that is remembered.

    Args:
        names: of the files, as findings call them.
        splits: each file's split, by number; rows of a lower one are told of leaks into a higher one.
        judged: of each file, whether its rows' faults are wanted; of others only what cannot be compared is kept.
        ignored: faults that are not kept.
    """

    def __init__(
        self, names: Sequence[str], splits: Sequence[int], judged: Sequence[bool], ignored: Sequence[str] = ()
    ):
        self.names, self.splits, self.judged, self.ignored = names, splits, judged, frozenset(ignored)
        self.places = {name: place for place, name in enumerate(FAULTS)}
        self.database = sqlite3.connect("")  # a temporary one on disk
        self.database.executescript(TABLES)

    def close(self) -> None:
        """Removes the database."""
        self.database.close()

    # ---------------------------------------------------------------------------------------------------- recordings

    def facts_of(self, recording: bytes) -> AudioFacts | None:
        """What was measured of a recording, by its digest."""
        found = self.database.execute("SELECT facts FROM facts WHERE recording = ?", (recording,)).fetchone()
        return AudioFacts(**json.loads(found[0])) if found else None

    def keep_facts(self, recording: bytes, facts: AudioFacts) -> None:
        """Remembers what was measured."""
        self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (recording, json.dumps(asdict(facts))))

    def count_recordings(self) -> int:
        """How many recordings were measured, each once."""
        return self.database.execute("SELECT COUNT(*) FROM facts").fetchone()[0]

    # -------------------------------------------------------------------------------------------------------- faults

    def add(self, finding: Finding) -> None:
        """Keeps a fault, if it is one that is wanted."""
        is_wanted = self.judged[finding.file] or finding.fault == NOT_COMPARED
        if not is_wanted or finding.fault in self.ignored:
            return
        row = WHOLE_FILE if finding.row is None else finding.row
        details = json.dumps([finding.where, finding.reason, finding.audio])
        place = self.places[finding.fault]
        self.database.execute(
            "INSERT INTO faults VALUES (?, ?, ?, ?, ?)", (finding.file, row, place, finding.fault, details)
        )

    def findings(self) -> Iterator[Finding]:
        """All faults, by file, row and their place in `FAULTS`."""
        query = "SELECT file, row, fault, details FROM faults ORDER BY file, row, place, rowid"
        yield from (_finding(found) for found in self.database.execute(query))

    def first(self, fault: str, count: int) -> list[Finding]:
        """The first of one kind."""
        query = "SELECT file, row, fault, details FROM faults WHERE fault = ? ORDER BY file, row, rowid LIMIT ?"
        return [_finding(found) for found in self.database.execute(query, (fault, count))]

    def counts(self) -> dict[str, int]:
        """How many there are of each kind that was found, in the order of `FAULTS`."""
        query = "SELECT fault, COUNT(*) FROM faults GROUP BY fault ORDER BY place"
        return dict(self.database.execute(query).fetchall())

    def count_rows(self, faults: Sequence[str]) -> int:
        """How many rows have one of these faults."""
        marks = ", ".join("?" * len(faults))
        query = f"SELECT COUNT(*) FROM (SELECT DISTINCT file, row FROM faults WHERE fault IN ({marks}))"
        return self.database.execute(query, tuple(faults)).fetchone()[0]

    # -------------------------------------------------------------------------------------------------- between rows

    def keep_question(self, asked: Asked) -> None:
        """Remembers what is asked about which sound."""
        self.database.execute(
            "INSERT INTO questions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.splits[asked.file], asked.sound, asked.file, asked.row, *astuple(asked)[3:]),
        )

    def keep_shared(self, kind: str, key: bytes, file: int, row: int, where: str) -> None:
        """Remembers something that no other split should have: `kind` is audio or transcript."""
        values = (kind, key, self.splits[file], file, row, where)
        self.database.execute("INSERT INTO shared VALUES (?, ?, ?, ?, ?, ?)", values)

    def find_repeats(self) -> None:
        """Adds the faults of rows of one split that have the same sound."""
        query = (
            "SELECT split, sound, file, row, question, response, name, spot FROM questions "
            "WHERE (split, sound) IN (SELECT split, sound FROM questions GROUP BY split, sound HAVING COUNT(*) > 1) "
            "ORDER BY split, sound, file, row"
        )
        for _, group in itertools.groupby(self.database.execute(query), key=lambda found: found[:2]):
            self._judge_repeats([Asked(file, row, b"", *rest) for _, _, file, row, *rest in group])

    def _judge_repeats(self, rows: list[Asked]) -> None:
        answered: dict[bytes, Asked] = {}
        named: dict[bytes, Asked] = {}
        for row in rows:
            first = answered.setdefault(row.question, row)
            namesake = named.setdefault(row.name, row)
            if first is not row and first.response != row.response:
                fault, reason = "conflicting_responses", f"{self._named(first)} answers otherwise"
            elif first is not row:
                fault, reason = "duplicate_row", f"the same as {self._named(first)}"
            elif namesake is row and row is not rows[0]:
                fault, reason = "duplicate_audio", f"the same sound as in {self._named(rows[0])}, under another name"
            else:
                continue
            self.add(Finding(row.file, row.row, row.where, fault, reason))

    def find_leaks(self, split_names: Sequence[str]) -> None:
        """Adds the faults of rows that have a sound, or else a transcript, which another split has as well."""
        query = (
            "SELECT DISTINCT digest, split, file, row, spot FROM shared WHERE kind = ? AND digest IN (SELECT digest "
            "FROM shared WHERE kind = ? GROUP BY digest HAVING COUNT(DISTINCT split) > 1) "
            "ORDER BY digest, split, file, row"
        )
        for kind in ("audio", "transcript"):
            found = self.database.execute(query, (kind, kind))
            for _, group in itertools.groupby(found, key=lambda each: each[0]):
                rows = [each[1:] for each in group]
                firsts = {split: (file, where) for split, file, _, where in reversed(rows)}
                for split, file, row, where in rows:
                    for other in sorted(each for each in firsts if each > split):
                        there, spot = firsts[other]
                        reason = f"the same {LEAKS[kind]} is {self.names[there]} {spot} (split {split_names[other]!r})"
                        self._add_leak(Finding(file, row, where, f"{kind}_leak", reason), other)

    def _add_leak(self, finding: Finding, other: int) -> None:
        """One fault for a row and split, however many recordings they share."""
        values = (finding.file, finding.row, other)
        if self.database.execute("INSERT OR IGNORE INTO leaks VALUES (?, ?, ?)", values).rowcount:
            self.add(finding)

    def _named(self, asked: Asked) -> str:
        return f"{self.names[asked.file]} {asked.where}"


def _finding(found: tuple[Any, ...]) -> Finding:
    file, row, fault, details = found
    where, reason, audio = json.loads(details)
    return Finding(file, None if row == WHOLE_FILE else row, where, fault, reason, audio)


__all__ = ["Asked", "FaultIndex", "Finding", "digest"]
