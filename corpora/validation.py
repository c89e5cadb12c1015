"""
The pass of `audiollm validate` over all rows: each recording measured once, by several processes, and every fault kept.

Findings depend on the rows alone, not on the number of processes. Of each row, memory holds a few hundred bytes: digests to
compare it with others, and the measurements of its recordings.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from audiollm.command_line.interruption import interruptible
from audiollm.corpora.normalisers import NORMALISERS, clip_word_error, has_words
from audiollm.processing.audio import AudioError
from tqdm.auto import tqdm

from . import audio_facts
from .audio_facts import AudioFacts, measure_all
from .checked_rows import CheckedRow, CheckedRows
from .faults import FAULTS, Limits, recording_faults, shortened, transcript_faults
from .parallel import in_order
from .sources import Source

#: Rows under way for each process.
ROWS_PER_WORKER = 8
#: Transcripts that are heard at once.
TRANSCRIPTS_PER_BATCH = 16
SECONDS_PER_HOUR = 3600
#: Makes transcripts in any language alike before they are compared with each other.
COMPARING_NORMALISER = "basic"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class DataFile:
    """One file: where to read it, its split, and whether its own faults are wanted or only leaks into it."""

    source: Source
    split: str
    judged: bool = True


@dataclass
class FileSummary:
    """Counts of one file. Recordings count as often as rows have them."""

    rows: int = 0
    recordings: int = 0
    transcripts: int = 0
    hours: float = 0.0  # of readable recordings
    not_compared: int = 0  # rows whose recordings are not read whole, are silent, or belong to an unusable row


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


class Remembered(NamedTuple):
    """A row that others are compared with: its split's and its file's number, its place, and digests of what it says."""

    split: int
    file: int
    row: int | None
    where: str
    question: bytes
    response: bytes
    names: bytes


class Validation:
    """
    Findings of a pass over files, but for those of `ignored` kinds.

    Attributes:
        splits: Their names, each once.
        summaries: Counts of each file.
    """

    def __init__(self, files: Sequence[DataFile], ignored: Sequence[str] = ()):
        self.files, self.ignored = files, frozenset(ignored)
        self.splits = list(dict.fromkeys(file.split for file in files))
        self.summaries = [FileSummary() for _ in files]
        self._findings: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Keep a fault, if it is wanted. Of files that are only compared with, `not_compared` is."""
        is_wanted = self.files[finding.file].judged or finding.fault == "not_compared"
        if is_wanted and finding.fault not in self.ignored:
            self._findings.append(finding)

    def findings(self) -> list[Finding]:
        """Return the faults by file, row and their place in `FAULTS`."""
        places = {name: place for place, name in enumerate(FAULTS)}
        return sorted(
            self._findings, key=lambda one: (one.file, -1 if one.row is None else one.row, places[one.fault])
        )

    def counts(self) -> dict[str, int]:
        """Return how many faults of each kind were found, in the order of `FAULTS`."""
        found = Counter(one.fault for one in self._findings)
        return {name: found[name] for name in FAULTS if name in found}


def validate(
    files: Sequence[DataFile],
    audio_dir: str | None = None,
    limits: Limits | None = None,
    ignored: Sequence[str] = (),
    response_is_transcript: bool = False,
    workers: int = 1,
    normaliser: str = "english",
    transcriber: Any = None,
) -> Validation:
    """
    Look at every row of every file.

    Args:
        files: In the order of the report; those of one split are compared as one.
        audio_dir: As in `read_examples`.
        limits, ignored: Of recordings and transcripts; faults that are not wanted.
        response_is_transcript: Take every response about one recording for its transcript.
        workers: Processes that measure recordings; 1 works in this one.
        normaliser: A name of `NORMALISERS`, for word error.
        transcriber: A `WhisperTranscriber` that hears each transcript's recording; None for what tables say.

    Raises:
        FileNotFoundError: `audio_dir` is not a folder.
        CorpusError: a process that measured a recording died.
    """
    limits = limits or Limits()
    tables = [CheckedRows(file.source, audio_dir, response_is_transcript) for file in files]
    found = Validation(files, ignored)
    one_pass = _Pass(found, limits, normaliser, transcriber)
    measuring = functools.partial(measure_all, max_seconds=limits.max_seconds)
    work = in_order(measuring, one_pass.work(tables), workers, ROWS_PER_WORKER, audio_facts.__name__)
    with tqdm(work, desc="Rows", unit="row", disable=None) as bar:
        for (file, row, keys, new), measured in bar:
            one_pass.finish(file, row, keys, dict(zip(new, measured)))
            bar.set_postfix_str(f"{sum(each.hours for each in found.summaries):.2f} h", refresh=False)
    if transcriber is not None:
        one_pass.hear()
    one_pass.find_repeats()
    one_pass.find_leaks()
    return found


