"""
The pass of `audiollm validate` over all rows: each recording measured once, by several processes, and every fault kept.

Findings depend on the rows alone, not on the number of processes. They lie in a temporary database, which SQLite keeps
on disk beyond a few megabytes, so that memory does not grow with the corpus.
"""

import functools
import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jiwer
import numpy as np
from audiollm.corpora.normalisers import NORMALISERS
from audiollm.files import sha256_of
from audiollm.interruption import interruptible
from audiollm.processing.audio import AudioError, load_waveform
from tqdm.auto import tqdm

from . import audio_facts
from .audio_facts import AudioFacts, measure_all
from .checked_rows import CheckedRow, CheckedRows
from .faults import FAULTS, Limits, count_characters, recording_faults, shortened, transcript_faults
from .parallel import in_order
from .sources import Source
from .transcript_journal import TranscriptJournal

#: Rows under way for each process.
ROWS_PER_WORKER = 8
#: Transcripts that are heard at once.
TRANSCRIPTS_PER_BATCH = 16
SECONDS_PER_HOUR = 3600
#: Makes transcripts in any language alike before they are compared with each other.
COMPARING_NORMALISER = "basic"
DIGEST_BYTES = 16
#: Place of a file as a whole among its rows.
WHOLE_FILE = -1
#: Histograms over all rows: the edges of their bins. Values beyond the first and last edge have bins of their own.
HISTOGRAM_EDGES: dict[str, list[float]] = {
    "duration_seconds": np.geomspace(0.01, 100_000.0, 85).round(6).tolist(),
    "characters_per_second": [float(edge) for edge in range(41)],
    "word_error_percent": [float(edge) for edge in range(0, 101, 5)],
}
TABLES = """
    CREATE TABLE facts (recording BLOB PRIMARY KEY, facts TEXT) WITHOUT ROWID;
    CREATE TABLE faults (file INT, row INT, place INT, fault TEXT, details TEXT);
    CREATE TABLE asked (split INT, sound BLOB, file INT, row INT, spot TEXT, question BLOB, response BLOB, name BLOB);
    CREATE TABLE shared (kind TEXT, digest BLOB, split INT, file INT, row INT, spot TEXT);
    CREATE TABLE leaks (file INT, row INT, split INT, PRIMARY KEY (file, row, split)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class DataFile:
    """One file: where to read it, its split, and whether its own faults are wanted or only leaks into it."""

    source: Source
    split: str
    judged: bool = True


@dataclass
class FileSummary:
    """
    Counts of one file. Recordings count as often as rows have them; hours are those of readable recordings.

    `not_compared` counts rows with recordings that cannot be compared with other rows': those that are not read whole,
    hold nothing but silence, or belong to an unusable row.
    """

    rows: int = 0
    recordings: int = 0
    transcripts: int = 0
    hours: float = 0.0
    not_compared: int = 0


class Finding(NamedTuple):
    """One fault: the file's number, the row from 0 (None for the whole file), its name in errors, and the recording."""

    file: int
    row: int | None
    where: str
    fault: str
    reason: str
    audio: str | None = None


