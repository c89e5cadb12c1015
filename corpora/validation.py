"""
The pass of `audiollm validate` over all rows: each recording measured once, by several processes, and every fault kept.

Findings depend on the rows alone, not on the number of processes. Of each row, memory holds a few hundred bytes: digests to
compare it with others, and the measurements of its recordings.
"""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from audiollm.command_line.interruption import interruptible
from audiollm.command_line.option_parser import option
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from tqdm.auto import tqdm

from .audio_facts import AudioFacts, measure_all
from .examples import json_rows
from .normalisers import NORMALISERS
from .parallel import in_order
from .rows import ASSISTANT, AUDIO_COLUMN, MESSAGES, TABLE_FIELDS, Reason, RowError, RowReader
from .sources import Source, load_table
from .tasks import known_tasks
from .values import shown

ERROR, WARNING = "error", "warning"
#: A recording of this length should have more than a word or two of transcript.
LONG_SECONDS = 5.0
#: Level shown for digital silence, in dB relative to full scale.
SILENCE_DBFS = -200.0
#: Rows under way for each process.
ROWS_PER_WORKER = 8
SECONDS_PER_HOUR = 3600
#: Makes transcripts in any language alike before they are compared with each other.
COMPARING_NORMALISER = "basic"
DIGEST_BYTES = 16


# ------------------------------------------------------------------------------------------------------- kinds of fault


class Fault(NamedTuple):
    """Severity and meaning of one kind of fault."""

    severity: str
    meaning: str


#: All kinds, in the order of reports. Training refuses an error or learns wrongly from it; it copes with a warning.
FAULTS: dict[str, Fault] = {
    "unreadable_data": Fault(ERROR, "the file as a whole, or a line of it, cannot be read"),
    "malformed_row": Fault(ERROR, "fields are missing, unknown or of a wrong kind"),
    "audio_count": Fault(ERROR, f"the number of {AUDIO_PLACEHOLDER} is not the number of recordings"),
    "empty_text": Fault(ERROR, "prompt or response is empty"),
    "missing_file": Fault(ERROR, "the audio file does not exist"),
    "not_a_file": Fault(ERROR, "the audio path is a folder, pipe or device"),
    "outside_audio_dir": Fault(ERROR, "the path leads out of --audio_dir"),
    "undecodable": Fault(ERROR, "empty, corrupt, or not audio"),
    "cut_off": Fault(ERROR, "the file ends before its own header says"),
    "not_finite": Fault(ERROR, "samples are NaN or infinite"),
    "too_short": Fault(ERROR, "shorter than --min_seconds"),
    "too_long": Fault(ERROR, "longer than --max_seconds"),
    "silent": Fault(ERROR, "quieter than --min_level_dbfs"),
    "clipped": Fault(WARNING, "more samples at full scale than --max_clipped_share"),
    "impossible_transcript": Fault(ERROR, "more is written than can be said in that time"),
    "sparse_transcript": Fault(WARNING, "hardly anything is written for that much audio"),
    "response_is_prompt": Fault(WARNING, "the response repeats the prompt"),
    "conflicting_responses": Fault(ERROR, "same recording, same question, another response"),
    "duplicate_row": Fault(WARNING, "same recording, same question, same response"),
    "duplicate_audio": Fault(WARNING, "the same sound under another name"),
    "audio_leak": Fault(ERROR, "the same sound is in another split"),
    "transcript_leak": Fault(WARNING, "the same transcript is in another split"),
    "not_compared": Fault(ERROR, "a row of --against whose sound cannot be compared, so that a leak would be missed"),
}


@dataclass
class Limits:
    """Limits of recordings and transcripts."""

    min_seconds: float = option(0.1, "Shorter recordings are errors.")
    max_seconds: float = option(600.0, "Longer recordings are errors, and are read only this far.")
    min_level_dbfs: float = option(-60.0, "Recordings with a lower level (RMS, dB relative to full scale) are silent.")
    max_clipped_share: float = option(0.001, "Share of samples allowed at full scale, 0 to 1.")
    max_characters_per_second: float = option(30.0, "Letters and digits that can be said in a second.")
    max_words_per_second: float = option(8.0, "Words that can be said in a second.")
    min_characters_per_second: float = option(
        1.0, "Letters and digits a second expected in the transcript of a recording of 5 s or more."
    )

    def __post_init__(self):
        in_range = {
            "max_seconds": self.min_seconds < self.max_seconds < math.inf,
            "min_seconds": self.min_seconds >= 0,
            "min_level_dbfs": self.min_level_dbfs <= 0,
            "max_clipped_share": 0 <= self.max_clipped_share <= 1,
            "max_words_per_second": self.max_words_per_second > 0,
            "min_characters_per_second": 0 <= self.min_characters_per_second < self.max_characters_per_second,
        }
        for name, is_right in in_range.items():
            if not is_right:
                expected = "0 or more (levels: 0 or less, shares: 0 to 1), each minimum below its maximum"
                raise ValueError(f"--{name} is {getattr(self, name):g}; expected {expected}.")