#: A row of a file, keys of its recordings, and those of the ones to measure.
_Place = tuple[int, CheckedRow, list[Any], list[Any]]


class _Pass:
    """One pass over all rows; see [`validate`]."""

    def __init__(self, found: Validation, limits: Limits, normaliser: str, transcriber: Any):
        self.found, self.limits, self.normaliser, self.transcriber = found, limits, normaliser, transcriber
        self.facts: dict[Any, AudioFacts | None] = {}  # None while they are being measured
        self.unheard: list[tuple[int, CheckedRow]] = []
        #: Rows by split and sound, and by kind and digest of what no other split should have.
        self.asked: dict[tuple[int, bytes], list[Remembered]] = {}
        self.shared: dict[tuple[str, bytes], dict[Remembered, None]] = {}

    def work(self, tables: Sequence[CheckedRows]) -> Iterator[tuple[_Place, list[Any]]]:
        """Yield each row with those of its recordings that nobody has measured yet."""
        for file, table in enumerate(tables):
            for row in interruptible(table):
                keys = [digest(each["bytes"]) if isinstance(each, dict) else each for each in row.recordings]
                new = {key: each for key, each in zip(keys, row.recordings) if key not in self.facts}
                self.facts |= dict.fromkeys(new)
                yield (file, row, keys, list(new)), list(new.values())

    def finish(self, file: int, row: CheckedRow, keys: list[Any], measured: dict[Any, AudioFacts]) -> None:
        """Judge a row whose recordings have been measured; `measured` has the new ones."""
        found, summary = self.found, self.found.summaries[file]
        self.facts |= measured
        facts = [self.facts[key] or AudioFacts("undecodable") for key in keys]
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
        if row.is_transcript:
            summary.transcripts += 1
            self._judge_transcript(file, row, facts[0])
        self._remember(file, row, facts)

    def _add_all(self, file: int, row: CheckedRow, faults: Iterable[tuple[str, str]], recording: Any) -> None:
        for fault, reason in faults:
            self.found.add(Finding(file, row.index, row.where, fault, reason, _name(recording)))

    def _judge_transcript(self, file: int, row: CheckedRow, facts: AudioFacts) -> None:
        self._add_all(file, row, transcript_faults(row.response, facts, self.limits), row.recordings[0])
        if self.transcriber is not None and not facts.fault and facts.seconds <= self.limits.max_seconds:
            self.unheard.append((file, row))
            if len(self.unheard) == TRANSCRIPTS_PER_BATCH:
                self.hear()
        elif row.wer is not None or row.hypothesis is not None:
            self._judge_words(file, row, row.wer, row.hypothesis or "")

    def hear(self) -> None:
        """Have the recogniser hear the recordings of a batch of transcripts."""
        batch, self.unheard = self.unheard, []
        try:
            heard = list(self.transcriber.transcribe([row.recordings[0] for _, row in batch]))
        except (AudioError, OSError) as error:
            if len(batch) == 1:
                ((file, row),) = batch
                self._add_all(file, row, [("undecodable", str(error))], row.recordings[0])
                return
            for one in batch:  # to find out which it is
                self.unheard = [one]
                self.hear()
            return
        for (file, row), text in zip(batch, heard):
            self._judge_words(file, row, None, text)

    def _judge_words(self, file: int, row: CheckedRow, wer: float | None, hypothesis: str) -> None:
        if wer is None:
            if not has_words(row.response, self.normaliser):
                return
            wer = clip_word_error(row.response, hypothesis, self.normaliser)
        if self.limits.max_wer is not None and wer > self.limits.max_wer:
            heard = f"; heard was {shortened(hypothesis)}" if hypothesis else ""
            reason = f"its word error is {wer:.1f} %; expected at most {self.limits.max_wer:g} %{heard}"
            self._add_all(file, row, [("wrong_transcript", reason)], row.recordings[0])

    # -------------------------------------------------------------------------------------------------- between rows

    def _remember(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Keep what other rows are compared with."""
        said = NORMALISERS[COMPARING_NORMALISER](row.response) if row.is_transcript else row.response
        text = " ".join(said.split())
        names = [_name(each) or f"{file} {row.index}" for each in row.recordings]
        question = ("transcript",) if row.is_transcript else ("question", " ".join(row.question.split()))
        split = self.found.splits.index(self.found.files[file].split)
        this = Remembered(split, file, row.index, row.where, digest(*question), digest(text), digest(*names))
        sounds = [bytes.fromhex(one.digest) for one in facts if one.digest]
        if row.is_transcript and text:
            self.shared.setdefault(("transcript", this.response), {})[this] = None
        for sound in sounds:
            self.shared.setdefault(("sound", sound), {})[this] = None
        if row.is_usable and row.recordings and len(sounds) == len(facts):
            self.asked.setdefault((split, digest(*sounds)), []).append(this)
        elif row.recordings or row.faults:
            self.found.summaries[file].not_compared += 1
            self._report_uncompared(file, row, facts)

    def _report_uncompared(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Report a row of --against that nothing can be compared with; other files' own faults say it."""
        if not self.found.files[file].judged:
            reasons = [reason for _, reason, _ in row.faults]
            reasons += [one.reason or "is too long, or digital silence" for one in facts if not one.digest]
            self.found.add(Finding(file, row.index, row.where, "not_compared", reasons[0]))

    def _place(self, row: Remembered) -> str:
        return f"{self.found.files[row.file].source.name} {row.where}"

    def find_repeats(self) -> None:
        """Add the faults of rows of one split with the same sound."""
        for rows in self.asked.values():
            by_question: dict[bytes, Remembered] = {}
            by_name: dict[bytes, Remembered] = {}
            for this in rows:
                first, namesake = by_question.setdefault(this.question, this), by_name.setdefault(this.names, this)
                if first is not this and first.response != this.response:
                    fault, reason = "conflicting_responses", f"{self._place(first)} answers otherwise"
                elif first is not this:
                    fault, reason = "duplicate_row", f"the same as {self._place(first)}"
                elif namesake is this and this is not rows[0]:
                    reason = f"the same sound as in {self._place(rows[0])}, under another name"
                    fault = "duplicate_audio"
                else:
                    continue
                self.found.add(Finding(this.file, this.row, this.where, fault, reason))

    def find_leaks(self) -> None:
        """Add the faults of rows with a sound, or else a transcript, that a later split has too."""
        known: set[tuple[int, int | None, int]] = set()  # one fault for a row and split, however much they share
        for kind, fault in (("sound", "audio_leak"), ("transcript", "transcript_leak")):
            for (this_kind, _), rows in self.shared.items():
                firsts = {row.split: row for row in reversed(rows)}
                for row in rows if this_kind == kind and len(firsts) > 1 else ():
                    for other in sorted(split for split in firsts if split > row.split):
                        if (row.file, row.row, other) not in known:
                            known.add((row.file, row.row, other))
                            there = f"{self._place(firsts[other])} (split {self.found.splits[other]!r})"
                            reason = f"the same {kind} is {there}"
                            self.found.add(Finding(row.file, row.row, row.where, fault, reason))


def _name(recording: Any) -> str | None:
    """Return the name of a recording in reports; None for bytes without a name."""
    return recording.get("path") if isinstance(recording, dict) else recording
