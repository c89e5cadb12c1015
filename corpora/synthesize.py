"""
`audiollm prepare synthesize`: texts that become speech, for users without recordings.

    audiollm prepare synthesize questions.csv --voices flite:slt espeak-ng:en-us+f3 --voices_per_text 2

A text is spoken when its clip is written, by the process that writes it. Its voices, pitches and paces depend on the seed,
its place in the file and the text, so that every run gives the same recordings.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from audiollm.command_line.files import sha256_of
from audiollm.command_line.option_parser import option
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .clips import DEFAULT_SPLIT, BadClip, Clip, ClipSource, CorpusError, FieldValue
from .dataset_places import FILE_BUILDERS, Place, open_split
from .values import check_at_least
from .voices import (
    DEFAULT_TIMEOUT_SECONDS,
    CommandEngine,
    SpokenText,
    Voice,
    command_voices,
    default_voices,
    plain,
    voice_named,
)

TEXT_SUFFIX = ".txt"
SUFFIXES = (TEXT_SUFFIX, *FILE_BUILDERS)
#: Usual names of columns, the first that is there.
TEXT_COLUMNS = ("text", "instruction", "prompt", "question", "sentence", "transcript")
RESPONSE_COLUMNS = ("response", "answer", "output", "completion")
#: Ranges that factors of pitch and speed are drawn from by default, and their limits: beyond, engines stop following.
DEFAULT_PITCH, DEFAULT_SPEED, UNCHANGED = (0.9, 1.12), (0.9, 1.15), (1.0, 1.0)
PITCH_LIMITS, SPEED_LIMITS = (0.75, 1.35), (0.65, 1.6)
FACTOR_DIGITS = 3
#: Range that a clip's peak amplitude is drawn from.
PEAKS = (0.3, 0.9)
#: Longest text that is spoken, about eleven minutes; engines take more than their share of time beyond.
MAX_TEXT_CHARACTERS = 10_000
ROW_DIGITS = 6


@dataclass
class SynthesizeArguments:
    """Texts to speak, and the voices to speak them with."""

    texts: str = field(
        metadata={"help": f"File of texts: *.txt with one a line, or a table ({', '.join(SUFFIXES[1:])})."}
    )
    text_column: str | None = option(None, f"Column of the texts. Default: one of {', '.join(TEXT_COLUMNS)}.")
    response_column: str | None = option(
        None, f"Column of the responses; '' for none. Default: one of {', '.join(RESPONSE_COLUMNS)}."
    )
    voices: list[str] | None = option(
        None,
        "Voices of espeak-ng, flite and hibari: espeak-ng:en-us+f3 flite:slt hibari. Default: good English ones of what "
        "is installed. With --tts_command: what {voice} stands for.",
    )
    voices_per_text: int = option(1, "Number of different voices that speak each text.")
    tts_command: str | None = option(
        None,
        "A text-to-speech program of your own in place of the engines, run without a shell: 'mytool --voice "
        "{voice} --speed {speed} --out {output} {text_file}'. Without {text_file} it reads standard input, without "
        "{output} it writes an audio file to standard output.",
    )
    tts_timeout: float = option(DEFAULT_TIMEOUT_SECONDS, "Seconds that a program may take over one text.")
    pitch: list[float] | None = option(
        None,
        f"Lowest and highest factor of the pitch. Default: {DEFAULT_PITCH[0]:g} {DEFAULT_PITCH[1]:g}, or 1 1 for "
        "--tts_command without {speed}.",
    )
    speed: list[float] | None = option(
        None,
        f"Lowest and highest factor of the pace. Default: {DEFAULT_SPEED[0]:g} {DEFAULT_SPEED[1]:g}, or 1 1 for "
        "--tts_command without {speed}.",
    )
    voice_seed: int = option(0, "Seed of the voices, pitches and paces that are drawn.")
    split: str = option(DEFAULT_SPLIT, "Split of the clips.")

    def __post_init__(self):
        check_at_least(self, 1, "voices_per_text")
        if self.tts_timeout <= 0:
            raise ValueError(f"--tts_timeout is {self.tts_timeout:g}; expected seconds above 0.")
        for name, (low, high) in (("pitch", PITCH_LIMITS), ("speed", SPEED_LIMITS)):
            given = getattr(self, name)
            if given is None:
                continue
            if not (1 <= len(given) <= 2 and low <= min(given) and max(given) <= high and given[0] <= given[-1]):
                factors = " ".join(f"{factor:g}" for factor in given)
                raise ValueError(f"--{name} is {factors}; expected lowest and highest factor, {low:g} to {high:g}.")
            setattr(self, name, [given[0], given[-1]])
        if not self.split.strip():
            raise ValueError("--split is empty; expected a name such as train.")


class Synthesized(ClipSource):
    """
    Texts of a file, spoken each by voices that can read it; with responses, where the file has them.

    ValueError is raised where options contradict each other, CorpusError where texts, columns or voices are missing.
    """

    def __init__(self, arguments: SynthesizeArguments):
        self.arguments, self.path = arguments, Path(arguments.texts)
        self._choose_columns()
        self._choose_voices()
        self.name = str(self.path)
        self.tasks = ("respond",) if self.response_column else ("transcribe",)
        self.identity = {
            "texts": sha256_of(self.path),
            "columns": [self.text_column, self.response_column],
            "voices": [str(voice) for voice in self.voices],
            "engines": sorted({voice.engine.version() for voice in self.voices}),
            "voices_per_text": arguments.voices_per_text,
            "pitch": self.spans[0],
            "speed": self.spans[1],
            "seed": arguments.voice_seed,
            "split": arguments.split,
        }

    def _choose_columns(self) -> None:
        called, options = f"Texts {str(self.path)!r}", self.arguments
        if not self.path.is_file():
            raise CorpusError(f"{called}: there is no such file.")
        if self.path.suffix.lower() not in SUFFIXES:
            raise CorpusError(f"{called}: expected a file that ends in one of {', '.join(SUFFIXES)}.")
        columns = list(next(self._rows(), ()))
        if not columns:
            raise CorpusError(f"{called}: the file holds no texts.")
        self.text_column = options.text_column or next((one for one in TEXT_COLUMNS if one in columns), None)
        rest = (one for one in RESPONSE_COLUMNS if one in columns and one != self.text_column)
        self.response_column = next(rest, None) if options.response_column is None else options.response_column
        for column, name in ((self.text_column, "--text_column"), (self.response_column, "--response_column")):
            if column not in columns and (column or name == "--text_column"):
                lacking = repr(column) if column else f"called {', '.join(TEXT_COLUMNS)}"
                there = ", ".join(map(str, columns))
                raise CorpusError(f"{called}: there is no column {lacking}; found {there}. Name one with {name}.")
        unread = [one for one in columns if one not in (self.text_column, self.response_column)]
        left_out = f"; not read: {', '.join(unread)}" if unread else ""
        responses = f"responses from {self.response_column!r}" if self.response_column else "no responses"
        self.summary = f"{self.path}: texts from column {self.text_column!r}, {responses}{left_out}."

    def _choose_voices(self) -> None:
        options = self.arguments
        if options.tts_command is not None:
            found = command_voices(options.tts_command, options.voices or (), options.tts_timeout)
        else:
            found = [voice_named(name) for name in options.voices] if options.voices else default_voices()
            for index, voice in enumerate(found):
                if isinstance(voice.engine, CommandEngine):
                    found[index] = Voice(replace(voice.engine, timeout_seconds=options.tts_timeout), voice.name)
        self.voices = list({str(voice): voice for voice in found}.values())
        names = ", ".join(map(str, self.voices))
        if options.voices_per_text > len(self.voices):
            asked = f"--voices_per_text {options.voices_per_text}"
            raise CorpusError(f"{asked} asks for more voices than there are: {len(self.voices)} ({names}).")
        self.summary += f"\nVoices: {names}."
        is_paced = all(voice.engine.paced for voice in self.voices)
        if options.speed is not None and not is_paced:
            raise ValueError("--speed needs {speed}, {stretch} or {words_per_minute} in --tts_command.")
        usual = (DEFAULT_PITCH, DEFAULT_SPEED) if is_paced else (UNCHANGED, UNCHANGED)
        self.spans = (options.pitch or [*usual[0]], options.speed or [*usual[1]])

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows in the order of the file."""
        if self.path.suffix.lower() == TEXT_SUFFIX:
            with open(self.path, encoding="utf-8-sig") as file:
                yield from ({"text": line.rstrip("\n")} for line in file if line.strip())
        else:
            place = Place(str(self.path), "file", str(self.path.absolute()))
            yield from open_split(place, DEFAULT_SPLIT, streaming=True)[0]

    def every(self) -> Iterator[Clip | BadClip]:
        """Yield each text in its voices; nothing is spoken before a clip's recording is loaded."""
        return (clip for number, row in enumerate(self._rows()) for clip in self._spoken(number, row))

    def count(self) -> int:
        """Return how many there are."""
        return sum(1 for _ in self.every())

    def _spoken(self, place: int, row: Mapping[str, Any]) -> Iterator[Clip | BadClip]:
        number, wanted, split = f"{place:0{ROW_DIGITS}d}", self.arguments.voices_per_text, self.arguments.split
        try:
            text, response = self._texts_of(row)
        except ValueError as error:
            yield BadClip(number, str(error), split)
            return
        refusals = [voice.engine.unreadable(text, voice.name) for voice in self.voices]
        readers = [voice for voice, refusal in zip(self.voices, refusals) if refusal is None]
        if len(readers) < wanted:
            reasons = "; ".join(dict.fromkeys(filter(None, refusals)))
            reason = f"{len(readers)} voices can read the text, and --voices_per_text is {wanted}: {reasons}"
            yield BadClip(number, reason, split)
            return
        generator = random.Random(f"{self.arguments.voice_seed}/{number}/{text}")
        for voice in generator.sample(readers, wanted):
            pitch, speed = (round(generator.uniform(*span), FACTOR_DIGITS) for span in self.spans)
            spoken = SpokenText(voice, text, pitch, speed, generator.getrandbits(32), generator.uniform(*PEAKS))
            fields: dict[str, FieldValue] = {"speaker": str(voice), "pitch": pitch, "speed": speed}
            fields |= {} if response is None else {"response": response}
            yield Clip(f"{number}-{str(voice).replace(':', '-')}", spoken, text, split, fields)

    def _texts_of(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return text and response of a row, the text as voices take it; raise ValueError if it cannot be spoken."""
        found: list[str] = []
        for name in filter(None, (self.text_column, self.response_column)):
            value = row.get(name)
            if not isinstance(value, str):
                raise ValueError(f"expected a text in column {name!r}, found {value!r}")
            if not value.strip():
                raise ValueError(f"column {name!r} is empty")
            found.append(value)
        if AUDIO_PLACEHOLDER in found[0]:
            raise ValueError(f"the text has {AUDIO_PLACEHOLDER}, which stands for a recording; only texts are spoken")
        text = plain(found[0])
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"the text has {len(text)} characters; at most {MAX_TEXT_CHARACTERS} are spoken")
        return text, found[1].strip() if len(found) > 1 else None


open_source = Synthesized