def level_dbfs(facts: AudioFacts) -> float:
    """Return the level of a recording without its offset, in dB relative to full scale."""
    rms = math.sqrt(max(facts.rms**2 - facts.offset**2, 0.0))
    return 20 * math.log10(rms) if rms else SILENCE_DBFS


def recording_faults(facts: AudioFacts, limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield the faults of one recording."""
    if facts.fault:
        yield facts.fault, facts.reason
        return
    if facts.seconds < limits.min_seconds:
        yield "too_short", f"lasts {facts.seconds:.3f} s; expected at least {limits.min_seconds:g} s"
    if facts.seconds > limits.max_seconds:
        yield "too_long", f"lasts {facts.seconds:.1f} s; expected at most {limits.max_seconds:g} s"
    level = level_dbfs(facts)
    if level < limits.min_level_dbfs:
        heard = "is digital silence" if level == SILENCE_DBFS else f"has a level of {level:.1f} dBFS"
        yield "silent", f"{heard}; expected at least {limits.min_level_dbfs:g} dBFS"
    if facts.clipped_share > limits.max_clipped_share:
        yield "clipped", f"{facts.clipped_share:.2%} of samples at full scale; expected {limits.max_clipped_share:.2%}"


def transcript_faults(text: str, facts: AudioFacts, limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield the faults of a transcript against its recording; none for an unreadable or too short recording."""
    if facts.fault or facts.seconds < limits.min_seconds:
        return
    characters = sum(character.isalnum() for character in text)  # letters and digits of any script
    words, seconds = len(text.split()), f"in {facts.seconds:.2f} s"
    for count, most, unit in (
        (characters, limits.max_characters_per_second, "letters and digits"),
        (words, limits.max_words_per_second, "words"),
    ):
        if count > most * facts.seconds:
            yield "impossible_transcript", f"{count} {unit} {seconds}; at most {most:g} a second can be said"
            break
    least = limits.min_characters_per_second
    if not characters or (facts.seconds >= LONG_SECONDS and characters < least * facts.seconds):
        yield "sparse_transcript", f"{characters} letters and digits {seconds}; expected at least {least:g} a second"


# ------------------------------------------------------------------------------------------------------- rows to look at


@dataclass
class CheckedRow:
    """One row, or what stands in its place."""

    number: int | None  # place in the file, from 0; None for the file as a whole
    where: str  # its name in errors, such as "row 3" or "line 4"
    #: Name, reason and audio path of each fault that is found without decoding.
    faults: list[tuple[str, str, str | None]] = field(default_factory=list)
    recordings: list[Any] = field(default_factory=list)  # none of an unusable row
    is_usable: bool = False  # training would take it, as far as is known without decoding
    question: str = ""  # all turns together
    response: str = ""
    is_transcript: bool = False  # the response is the transcript of the one recording


def checked_rows(source: Source, reader: RowReader, response_is_transcript: bool) -> Iterator[CheckedRow]:
    """Yield all rows of a source in order; all but JSON lists are read row by row."""
    number = -1
    for number, (where, row, problem) in enumerate(_rows(source)):
        checked = CheckedRow(number if where else None, where)
        if problem is not None:
            checked.faults.append(("unreadable_data", problem, None))
        else:
            _check(checked, row, reader, response_is_transcript)
        yield checked
    if number < 0:
        yield CheckedRow(None, "", [("unreadable_data", "holds no examples", None)])


def _rows(source: Source) -> Iterator[tuple[str, Any, str | None]]:
    """Yield where each row stands, its value, and why there is none; a table's audio as it is stored."""
    if source.place is None:
        yield from json_rows(Path(source.path))
        return
    try:
        for number, row in enumerate(load_table(source, streaming=True).decode(False)):
            if not number and not set(row) & set(TABLE_FIELDS):
                yield "", None, f"has the columns {', '.join(row)}; expected some of {', '.join(TABLE_FIELDS)}"
                return
            given = {name: row[name] for name in TABLE_FIELDS if row.get(name) is not None}
            if "response" not in row and MESSAGES not in row and AUDIO_COLUMN in row:  # a table of clips
                asked = f"Transcribe the audio: {AUDIO_PLACEHOLDER}"
                given |= {"text": asked, "response": given.get("text", "")}
            yield f"row {number}", given, None
    except (pa.ArrowException, OSError, KeyError, ValueError, datasets.exceptions.DatasetsError) as error:
        yield "", None, f"cannot be read: {' '.join(str(error).split())}"


def _check(checked: CheckedRow, row: Any, reader: RowReader, response_is_transcript: bool) -> None:
    """Fill in what a row says, or why it cannot be used."""
    try:
        conversation = reader.read(row, checked.where)
    except RowError as error:
        reasons = [reason if isinstance(reason, Reason) else Reason(reason) for reason in error.reasons]
        checked.faults += [(reason.fault, str(reason), reason.audio) for reason in reasons]
        return
    checked.recordings, checked.is_usable = list(conversation.recordings), True
    asked = [each["content"] for each in conversation.messages if each["role"] != ASSISTANT]
    answered = [each["content"] for each in conversation.messages if each["role"] == ASSISTANT]
    checked.question, checked.response = "\n".join(asked), "\n".join(answered)
    wordings = {wording.strip() for wording in known_tasks()["transcribe"].prompts}
    asks_for_it = response_is_transcript or (asked and asked[-1].strip() in wordings)
    checked.is_transcript = len(checked.recordings) == len(answered) == 1 and bool(asks_for_it)
    if AUDIO_PLACEHOLDER in checked.response:
        reason = f"the response holds {AUDIO_PLACEHOLDER}, which stands for a recording"
        checked.faults.append(("audio_count", reason, None))
    question = " ".join(checked.question.replace(AUDIO_PLACEHOLDER, " ").split())
    if checked.recordings and question.casefold() == " ".join(checked.response.split()).casefold():
        reason = f"the response is the prompt's text: {shown(checked.response)}"
        checked.faults.append(("response_is_prompt", reason, None))


# ------------------------------------------------------------------------------------------------------------ findings


@dataclass
class DataFile:
    """One file, and what was counted in it. Recordings count as often as rows have them."""

    source: Source
    split: str
    judged: bool = True  # its own faults are wanted, not only leaks into it
    rows: int = 0
    recordings: int = 0
    transcripts: int = 0
    hours: float = 0.0  # of readable recordings
    not_compared: int = 0  # rows that are unusable, or whose recordings are not read whole or silent

    @property
    def name(self) -> str:
        """Return its name in messages."""
        return self.source.name


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
    number: int | None
    where: str
    question: bytes
    response: bytes
    names: bytes


#: A row of a file, keys of its recordings, and those of the ones to measure.
_Place = tuple[int, CheckedRow, list[Any], list[Any]]


class Validation:
    """
    A pass over all rows of files, and its findings; `splits` are the files' splits, each once.

    Files of one split are compared as one. `audio_dir` is that of `read_examples`, with its errors; `ignored` are faults
    that are not wanted. With `response_is_transcript` every response about one recording is its transcript.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        audio_dir: str | None = None,
        limits: Limits | None = None,
        ignored: Sequence[str] = (),
        response_is_transcript: bool = False,
    ):
        self.files, self.limits, self.ignored = files, limits or Limits(), frozenset(ignored)
        readers = [RowReader(file.source.folder, audio_dir) for file in files]
        self._tables = [
            checked_rows(file.source, reader, response_is_transcript) for file, reader in zip(files, readers)
        ]
        self.splits = list(dict.fromkeys(file.split for file in files))
        self._findings: list[Finding] = []
        self._facts: dict[Any, AudioFacts | None] = {}  # None while they are being measured
        #: Rows by split and sound, and by kind and digest of what no other split should have.
        self._asked: dict[tuple[int, bytes], list[Remembered]] = {}
        self._shared: dict[tuple[str, bytes], dict[Remembered, None]] = {}

    def _add(self, file: int, row: CheckedRow | Remembered, fault: str, reason: str, audio: str | None = None) -> None:
        """Keep a fault, if it is wanted. Of files that are only compared with, `not_compared` is."""
        is_wanted = self.files[file].judged or fault == "not_compared"
        if is_wanted and fault not in self.ignored:
            self._findings.append(Finding(file, row.number, row.where, fault, reason, audio))

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

    def run(self, workers: int = 1) -> None:
        """Look at every row; raise CorpusError if one of the processes that measure recordings died."""
        measuring = functools.partial(measure_all, max_seconds=self.limits.max_seconds)
        work = in_order(measuring, self._work(), workers, ROWS_PER_WORKER)
        with tqdm(work, desc="Rows", unit="row", disable=None) as bar:
            for (file, row, keys, new), measured in bar:
                self._finish(file, row, keys, dict(zip(new, measured)))
                bar.set_postfix_str(f"{sum(each.hours for each in self.files):.2f} h", refresh=False)
        self._find_repeats()
        self._find_leaks()

    def _work(self) -> Iterator[tuple[_Place, list[Any]]]:
        """Yield each row with those of its recordings that nobody has measured yet."""
        for file, table in enumerate(self._tables):
            for row in interruptible(table):
                keys = [digest(each["bytes"]) if isinstance(each, dict) else each for each in row.recordings]
                new = {key: each for key, each in zip(keys, row.recordings) if key not in self._facts}
                self._facts |= dict.fromkeys(new)
                yield (file, row, keys, list(new)), list(new.values())

    def _finish(self, file: int, row: CheckedRow, keys: list[Any], measured: dict[Any, AudioFacts]) -> None:
        """Judge a row whose recordings have been measured; `measured` has the new ones."""
        counts = self.files[file]
        self._facts |= measured
        facts = [self._facts[key] or AudioFacts("undecodable") for key in keys]
        for fault, reason, audio in row.faults:
            self._add(file, row, fault, reason, audio)
        if row.number is None:
            self._report_uncompared(file, row, facts)
            return
        counts.rows += 1
        counts.recordings += len(facts)
        counts.hours += sum(one.seconds for one in facts if not one.fault) / SECONDS_PER_HOUR
        for recording, one in {key: pair for key, *pair in zip(keys, row.recordings, facts)}.values():
            for fault, reason in recording_faults(one, self.limits):
                self._add(file, row, fault, reason, _name(recording))
        if row.is_transcript:
            counts.transcripts += 1
            for fault, reason in transcript_faults(row.response, facts[0], self.limits):
                self._add(file, row, fault, reason, _name(row.recordings[0]))
        self._remember(file, row, facts)

    # -------------------------------------------------------------------------------------------------- between rows

    def _remember(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Keep what other rows are compared with."""
        said = NORMALISERS[COMPARING_NORMALISER](row.response) if row.is_transcript else row.response
        text = " ".join(said.split())
        names = [_name(each) or f"{file} {row.number}" for each in row.recordings]
        question = ("transcript",) if row.is_transcript else ("question", " ".join(row.question.split()))
        split = self.splits.index(self.files[file].split)
        this = Remembered(split, file, row.number, row.where, digest(*question), digest(text), digest(*names))
        sounds = [bytes.fromhex(one.digest) for one in facts if one.digest]
        if row.is_transcript and text:
            self._shared.setdefault(("transcript", this.response), {})[this] = None
        for sound in sounds:
            self._shared.setdefault(("sound", sound), {})[this] = None
        if row.is_usable and row.recordings and len(sounds) == len(facts):
            self._asked.setdefault((split, digest(*sounds)), []).append(this)
        elif row.recordings or row.faults:
            self.files[file].not_compared += 1
            self._report_uncompared(file, row, facts)

    def _report_uncompared(self, file: int, row: CheckedRow, facts: Sequence[AudioFacts]) -> None:
        """Report a row of --against that nothing can be compared with; other files' own faults say it."""
        if not self.files[file].judged:
            reasons = [reason for _, reason, _ in row.faults]
            reasons += [one.reason or "is too long, or digital silence" for one in facts if not one.digest]
            self._add(file, row, "not_compared", reasons[0])

    def _place(self, row: Remembered) -> str:
        return f"{self.files[row.file].name} {row.where}"

    def _find_repeats(self) -> None:
        """Add the faults of rows of one split with the same sound."""
        for rows in self._asked.values():
            by_question: dict[bytes, Remembered] = {}
            by_name: dict[bytes, Remembered] = {}
            for this in rows:
                first, namesake = by_question.setdefault(this.question, this), by_name.setdefault(this.names, this)
                if first is not this and first.response != this.response:
                    self._add(this.file, this, "conflicting_responses", f"{self._place(first)} answers otherwise")
                elif first is not this:
                    self._add(this.file, this, "duplicate_row", f"the same as {self._place(first)}")
                elif namesake is this and this is not rows[0]:
                    reason = f"the same sound as in {self._place(rows[0])}, under another name"
                    self._add(this.file, this, "duplicate_audio", reason)

    def _find_leaks(self) -> None:
        """Add the faults of rows with a sound, or else a transcript, that a later split has too."""
        known: set[tuple[int, int | None, int]] = set()  # one fault for a row and split, however much they share
        for kind, fault in (("sound", "audio_leak"), ("transcript", "transcript_leak")):
            for (this_kind, _), rows in self._shared.items():
                firsts = {row.split: row for row in reversed(rows)}
                for row in rows if this_kind == kind and len(firsts) > 1 else ():
                    for other in sorted(split for split in firsts if split > row.split):
                        if (row.file, row.number, other) not in known:
                            known.add((row.file, row.number, other))
                            there = f"{self._place(firsts[other])} (split {self.splits[other]!r})"
                            self._add(row.file, row, fault, f"the same {kind} is {there}")


def _name(recording: Any) -> str | None:
    """Return the name of a recording in reports; None for bytes without a name."""
    return recording.get("path") if isinstance(recording, dict) else recording
