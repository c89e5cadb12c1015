"""
Synthetic voices, and texts that become speech when they are needed.

A voice is an engine and a name: `flite:slt`. A pitch comes from playing the speech faster or slower, and asking the engine
for the opposite pace. The same text, voice, pace, pitch and seed give the same samples.
"""

import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from audiollm.processing import AudioError
from audiollm.processing.audio import SAMPLING_RATE_HZ

from .clips import CorpusError
from .neural_engines import KOKORO
from .speech_engines import DEFAULT_TIMEOUT_SECONDS, CommandEngine, Engine, known_engines

#: Name of the engine that is the user's own command.
COMMAND = "command"
NAME_MARK = ":"
#: Samples below this share of full scale are silence; flite's dither reaches 0.003.
SILENCE_PEAK = 0.01
#: Nobody speaks faster: such an engine has left out some of the text.
MAX_CHARACTERS_PER_SECOND = 60.0
#: Engines that are used only if they are named: Kokoro takes a third of the time that its speech lasts.
ASKED_FOR = (KOKORO,)
PROBE_TEXT = "one two three"


@dataclass(frozen=True)
class Voice:
    """A voice of an engine; `str(voice)` is its name in --voices."""

    engine: Engine
    name: str

    def __str__(self) -> str:
        return f"{self.engine.name}{NAME_MARK}{self.name}" if self.name else self.engine.name

    def speak(self, text: str, pitch: float = 1.0, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """
        Return the speech of a text: float32 at 16 kHz, of shape `(samples,)`.

        Args:
            text: As [`plain`] gives it.
            pitch, speed: Factors; 1 is the voice's own. An engine that is not `paced` speaks faster at a higher pitch.
            seed: Of what is random in the engine.

        Raises:
            AudioError: the engine fails, takes too long, stays silent or leaves out some of the text.
        """
        waveform, rate = self.engine.say(text, self.name, speed / pitch, seed)
        if waveform.size:
            waveform = soxr.resample(waveform, round(rate * pitch), SAMPLING_RATE_HZ)
        if waveform.size == 0 or float(np.abs(waveform).max()) < SILENCE_PEAK:
            raise AudioError(f"{self} stays silent at {_shown(text)}")
        seconds, characters = len(waveform) / SAMPLING_RATE_HZ, sum(one.isalnum() for one in text)
        if characters > MAX_CHARACTERS_PER_SECOND * seconds * max(speed, 1.0):
            raise AudioError(
                f"{self} says {characters} letters in {seconds:.1f} s: some of {_shown(text)} is left out"
            )
        return waveform

    def unreadable(self, text: str) -> str | None:
        """Return why the voice cannot read a text; None where it can, or where that is not known."""
        return self.engine.unreadable(text, self.name)


@dataclass(frozen=True)
class SpokenText:
    """
    A text that is spoken when it is loaded; it can be pickled.

    Attributes:
        voice, text, pitch, speed, seed: As [`Voice.speak`] takes them.
        peak: The loudest sample; None leaves the loudness to the engine.
    """

    voice: Voice
    text: str
    pitch: float = 1.0
    speed: float = 1.0
    seed: int = 0
    peak: float | None = None

    def load(self) -> tuple[np.ndarray, int]:
        """
        Return the speech, float32 of shape `(samples,)`, and its rate in Hz; raises as [`Voice.speak`].
        """
        waveform = self.voice.speak(self.text, self.pitch, self.speed, self.seed)
        if self.peak is not None:
            waveform = waveform * (self.peak / float(np.abs(waveform).max()))
        return waveform, SAMPLING_RATE_HZ


def plain(text: str) -> str:
    """
    Return a text in one line, without characters that control a terminal, a C string or an engine.

    Raises:
        ValueError: there is nothing to say in it, or it is not Unicode text.
    """
    text = " ".join("".join(" " if unicodedata.category(one) == "Cc" else one for one in text).split())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is not Unicode: half of a character at {error.start}") from None
    if not any(unicodedata.category(one)[0] in "LNS" for one in text):
        raise ValueError(f"there is nothing to say in {text!r}" if text else "the text is empty")
    return text


def voice_named(name: str) -> Voice:
    """
    Return a voice after it has said something.

    Args:
        name: `engine:voice`, or an engine alone for the first of its voices.

    Raises:
        CorpusError: there is no such engine or voice, or it is not installed.
    """
    engine_name, _, voice = name.partition(NAME_MARK)
    engine = known_engines().get(engine_name)
    if engine is None:
        raise CorpusError(
            f"There is no text-to-speech engine {engine_name!r} in --voices {name}; expected one of "
            f"{', '.join(known_engines())}, as in flite:slt, or --tts_command for a program of your own."
        )
    return _checked(Voice(engine, voice or engine.voices[0]))


def default_voices() -> list[Voice]:
    """
    Return the good voices of the engines that are installed, but for those that have to be asked for.

    Raises:
        CorpusError: no engine is installed.
    """
    voices, reasons = [], []
    for engine in known_engines().values():
        for name in () if engine.name in ASKED_FOR else engine.voices:
            try:
                voices.append(_checked(Voice(engine, name)))
            except CorpusError as error:
                reasons.append(str(error))
    if not voices:
        raise CorpusError("No text-to-speech engine is installed. " + " ".join(dict.fromkeys(reasons)))
    return voices


def command_voices(
    command: str, names: Sequence[str] = (), timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> list[Voice]:
    """
    Return the voices of a program of the user's.

    Args:
        command: Program and arguments as a shell would split them (none runs them), with the placeholders of
            [`CommandEngine`].
        names: What `{voice}` stands for, one by one.
        timeout_seconds: Time that it may take over one text.

    Raises:
        ValueError: it has other placeholders, or `{voice}` without names, or names without `{voice}`.
        CorpusError: there is no such program, or it does not speak.
    """
    try:
        engine = CommandEngine(COMMAND, tuple(shlex.split(command)), timeout_seconds=timeout_seconds)
    except ValueError as error:
        raise ValueError(f"--tts_command {command!r}: {error}") from None
    if engine.takes("voice") != bool(names):
        raise ValueError(
            f"--tts_command {command!r} "
            + ("has {voice}: name some with --voices." if not names else "has no {voice} for the names of --voices.")
        )
    return [_checked(Voice(engine, name)) for name in names or [""]]


def _checked(voice: Voice) -> Voice:
    """Return the voice after it has said something."""
    voice.engine.check(voice.name)
    try:
        voice.speak(PROBE_TEXT)
    except AudioError as error:
        raise CorpusError(f"The voice {voice} cannot be used: {error}") from error
    return voice


def _shown(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[: most - 1] + "…")


__all__ = ["SpokenText", "Voice", "command_voices", "default_voices", "plain", "voice_named"]
