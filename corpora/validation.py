"""
The pass of `audiollm validate` over all rows: recordings measured by several processes, each once, and every fault kept.

Rows are taken in order, a bounded number at a time, and what is found depends on them alone, not on how many work.
"""

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jiwer
import numpy as np
from audiollm.files import sha256_of
from audiollm.interruption import interruptible
from audiollm.processing.audio_io import AudioError, load_waveform
from audiollm.processing.normalisers import NORMALISERS
from tqdm.auto import tqdm

from . import audio_facts
from .audio_facts import AudioFacts, measure
from .clips import CorpusError
from .fault_index import Asked, FaultIndex, Finding, digest
from .faults import NOT_COMPARED, Limits, characters_per_second, recording_faults, transcript_faults, word_error_faults
from .sources import Source
from .transcript_journal import TranscriptJournal
from .validation_rows import CheckedRow, CheckedRows

#: Rows under way for each process.
ROWS_PER_WORKER = 8
#: Transcripts that are heard at once.
TRANSCRIPTS_PER_BATCH = 16
SECONDS_PER_HOUR = 3600
#: What makes transcripts alike before they are compared with each other, in any language.
COMPARING_NORMALISER = "basic"
#: What is counted of all rows, with the edges of its bins; beyond the first and last edge lie as many as are beyond.
HISTOGRAM_EDGES: dict[str, tuple[float, ...]] = {
    "duration_seconds": tuple(np.geomspace(0.01, 100_000.0, 85).round(6).tolist()),
    "characters_per_second": tuple(float(edge) for edge in range(41)),
    "word_error_percent": tuple(float(edge) for edge in range(0, 101, 5)),
}


@dataclass(frozen=True)
class DataFile:
    """
    One file to look at.

    Attributes:
        source: where to read.
        split: what it is part of.
        judged: whether its own faults are wanted, or only whether others leak into it.
    """

    source: Source
    split: str
    judged: bool = True


@dataclass
class FileSummary:
    """
    What there is in one file.

    Attributes:
        rows, recordings, transcripts: how many; recordings count as often as rows have them.
        hours: of all readable recordings.
        not_compared: rows with recordings that could not be compared with other rows', as they could not be read whole,
            hold nothing but silence, or belong to a row that cannot be used.
    """

    rows: int = 0
    recordings: int = 0
    transcripts: int = 0
    hours: float = 0.0
    not_compared: int = 0


