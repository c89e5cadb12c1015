"""
`audiollm prepare synthesize`: texts that become speech, for users without recordings.

    audiollm prepare synthesize --texts questions.csv --voices flite:slt espeak-ng:en-us+f3 --voices_per_text 2

A text is spoken when its clip is written, by the process that writes it. Which voices, pitches and paces a text gets
depends on the seed, its place in the file and the text, so that every run gives the same recordings.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm.files import sha256_of
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .breadth import PEAKS
from .clips import DEFAULT_SPLIT, BadClip, Clip, CorpusError, FieldValue
from .speech_engines import DEFAULT_TIMEOUT_SECONDS, CommandEngine
from .tables import JSON_SUFFIXES, PARQUET_SUFFIX, TABLE_SUFFIXES, TEXT_SUFFIX, rows_of
from .voices import SpokenText, Voice, command_voices, default_voices, plain, voice_named

DEFAULT_TASKS: tuple[str, ...] = ("transcribe",)
#: Where the texts have responses.
RESPONSE_TASKS = ("respond",)
DEFAULT_OUTPUT = "data/synthesize"
#: What factors of pitch and speed are drawn from where nothing else is asked for.
DEFAULT_PITCH, DEFAULT_SPEED = (0.9, 1.12), (0.9, 1.15)
#: What they may be: beyond, engines stop following.
PITCH_LIMITS, SPEED_LIMITS = (0.75, 1.35), (0.65, 1.6)
UNCHANGED = (1.0, 1.0)
FACTOR_DIGITS = 3
#: Longest text that is spoken, about eleven minutes; engines take more than their share of time beyond.
MAX_TEXT_CHARACTERS = 10_000
ROW_DIGITS = 6
SUFFIXES = (TEXT_SUFFIX, PARQUET_SUFFIX, *JSON_SUFFIXES, *TABLE_SUFFIXES)
#: Usual names of columns, the first that is there.
TEXT_COLUMNS = ("text", "instruction", "prompt", "question", "sentence", "transcript")
RESPONSE_COLUMNS = ("response", "answer", "output", "completion")


@dataclass
class SynthesizeArguments:
    """Texts to speak, and the voices to speak them with."""

    texts: str = field(
        metadata={"help": "File of texts: *.txt with one a line, or *.json, *.jsonl, *.csv, *.tsv or *.parquet."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the texts; text, instruction, prompt and the like are found."}
    )
    response_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the responses to the texts; response, answer, output and completion are found. '' reads none."
        },
    )
    voices: list[str] | None = field(
        default=None,
        metadata={
            "help": "Voices as engine:voice, of espeak-ng, flite, hibari and kokoro: espeak-ng:en-us+f3 flite:slt hibari. "
            "By default good English ones of what is installed, kokoro apart. kokoro takes further voices from the folder "
            "that AUDIOLLM_KOKORO_VOICES names. With --tts_command: what {voice} stands for in it."
        },
    )
    voices_per_text: int = field(default=1, metadata={"help": "In how many different voices each text is spoken."})
    tts_command: str | None = field(
        default=None,
        metadata={
            "help": "A text-to-speech program of your own in place of the engines, run without a shell: 'mytool --voice "
            "{voice} --speed {speed} --out {output} {text_file}'. Without {text_file} it reads standard input, without "
            "{output} it writes an audio file to standard output."
        },
    )
    tts_timeout: float = field(
        default=DEFAULT_TIMEOUT_SECONDS,
        metadata={"help": "Seconds that an engine's program may take over one text; hibari is no program."},
    )
    pitch: list[float] | None = field(
        default=None,
        metadata={
            "help": f"Lowest and highest factor of the pitch, drawn for each clip; {DEFAULT_PITCH[0]:g} "
            f"{DEFAULT_PITCH[1]:g} by default, 1 1 for --tts_command without {{speed}}."
        },
    )
    speed: list[float] | None = field(
        default=None,
        metadata={
            "help": f"Slowest and fastest factor of the pace, drawn for each clip; {DEFAULT_SPEED[0]:g} "
            f"{DEFAULT_SPEED[1]:g} by default, 1 1 for --tts_command without {{speed}}."
        },
    )
    voice_seed: int = field(default=0, metadata={"help": "Of the voices, pitches and paces that are drawn."})
    split: str = field(default=DEFAULT_SPLIT, metadata={"help": "The split that the clips are of."})

    def __post_init__(self):
        if self.voices_per_text < 1:
            raise ValueError(f"--voices_per_text is {self.voices_per_text}; expected at least 1.")
        if self.tts_timeout <= 0:
            raise ValueError(f"--tts_timeout is {self.tts_timeout:g}; expected seconds above 0.")
        self.pitch = _checked_range("pitch", self.pitch, PITCH_LIMITS)
        self.speed = _checked_range("speed", self.speed, SPEED_LIMITS)
        if not self.split.strip():
            raise ValueError("--split is empty; expected a name such as train.")


@dataclass(frozen=True)
class TextRow:
    """One text, with its response where the table has one; `problem` says why it cannot be used."""

    text: str = ""
    response: str | None = None
    problem: str | None = None


class TextTable:
    """
    A file of texts, read row by row.

    Args:
        path: *.txt, with a text on each line, or a table that `tables.rows_of` reads.
        text_column, response_column: By default the first of `TEXT_COLUMNS` and `RESPONSE_COLUMNS` that is there. An empty
            name reads no responses.

    Attributes:
        path, text_column, response_column: What is read.
        unread: The other columns.
        sha256: Of the file.

    Raises:
        CorpusError: the file does not exist, is of no known kind, damaged or empty, or has no such column.
    """

    def __init__(self, path: str | Path, text_column: str | None = None, response_column: str | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise CorpusError(f"Texts {str(path)!r}: there is no such file.")
        if self.path.suffix.lower() not in SUFFIXES:
            raise CorpusError(f"Texts {str(path)!r}: expected a file that ends in one of {', '.join(SUFFIXES)}.")
        first = next((row for row in rows_of(str(self.path)) if not row.problem), None)
        if first is None:
            raise CorpusError(f"Texts {str(path)!r}: the file holds no texts.")
        columns = list(first.values)
        self.is_plain = self.path.suffix.lower() == TEXT_SUFFIX
        if self.is_plain and (text_column or response_column):
            name = text_column or response_column
            raise CorpusError(f"Texts {str(path)!r}: a *{TEXT_SUFFIX} file has no columns, so no {name!r}.")
        found = next((name for name in TEXT_COLUMNS if name in columns), None)
        self.text_column = text_column or found
        rest = (name for name in RESPONSE_COLUMNS if name in columns and name != self.text_column)
        self.response_column = next(rest, None) if response_column is None else response_column
        for name, option in ((self.text_column, "--text_column"), (self.response_column, "--response_column")):
            if name not in columns and (name or option == "--text_column"):
                lacking = f"{name!r}" if name else f"called {', '.join(TEXT_COLUMNS)}"
                there = ", ".join(map(str, columns))
                raise CorpusError(
                    f"Texts {str(path)!r}: there is no column {lacking}; found {there}. Name one with {option}."
                )
        self.unread = [name for name in columns if name not in (self.text_column, self.response_column)]
        self.sha256 = sha256_of(self.path)

    def rows(self) -> Iterator[TextRow]:
        """Yield every row; raise CorpusError where the file is damaged."""
        for row in rows_of(str(self.path)):
            found: list[str] = []
            problem = f"{row.where} {row.problem}" if row.problem else None
            for name in filter(None, (self.text_column, self.response_column)) if not problem else ():
                value = row.values.get(name)
                if not isinstance(value, str):
                    problem = problem or f"expected a text in column {name!r}, found {value!r}"
                elif not value.strip():
                    problem = problem or f"column {name!r} is empty"
                else:
                    found.append(value)
            yield TextRow(problem=problem) if problem else TextRow(*found)


class Synthesized:
    """
    A [`ClipSource`] of spoken texts.

    Args:
        table: the texts.
        voices: who speaks. A text goes to the voices among them that can read it.
        voices_per_text: how many different voices speak each.
        pitch, speed: lowest and highest factor.
        seed: of what is drawn.
        split: of the clips.

    Attributes:
        default_tasks: what is asked about the clips where nothing else is wanted.

    Raises:
        CorpusError: there are not enough voices.
    """

    def __init__(
        self,
        table: TextTable,
        voices: Sequence[Voice],
        voices_per_text: int = 1,
        pitch: Sequence[float] = DEFAULT_PITCH,
        speed: Sequence[float] = DEFAULT_SPEED,
        seed: int = 0,
        split: str = DEFAULT_SPLIT,
    ):
        self.table, self.split, self.seed = table, split, seed
        self.voices = list({str(voice): voice for voice in voices}.values())
        self.voices_per_text = voices_per_text
        self.pitch, self.speed = tuple(pitch), tuple(speed)
        if voices_per_text > len(self.voices):
            raise CorpusError(
                f"--voices_per_text {voices_per_text} asks for more voices than there are: "
                f"{len(self.voices)} ({', '.join(map(str, self.voices))})."
            )
        self.name = str(table.path)
        self.default_tasks = RESPONSE_TASKS if table.response_column else DEFAULT_TASKS
        self.identity: dict[str, Any] = {
            "texts": table.sha256,
            "columns": [table.text_column, table.response_column],
            "voices": [str(voice) for voice in self.voices],
            "engines": sorted({voice.engine.version() for voice in self.voices}),
            "voices_per_text": voices_per_text,
            "pitch": list(self.pitch),
            "speed": list(self.speed),
            "seed": seed,
            "split": split,
        }

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """Each text in its voices; nothing is spoken before a clip's recording is loaded."""
        return itertools.islice(self._all(), start, None)

    def count(self) -> int | None:
        """How many clips and bad ones there are."""
        return sum(1 for _ in self._all())

    def _all(self) -> Iterator[Clip | BadClip]:
        for number, row in enumerate(self.table.rows()):
            yield from self._spoken(f"{number:0{ROW_DIGITS}d}", row)

    def _spoken(self, number: str, row: TextRow) -> Iterator[Clip | BadClip]:
        try:
            text = _speakable(row)
        except ValueError as error:
            yield BadClip(number, str(error), self.split)
            return
        refusals = [voice.unreadable(text) for voice in self.voices]
        readers = [voice for voice, refusal in zip(self.voices, refusals) if refusal is None]
        if len(readers) < self.voices_per_text:
            reasons = "; ".join(dict.fromkeys(filter(None, refusals)))
            reason = f"{len(readers)} voices can read the text, and --voices_per_text is {self.voices_per_text}"
            yield BadClip(number, f"{reason}: {reasons}", self.split)
            return
        generator = random.Random(f"{self.seed}/{number}/{text}")
        for voice in generator.sample(readers, self.voices_per_text):
            pitch, speed = (round(generator.uniform(*span), FACTOR_DIGITS) for span in (self.pitch, self.speed))
            spoken = SpokenText(voice, text, pitch, speed, generator.getrandbits(32), generator.uniform(*PEAKS))
            fields: dict[str, FieldValue] = {"speaker": str(voice), "pitch": pitch, "speed": speed}
            if row.response is not None:
                fields["response"] = row.response.strip()
            identity = f"{number}-{str(voice).replace(':', '-')}"
            yield Clip(identity, spoken, text=text, split=self.split, fields=fields)