def digest(*parts: str | bytes) -> bytes:
    """Return sixteen bytes that stand for texts or bytes, in this order."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.digest()


class Validation:
    """
    Findings of a pass. Close it after use.

    Args:
        files: In the order of the report.
        ignored: Faults that are not kept.

    Attributes:
        splits: Their names, each once.
        summaries: Counts of each file.
        histograms: By name and split, counts between `HISTOGRAM_EDGES`, below the first and above the last.
    """

    def __init__(self, files: Sequence[DataFile], ignored: Sequence[str] = ()):
        self.files, self.ignored = files, frozenset(ignored)
        self.splits = list(dict.fromkeys(file.split for file in files))
        self.numbers = [self.splits.index(file.split) for file in files]
        self.summaries = [FileSummary() for _ in files]
        self.histograms: dict[str, dict[str, list[int]]] = {}
        self.places = {name: place for place, name in enumerate(FAULTS)}
        self.database = sqlite3.connect("")  # a temporary one on disk
        self.database.executescript(TABLES)

    def close(self) -> None:
        """Remove the database."""
        self.database.close()

    def count(self, histogram: str, file: int, value: float) -> None:
        """Add a value of a file to a histogram."""
        edges = HISTOGRAM_EDGES[histogram]
        by_split = self.histograms.setdefault(histogram, {})
        counts = by_split.setdefault(self.files[file].split, [0] * (len(edges) + 1))
        counts[int(np.searchsorted(edges, value, side="right"))] += 1

    def add(self, finding: Finding) -> None:
        """Keep a fault, if it is wanted. Of files that are only compared with, `not_compared` is."""
        is_wanted = self.files[finding.file].judged or finding.fault == "not_compared"
        if is_wanted and finding.fault not in self.ignored:
            row = WHOLE_FILE if finding.row is None else finding.row
            details = json.dumps([finding.where, finding.reason, finding.audio])
            values = (finding.file, row, self.places[finding.fault], finding.fault, details)
            self.database.execute("INSERT INTO faults VALUES (?, ?, ?, ?, ?)", values)

    def findings(self, fault: str | None = None, count: int = -1) -> Iterator[Finding]:
        """Yield faults by file, row and their place in `FAULTS`; of one kind or all, so many of them or all."""
        query = "SELECT file, row, fault, details FROM faults WHERE ? IN ('', fault) ORDER BY file, row, place, rowid LIMIT ?"
        for file, row, name, details in self.database.execute(query, (fault or "", count)):
            where, reason, audio = json.loads(details)
            yield Finding(file, None if row == WHOLE_FILE else row, where, name, reason, audio)

    def counts(self) -> dict[str, int]:
        """Return how many faults of each kind were found, in the order of `FAULTS`."""
        return dict(
            self.database.execute("SELECT fault, COUNT(*) FROM faults GROUP BY fault ORDER BY place").fetchall()
        )

    def count_rows(self) -> int:
        """Return how many rows have a fault."""
        return self.database.execute("SELECT COUNT(*) FROM (SELECT DISTINCT file, row FROM faults)").fetchone()[0]

    def facts_of(self, recording: bytes) -> AudioFacts | None:
        """Return the measurements of a recording, by its digest."""
        found = self.database.execute("SELECT facts FROM facts WHERE recording = ?", (recording,)).fetchone()
        return AudioFacts(**json.loads(found[0])) if found else None

    def keep_facts(self, recording: bytes, facts: AudioFacts) -> None:
        """Keep the measurements of a recording."""
        self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (recording, json.dumps(asdict(facts))))

    # -------------------------------------------------------------------------------------------------- between rows

    def keep_asked(
        self, file: int, row: CheckedRow, sound: bytes, question: bytes, response: bytes, name: bytes
    ) -> None:
        """Keep what is asked about which sound, to compare it with other rows of the split."""
        values = (self.numbers[file], sound, file, row.index, row.where, question, response, name)
        self.database.execute("INSERT INTO asked VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def keep_shared(self, kind: str, key: bytes, file: int, row: CheckedRow) -> None:
        """Keep what no other split should have: a sound or a transcript."""
        values = (kind, key, self.numbers[file], file, row.index, row.where)
        self.database.execute("INSERT INTO shared VALUES (?, ?, ?, ?, ?, ?)", values)

    def find_repeats(self) -> None:
        """Add the faults of rows of one split with the same sound."""
        query = (
            "SELECT split, sound, file, row, spot, question, response, name FROM asked WHERE (split, sound) IN "
            "(SELECT split, sound FROM asked GROUP BY split, sound HAVING COUNT(*) > 1) ORDER BY split, sound, file, row"
        )
        for _, group in itertools.groupby(self.database.execute(query), key=lambda found: found[:2]):
            by_question: dict[bytes, Any] = {}
            by_name: dict[bytes, Any] = {}
            first_of_all = None
            for _, _, file, row, spot, question, response, name in group:
                this = (f"{self.files[file].source.name} {spot}", response)
                first_of_all = first_of_all or this
                first, namesake = by_question.setdefault(question, this), by_name.setdefault(name, this)
                if first is not this and first[1] != response:
                    fault, reason = "conflicting_responses", f"{first[0]} answers otherwise"
                elif first is not this:
                    fault, reason = "duplicate_row", f"the same as {first[0]}"
                elif namesake is this and this is not first_of_all:
                    fault, reason = "duplicate_audio", f"the same sound as in {first_of_all[0]}, under another name"
                else:
                    continue
                self.add(Finding(file, row, spot, fault, reason))

    def find_leaks(self) -> None:
        """Add the faults of rows with a sound, or else a transcript, that a later split has too."""
        query = (
            "SELECT DISTINCT digest, split, file, row, spot FROM shared WHERE kind = ? AND digest IN (SELECT digest FROM "
            "shared WHERE kind = ? GROUP BY digest HAVING COUNT(DISTINCT split) > 1) ORDER BY digest, split, file, row"
        )
        for kind, fault in (("sound", "audio_leak"), ("transcript", "transcript_leak")):
            found = self.database.execute(query, (kind, kind)).fetchall()
            for _, group in itertools.groupby(found, key=lambda each: each[0]):
                rows = [each[1:] for each in group]
                firsts = {split: f"{self.files[file].source.name} {spot}" for split, file, _, spot in reversed(rows)}
                for split, file, row, spot in rows:
                    for other in sorted(each for each in firsts if each > split):
                        # One fault for a row and split, however many recordings they share.
                        known = "INSERT OR IGNORE INTO leaks VALUES (?, ?, ?)"
                        if self.database.execute(known, (file, row, other)).rowcount:
                            reason = f"the same {kind} is {firsts[other]} (split {self.splits[other]!r})"
                            self.add(Finding(file, row, spot, fault, reason))


def validate(
    files: Sequence[DataFile],
    audio_dir: str | None = None,
    limits: Limits | None = None,
    ignored: Sequence[str] = (),
    response_is_transcript: bool = False,
    workers: int = 1,
    normaliser: str = "english",
    decoder: Any = None,
    journal: TranscriptJournal | None = None,
    progress: bool = True,
) -> Validation:
    """
    Look at every row of every file.

    Args:
        files: In the order of the report; those of one split are compared as one.
        audio_dir: As in `read_examples`.
        limits: What recordings and transcripts may be like.
        ignored: Faults that are not wanted.
        response_is_transcript: Take every response about one recording for its transcript.
        workers: Processes that measure recordings; 1 works in this one.
        normaliser: A name of `NORMALISERS`, for word error.
        decoder: A `WhisperDecoder` that hears each transcript's recording; None for what tables say.
        journal: Where its transcripts are kept.
        progress: Show a bar on a terminal.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
        CorpusError: a process that measured a recording died.
    """
    limits = limits or Limits()
    tables = [CheckedRows(file.source, audio_dir, response_is_transcript) for file in files]
    found = Validation(files, ignored)
    try:
        one_pass = _Pass(found, limits, NORMALISERS[normaliser], decoder, journal)
        measuring = functools.partial(measure_all, max_seconds=limits.max_seconds)
        work = in_order(measuring, one_pass.work(tables), workers, ROWS_PER_WORKER, audio_facts.__name__)
        with tqdm(work, desc="Rows", unit="row", disable=None if progress else True) as bar:
            for (file, row, keys, new), measured in bar:
                one_pass.finish(file, row, keys, dict(zip(new, measured)))
                bar.set_postfix_str(f"{sum(each.hours for each in found.summaries):.2f} h", refresh=False)
        one_pass.hear()
        found.find_repeats()
        found.find_leaks()
    except BaseException:
        found.close()
        raise
    return found


#: A row of a file, digests of its recordings, and those of the ones to measure.
_Place = tuple[int, CheckedRow, list[bytes], list[bytes]]


class _Pass:
    """One pass over all rows; see [`validate`]."""

    def __init__(self, found: Validation, limits: Limits, normalise: Any, decoder: Any, journal: Any):
        self.found, self.limits, self.normalise = found, limits, normalise
        self.decoder, self.journal = decoder, journal
        self.under_way: set[bytes] = set()
        self.unheard: list[tuple[int, CheckedRow]] = []

    def work(self, tables: Sequence[CheckedRows]) -> Iterator[tuple[_Place, list[Any]]]:
        """Yield each row with those of its recordings that nobody has measured yet."""
        for file, table in enumerate(tables):
            for row in interruptible(table):
                keys = [
                    digest("bytes", each["bytes"]) if isinstance(each, dict) else digest("path", each)
                    for each in row.recordings
                ]
                new = {key: each for key, each in zip(keys, row.recordings) if not self._is_known(key)}
                self.under_way |= new.keys()
                yield (file, row, keys, list(new)), list(new.values())

    def _is_known(self, key: bytes) -> bool:
        return key in self.under_way or self.found.facts_of(key) is not None

    def finish(self, file: int, row: CheckedRow, keys: list[bytes], measured: dict[bytes, AudioFacts]) -> None:
        """Judge a row whose recordings have been measured; `measured` has the new ones."""
        found, summary = self.found, self.found.summaries[file]
        for key, one in measured.items():
            found.keep_facts(key, one)
        self.under_way -= measured.keys()
        facts = [found.facts_of(key) or AudioFacts("undecodable") for key in keys]
        for fault, reason, audio in row.faults:
            found.add(Finding(file, row.index, row.where, fault, reason, audio))
        if row.index is None:
            self._report_uncompared(file, row, facts)
            return
        summary.rows += 1
        summary.recordings += len(facts)
        for recording, one in {key: pair for key, *pair in zip(keys, row.recordings, facts)}.values():
            self._add_all(file, row, recording_faults(one, self.limits), recording)
        for one in facts:
            if not one.fault:
                summary.hours += one.seconds / SECONDS_PER_HOUR
                found.count("duration_seconds", file, one.seconds)
        if row.is_transcript:
            summary.transcripts += 1
            self._judge_transcript(file, row, facts[0])
        self._remember(file, row, facts)

    def _add_all(self, file: int, row: CheckedRow, faults: Iterator[tuple[str, str]], recording: Any) -> None:
        for fault, reason in faults:
            self.found.add(Finding(file, row.index, row.where, fault, reason, _name(recording)))

    def _judge_transcript(self, file: int, row: CheckedRow, facts: AudioFacts) -> None:
        self._add_all(file, row, transcript_faults(row.response, facts, self.limits), row.recordings[0])
        if not facts.fault:
            self.found.count("characters_per_second", file, count_characters(row.response) / facts.seconds)
        if self.decoder is not None and not facts.fault and facts.seconds <= self.limits.max_seconds:
            self.unheard.append((file, row))
            if len(self.unheard) == TRANSCRIPTS_PER_BATCH:
                self.hear()
        elif row.wer is not None or row.hypothesis is not None:
            self._judge_words(file, row, row.wer, row.hypothesis or "")

    def hear(self) -> None:
        """Have the recogniser hear the recordings of a batch of transcripts."""
        batch, self.unheard = self.unheard, []
        new, known = [], {}
        for file, row in batch:
            recording = row.recordings[0]
            try:
                text = None if self.journal is None else self.journal.get(_content_checksum(recording))
                if text is None:
                    new.append((file, row, self.decoder.windows(load_waveform(recording))))
                else:
                    known[id(row)] = text
            except (AudioError, OSError) as error:
                self._add_all(file, row, iter([("undecodable", str(error))]), recording)
        texts = self.decoder.hear([windows for _, _, windows in new], TRANSCRIPTS_PER_BATCH) if new else []
        if self.journal is not None and new:
            self.journal.add([(_content_checksum(row.recordings[0]), text) for (_, row, _), text in zip(new, texts)])
        known |= {id(row): text for (_, row, _), text in zip(new, texts)}
        for file, row in batch:
            if id(row) in known:
                self._judge_words(file, row, None, known[id(row)])

    def _judge_words(self, file: int, row: CheckedRow, wer: float | None, hypothesis: str) -> None:
        if wer is None:
            reference = self.normalise(row.response)
            if not reference.strip():
                return
            wer = 100 * float(jiwer.wer(reference, self.normalise(hypothesis)))
        self.found.count("word_error_percent", file, wer)
        if self.limits.max_wer is not None and wer > self.limits.max_wer:
            heard = f"; heard was {shortened(hypothesis)}" if hypothesis else ""
            reason = f"its word error is {wer:.1f} %; expected at most {self.limits.max_wer:g} %{heard}"
            self._add_all(file, row, iter([("wrong_transcript", reason)]), row.recordings[0])

    def _remember(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Keep what other rows are compared with."""
        text = " ".join(
            (NORMALISERS[COMPARING_NORMALISER](row.response) if row.is_transcript else row.response).split()
        )
        if row.is_transcript and text:
            self.found.keep_shared("transcript", digest(text), file, row)
        for one in facts:
            if one.digest:
                self.found.keep_shared("sound", bytes.fromhex(one.digest), file, row)
        if not row.recordings and not row.faults:
            return
        if not row.is_usable or not all(one.digest for one in facts):
            self.found.summaries[file].not_compared += 1
            self._report_uncompared(file, row, facts)
            return
        names = [_name(each) or f"{file} {row.index}" for each in row.recordings]
        question = ("transcript",) if row.is_transcript else ("question", " ".join(row.question.split()))
        sound = digest(*(bytes.fromhex(one.digest) for one in facts))
        self.found.keep_asked(file, row, sound, digest(*question), digest(text), digest(*names))

    def _report_uncompared(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Report a row of --against that nothing can be compared with; other files' own faults say it."""
        if not self.found.files[file].judged:
            reasons = [reason for _, reason, _ in row.faults]
            reasons += [one.reason or "is too long, or digital silence" for one in facts if not one.digest]
            self.found.add(Finding(file, row.index, row.where, "not_compared", reasons[0]))


def _content_checksum(recording: Any) -> str:
    """Return the sha256 of a recording's file."""
    if isinstance(recording, dict):
        return sha256_of(recording["bytes"] if recording.get("bytes") is not None else recording["path"])
    return sha256_of(recording)


def _name(recording: Any) -> str | None:
    """Return the name of a recording in reports; None for bytes without a name."""
    return recording.get("path") if isinstance(recording, dict) else recording