@dataclass
class Validation:
    """
    What a pass found; `index` has the faults. Close it after use.

    Attributes:
        files: what was looked at, and `summaries` of each.
        splits: their names, each once.
        histograms: by name and split, counts between `HISTOGRAM_EDGES`, below the first and above the last.
    """

    files: Sequence[DataFile]
    splits: list[str]
    index: FaultIndex
    summaries: list[FileSummary]
    histograms: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def count(self, histogram: str, split: str, value: float) -> None:
        """Adds a value to a histogram."""
        edges = HISTOGRAM_EDGES[histogram]
        counts = self.histograms.setdefault(histogram, {}).setdefault(split, [0] * (len(edges) + 1))
        counts[int(np.searchsorted(edges, value, side="right"))] += 1


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
    Looks at every row of every file.

    Args:
        files: in the order of the report; those of one split are compared as one.
        audio_dir: as in `read_examples`.
        limits: what is allowed.
        ignored: faults that are not wanted.
        response_is_transcript: take every response about one recording for its transcript.
        workers: processes that measure recordings; 1 does it in this one.
        normaliser: a name of `NORMALISERS`, for word error.
        decoder: a `WhisperDecoder` that hears each transcript's recording; None for what tables state.
        journal: where what it hears is kept, and recalled from.
        progress: show a bar on a terminal.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
        CorpusError: a process that measured a recording died.
    """
    splits = list(dict.fromkeys(file.split for file in files))
    numbers, judged = [splits.index(file.split) for file in files], [file.judged for file in files]
    tables = [CheckedRows(file.source, audio_dir, response_is_transcript) for file in files]
    index = FaultIndex([file.source.name for file in files], numbers, judged, ignored)
    found = Validation(files, splits, index, [FileSummary() for _ in files])
    try:
        with _pool(workers) as pool:
            one_pass = _Pass(found, limits or Limits(), pool, normaliser, decoder, journal)
            one_pass.run(tables, workers * ROWS_PER_WORKER, progress)
        index.find_repeats()
        index.find_leaks(splits)
    except BrokenProcessPool as error:
        index.close()
        raise CorpusError(
            "A process that measures audio died, for lack of memory or by a file that crashes its decoder. Run the same "
            "command with --workers 1 to see at which row it stops."
        ) from error
    except BaseException:
        index.close()
        raise
    return found


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if workers == 1:
        yield None
        return
    # Not forked from here: this process may have threads, of torch for one, that a fork would leave locked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([audio_facts.__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Pass:
    """One pass over all rows; see [`validate`]."""

    def __init__(
        self,
        found: Validation,
        limits: Limits,
        pool: Executor | None,
        normaliser: str,
        decoder: Any,
        journal: TranscriptJournal | None,
    ):
        self.found, self.limits, self.pool = found, limits, pool
        self.normalise, self.decoder, self.journal = NORMALISERS[normaliser], decoder, journal
        self.under_way: dict[bytes, Future[AudioFacts]] = {}
        self.unheard: list[tuple[int, CheckedRow, Any]] = []

    def run(self, tables: Sequence[CheckedRows], max_waiting: int, progress: bool) -> None:
        """Looks at all rows, so many at a time."""
        counts = [table.count() for table in tables]
        total = None if None in counts else sum(count or 0 for count in counts)
        waiting: deque[Callable[[], None]] = deque()
        # None: a bar where there is a terminal to show it.
        with tqdm(total=total, desc="Rows", unit="row", disable=None if progress else True) as bar:
            for file, table in enumerate(tables):
                for row in interruptible(table):
                    waiting.append(self._begin(file, row))
                    if len(waiting) >= max_waiting:
                        waiting.popleft()()
                    bar.update()
                    bar.set_postfix_str(f"{sum(each.hours for each in self.found.summaries):.2f} h", refresh=False)
            while waiting:
                waiting.popleft()()
        self._hear()

    def _begin(self, file: int, row: CheckedRow) -> Callable[[], None]:
        """Has a row's recordings measured, and gives what is to be done with the row afterwards."""
        keys = [_recording_key(recording) for recording in row.recordings]
        for key, recording in zip(keys, row.recordings):
            if key in self.under_way or self.found.index.facts_of(key) is not None:
                continue
            if self.pool is None:
                self.found.index.keep_facts(key, measure(recording, self.limits.max_seconds))
            else:
                self.under_way[key] = self.pool.submit(measure, recording, self.limits.max_seconds)
        return lambda: self._finish(file, row, keys)

    def _facts(self, key: bytes) -> AudioFacts:
        future = self.under_way.pop(key, None)
        if future is not None:
            self.found.index.keep_facts(key, future.result())
        facts = self.found.index.facts_of(key)
        assert facts is not None, "a row is finished after its recordings are"
        return facts

    def _finish(self, file: int, row: CheckedRow, keys: list[bytes]) -> None:
        summary, split = self.found.summaries[file], self.found.files[file].split
        facts = [self._facts(key) for key in keys]
        for fault, reason, audio in row.faults:
            self.found.index.add(Finding(file, row.index, row.where, fault, reason, audio))
        if row.index is None:
            self._report_uncompared(file, row)
            return
        summary.rows += 1
        summary.recordings += len(facts)
        for recording, one in {key: pair for key, *pair in zip(keys, row.recordings, facts)}.values():
            for fault, reason in recording_faults(one, self.limits):
                self._add(file, row, fault, reason, recording)
        for one in facts:
            if not one.fault:
                summary.hours += one.seconds / SECONDS_PER_HOUR
                self.found.count("duration_seconds", split, one.seconds)
        if row.is_transcript:
            summary.transcripts += 1
            self._judge_transcript(file, row, facts[0])
        self._remember(file, row, facts)

    def _add(self, file: int, row: CheckedRow, fault: str, reason: str, recording: Any) -> None:
        self.found.index.add(Finding(file, row.index, row.where, fault, reason, _name(recording)))

    # --------------------------------------------------------------------------------------------------- transcripts

    def _judge_transcript(self, file: int, row: CheckedRow, facts: AudioFacts) -> None:
        recording = row.recordings[0]
        for fault, reason in transcript_faults(row.response, facts, self.limits):
            self._add(file, row, fault, reason, recording)
        if not facts.fault:
            split = self.found.files[file].split
            self.found.count("characters_per_second", split, characters_per_second(row.response, facts))
        if self.decoder is not None and not facts.fault and facts.seconds <= self.limits.max_seconds:
            self.unheard.append((file, row, recording))
            if len(self.unheard) == TRANSCRIPTS_PER_BATCH:
                self._hear()
        elif row.wer is not None or row.hypothesis is not None:
            self._judge_words(file, row, row.wer, row.hypothesis or "", recording)

    def _hear(self) -> None:
        """Has the recognizer hear the recordings of a batch of transcripts."""
        clips = []
        for file, row, recording in self.unheard:
            try:
                known = self._recall(recording)
                windows = [] if known is not None else self.decoder.windows(load_waveform(recording))
            except (AudioError, OSError) as error:
                self._add(file, row, "undecodable", str(error), recording)
                continue
            clips.append((file, row, recording, known, windows))
        self.unheard = []
        new = [(recording, windows) for _, _, recording, known, windows in clips if known is None]
        heard = self.decoder.hear([windows for _, windows in new], TRANSCRIPTS_PER_BATCH) if new else []
        if self.journal is not None and new:
            self.journal.add([(_content_checksum(recording), text) for (recording, _), text in zip(new, heard)])
        texts = iter(heard)
        for file, row, recording, known, _ in clips:
            self._judge_words(file, row, None, next(texts) if known is None else known, recording)

    def _recall(self, recording: Any) -> str | None:
        return None if self.journal is None else self.journal.get(_content_checksum(recording))

    def _judge_words(self, file: int, row: CheckedRow, wer: float | None, hypothesis: str, recording: Any) -> None:
        if wer is None:
            reference = self.normalise(row.response)
            if not reference.strip():
                return
            wer = 100 * float(jiwer.wer(reference, self.normalise(hypothesis)))
        self.found.count("word_error_percent", self.found.files[file].split, wer)
        for fault, reason in word_error_faults(wer, hypothesis, self.limits):
            self._add(file, row, fault, reason, recording)

    # -------------------------------------------------------------------------------------------------- between rows

    def _remember(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Keeps what other rows are compared with."""
        index, place = self.found.index, (file, row.index or 0)
        text = " ".join(NORMALISERS[COMPARING_NORMALISER](row.response).split()) if row.is_transcript else row.response
        if row.is_transcript and text:
            index.keep_shared("transcript", digest(text), *place, row.where)
        for one in facts:
            if one.digest:
                index.keep_shared("audio", bytes.fromhex(one.digest), *place, row.where)
        if not row.recordings and not row.faults:
            return
        if not row.is_usable or not all(one.digest for one in facts):
            self.found.summaries[file].not_compared += 1
            self._report_uncompared(file, row, facts)
            return
        names = [_name(each) or f"{file} {row.index}" for each in row.recordings]
        question = ("transcript",) if row.is_transcript else ("question", " ".join(row.question.split()))
        sound = digest(*(bytes.fromhex(one.digest) for one in facts))
        response = digest(" ".join(text.split()))
        index.keep_question(Asked(*place, sound, digest(*question), response, digest(*names), row.where))

    def _report_uncompared(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts] = ()) -> None:
        """Say of a row in a file of --against why nothing can be compared with it; a file's own faults say it for others."""
        if self.found.files[file].judged:
            return
        reasons = [reason for _, reason, _ in row.faults]
        reasons += [one.reason or "is too long, or digital silence" for one in facts if not one.digest]
        self.found.index.add(Finding(file, row.index, row.where, NOT_COMPARED, reasons[0]))


def _recording_key(recording: Any) -> bytes:
    """What tells recordings apart before they are read."""
    return digest("bytes", recording["bytes"]) if isinstance(recording, dict) else digest("path", recording)


def _content_checksum(recording: Any) -> str:
    """The sha256 of a recording's file, in hexadecimal digits."""
    if isinstance(recording, dict) and recording.get("bytes") is not None:
        return hashlib.sha256(recording["bytes"]).hexdigest()
    return sha256_of(recording["path"] if isinstance(recording, dict) else recording)


def _name(recording: Any) -> str | None:
    """What reports call a recording; None for bytes without a name."""
    return recording.get("path") if isinstance(recording, dict) else recording


__all__ = ["HISTOGRAM_EDGES", "DataFile", "FileSummary", "Validation", "validate"]