def open_source(arguments: SynthesizeArguments) -> Synthesized:
    """
    The texts and voices that options ask for; prints what was chosen.

    Raises:
        ValueError: options contradict each other.
        CorpusError: the texts cannot be read, or an engine or voice is not there.
    """
    table = TextTable(arguments.texts, arguments.text_column, arguments.response_column)
    if arguments.tts_command is not None:
        voices = command_voices(arguments.tts_command, arguments.voices or (), arguments.tts_timeout)
    else:
        voices = [voice_named(name) for name in arguments.voices] if arguments.voices else default_voices()
        voices = [_with_timeout(voice, arguments.tts_timeout) for voice in voices]
    paced = all(voice.engine.paced for voice in voices)
    if arguments.speed is not None and not paced:
        raise ValueError("--speed needs {speed}, {stretch} or {words_per_minute} in --tts_command.")
    pitch = arguments.pitch or (DEFAULT_PITCH if paced else UNCHANGED)
    speed = arguments.speed or (DEFAULT_SPEED if paced else UNCHANGED)
    if not table.is_plain:
        unread = f"; not read: {', '.join(table.unread)}" if table.unread else ""
        responses = f"responses from {table.response_column!r}" if table.response_column else "no responses"
        print(f"{table.path}: texts from column {table.text_column!r}, {responses}{unread}.")
    print(f"Voices: {', '.join(map(str, voices))}.")
    return Synthesized(table, voices, arguments.voices_per_text, pitch, speed, arguments.voice_seed, arguments.split)


def _speakable(row: TextRow) -> str:
    """The text of a row as voices take it; ValueError says why there is none."""
    if row.problem is not None:
        raise ValueError(row.problem)
    if AUDIO_PLACEHOLDER in row.text:
        raise ValueError(f"the text has {AUDIO_PLACEHOLDER}, which stands for a recording; only texts are spoken")
    text = plain(row.text)
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"the text has {len(text)} characters; at most {MAX_TEXT_CHARACTERS} are spoken: split it")
    return text


def _with_timeout(voice: Voice, seconds: float) -> Voice:
    if not isinstance(voice.engine, CommandEngine):
        return voice
    return Voice(dataclasses.replace(voice.engine, timeout_seconds=seconds), voice.name)


def _checked_range(name: str, given: Sequence[float] | None, limits: tuple[float, float]) -> list[float] | None:
    if given is None:
        return None
    if not (1 <= len(given) <= 2 and limits[0] <= min(given) and max(given) <= limits[1] and given[0] <= given[-1]):
        shown = " ".join(f"{factor:g}" for factor in given)
        raise ValueError(
            f"--{name} is {shown}; expected the lowest and highest factor, within {limits[0]:g} to {limits[1]:g}."
        )
    return [given[0], given[-1]]


__all__ = ["DEFAULT_OUTPUT", "DEFAULT_TASKS", "SynthesizeArguments", "Synthesized", "open_source"]
