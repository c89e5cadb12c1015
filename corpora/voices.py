"""
Synthetic voices: text-to-speech engines, and texts that become speech when they are needed.

An engine is a command of `voices.yaml` or of the user's, run without a shell, or a Python package. A voice is an engine and
a name: `flite:slt`. A pitch comes from playing the speech faster or slower, and asking the engine for the opposite pace. The
same text, voice, pace, pitch and seed give the same samples.
"""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
import yaml
from audiollm.processing import AudioError, load_waveform
from audiollm.processing.audio import SAMPLING_RATE_HZ

from .clips import CorpusError
from .values import shown

ENGINES_FILE = Path(__file__).parent / "voices.yaml"
#: Placeholders of an engine's command; those of the pace say how fast to speak.
PACE_PLACEHOLDERS = ("speed", "stretch", "words_per_minute")
PLACEHOLDERS = ("voice", "text_file", "output", *PACE_PLACEHOLDERS)
PLACEHOLDER = re.compile(r"\{(\w+)\}")
#: Time that an engine may take over one text.
DEFAULT_TIMEOUT_SECONDS = 60.0
#: End of an engine's complaint that is quoted.
MAX_QUOTED_CHARACTERS = 300
#: Names of voices; never what an engine would take for a path or an option.
VOICE_NAME = re.compile(r"\w[\w+ -]*")
#: Typographic marks as engines that know only ASCII read them.
ASCII_MARKS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": " - ", "…": "...", "ß": "ss"})
#: Kinds of characters that are heard: letters, digits, currency and mathematical signs, by Unicode's categories.
HEARD_CATEGORIES = ("L", "N", "Sc", "Sm")
#: Name of the engine that is the user's own command.
COMMAND = "command"
NAME_MARK = ":"
#: Samples below this share of full scale are silence; flite's dither reaches 0.003.
SILENCE_PEAK = 0.01
#: Nobody speaks faster: such an engine has left out some of the text.
MAX_CHARACTERS_PER_SECOND = 60.0
PROBE_TEXT = "one two three"

HIBARI = "hibari"


def foreign_letter(text: str, script: str) -> str | None:
    """Return the first letter of another script than `script`, a prefix of letters' names in Unicode."""
    letters = (one for one in unicodedata.normalize("NFC", text) if unicodedata.category(one)[0] == "L")
    return next((one for one in letters if not unicodedata.name(one, "").startswith(script)), None)


@dataclass(frozen=True)
class CommandEngine:
    """
    An engine that is a command, as `voices.yaml` describes it.

    Without `{text_file}` in it the command reads standard input, and without `{output}` it writes an audio file to standard
    output. A user's own has a name, a command and a timeout only. An unknown placeholder, and no command, raise ValueError.
    """

    name: str
    command: tuple[str, ...]
    voices: tuple[str, ...] = ("",)
    install: str = ""
    pace: float = 1.0
    listing: tuple[str, ...] = ()
    mark: str = ""
    listed: str = ""
    scripts: Mapping[str, str] = field(default_factory=dict)
    ascii: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    def __post_init__(self):
        if not self.command:
            raise ValueError(f"The command of the text-to-speech engine {self.name!r} is empty.")
        unknown = [name for part in self.command for name in PLACEHOLDER.findall(part) if name not in PLACEHOLDERS]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"The command {shlex.join(self.command)} has {{{unknown[0]}}}; expected only {known}.")

    def takes(self, *placeholders: str) -> bool:
        """Return whether any of these stand in the command."""
        return any(f"{{{name}}}" in part for part in self.command for name in placeholders)

    @property
    def paced(self) -> bool:
        """Return whether it can be told how fast to speak."""
        return self.takes(*PACE_PLACEHOLDERS)

    def unreadable(self, text: str, voice: str) -> str | None:
        """Return why a voice cannot read a text; None where it can, or that is not known."""
        script = next((script for prefix, script in self.scripts.items() if voice.startswith(prefix)), "")
        if foreign := foreign_letter(text, script):
            return f"{self.name}:{voice} does not read {foreign!r}"
        try:
            is_readable = not self.ascii or as_ascii(text, self.name).strip()
        except AudioError as error:
            return str(error)
        return None if is_readable else f"{self.name} reads ASCII only"

    def version(self) -> str:
        """Return what decides, besides the options, how it speaks."""
        if not self.listing:
            return shlex.join(self.command)
        # flite says its version and fails.
        said = self._run([self.command[0], "--version"], must_succeed=False)
        return " ".join(said.decode(errors="replace").split())

    def check(self, voice: str) -> None:
        """Raise CorpusError if the engine or a voice is missing."""
        if shutil.which(self.command[0]) is None:
            advice = f"Install it ({self.install})" if self.install else "Install it, or give its whole path"
            raise CorpusError(f"The text-to-speech engine {self.command[0]!r} is not on this machine. {advice}.")
        if not self.listing:
            return
        if not VOICE_NAME.fullmatch(voice):
            raise CorpusError(f"{self.name} has no voice {voice!r}: expected a name such as {self.voices[0]}.")
        wanted = voice.partition(self.mark)[2] if self.mark else voice
        said = self._run(self.listing).decode(errors="replace")
        said = said if self.listed else said.rpartition(":")[2]  # flite's names stand behind a title
        names = [name.removeprefix(self.listed) for name in said.split() if name.startswith(self.listed)]
        if wanted and wanted not in names:
            listed = f"{shlex.join(self.listing)} does not list {wanted!r}, but {', '.join(names)}"
            raise CorpusError(f"{self.name} has no voice {voice!r}: {listed}.")

    def say(self, text: str, voice: str, speed: float, seed: int) -> tuple[np.ndarray, int]:
        """Return a waveform, float32 of shape `(samples,)`, and its rate in Hz; raise AudioError where there is none."""
        for found, instead in self.instead.items():
            while found in text:
                text = text.replace(found, instead)
        text = as_ascii(text, self.name) if self.ascii else text
        with tempfile.TemporaryDirectory(prefix="audiollm-voice-") as folder:
            output, text_file = Path(folder, "speech.wav"), Path(folder, "text.txt")
            text_file.write_text(text + "\n", encoding="utf-8", newline="\n")
            values = {
                "voice": voice,
                "text_file": str(text_file),
                "output": str(output),
                "speed": f"{speed:.4f}",
                "stretch": f"{1 / speed:.4f}",
                "words_per_minute": str(round(self.pace * speed)),
            }
            command = [PLACEHOLDER.sub(lambda match: values[match[1]], part) for part in self.command]
            data = self._run(command, "" if self.takes("text_file") else text + "\n", self.timeout_seconds)
            if self.takes("output"):
                data = output.read_bytes() if output.is_file() else b""
        if not data:
            raise AudioError(f"{self.name} wrote no audio; it was run as: {shlex.join(command)}")
        try:
            info = soundfile.info(io.BytesIO(data))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.name} wrote what is no audio file ({error.error_string})") from error
        if info.frames == 0:
            return np.zeros(0, dtype=np.float32), info.samplerate
        name = f"the speech of {self.name}"
        return load_waveform(data, target_rate=info.samplerate, name=name), info.samplerate

    def _run(
        self,
        command: Sequence[str],
        text: str = "",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        must_succeed: bool = True,
    ) -> bytes:
        """Return what a command that is given a text on standard input writes to standard output."""
        pipe = subprocess.PIPE
        try:
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
                try:
                    output, complaint = process.communicate(text.encode(), timeout_seconds)
                finally:  # end whatever it has started
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
        except OSError as error:
            raise AudioError(f"{command[0]} cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            advice = "split the text, or allow more time"
            raise AudioError(f"{self.name} took longer than {timeout_seconds:g} s; {advice}") from None
        if process.returncode != 0 and must_succeed:
            said = " ".join(complaint.decode(errors="replace").split())[-MAX_QUOTED_CHARACTERS:]
            raise AudioError(f"{self.name} failed with status {process.returncode}: {said or 'it said nothing'}")
        return output


def as_ascii(text: str, engine: str) -> str:
    """Return a text without accents, typographic marks and emoji; raise AudioError for what would be heard otherwise."""
    folded = unicodedata.normalize("NFKD", text.translate(ASCII_MARKS))
    heard = [one for one in folded if not one.isascii() and unicodedata.category(one).startswith(HEARD_CATEGORIES)]
    if heard:
        raise AudioError(f"{engine} reads ASCII only, and the text has {heard[0]!r}")
    return "".join(one for one in folded if one.isascii())


class HibariEngine:
    """The engine of https://pypi.org/project/hibari-tts (Apache-2.0), whose voice `heart` comes inside its package."""

    name, voices, paced = HIBARI, ("heart",), True

    def version(self) -> str:
        """Return the package's version."""
        import hibari

        return f"hibari {hibari.__version__}"

    def unreadable(self, text: str, voice: str) -> str | None:
        """Return why a text cannot be read; None where it can."""
        foreign = foreign_letter(text, "LATIN")
        return foreign and f"{self.name}:{voice} does not read {foreign!r}"

    def check(self, voice: str) -> None:
        """Raise CorpusError if the package or a voice is missing."""
        try:
            _hibari(voice)
        except ImportError as error:
            raise CorpusError("The engine hibari is not installed: pip install 'audiollm[voice]'.") from error
        except (ValueError, RuntimeError, OSError) as error:  # there is no such voice, or it cannot be downloaded
            raise CorpusError(f"hibari has no voice {voice!r}: {error}") from error

    def say(self, text: str, voice: str, speed: float, seed: int) -> tuple[np.ndarray, int]:
        """Return a waveform, float32 of shape `(samples,)`, and its rate in Hz."""
        speaker = _hibari(voice)
        return np.asarray(speaker(text, speed=speed, seed=seed), dtype=np.float32), speaker.sample_rate


@lru_cache(maxsize=8)
def _hibari(voice: str):
    """Return one of hibari's voices, loaded once in each process."""
    from hibari import Hibari

    return Hibari(voice=voice)


Engine = CommandEngine | HibariEngine


@lru_cache(maxsize=1)
def known_engines() -> dict[str, Engine]:
    """Return the engines whose voices can be asked for by name, hibari last."""
    engines: dict[str, Engine] = {}
    for name, entry in yaml.safe_load(ENGINES_FILE.read_text(encoding="utf-8")).items():
        words = {key: tuple(shlex.split(entry[key])) for key in ("command", "listing")}
        engines[name] = CommandEngine(name, **entry | words)
    return engines | {HIBARI: HibariEngine()}


@dataclass(frozen=True)
class Voice:
    """A voice of an engine; `str(voice)` is its name in --voices."""

    engine: Engine
    name: str

    def __str__(self) -> str:
        return f"{self.engine.name}{NAME_MARK}{self.name}" if self.name else self.engine.name

    def speak(self, text: str, pitch: float = 1.0, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """
        Return the speech of a text as [`plain`] gives it: float32 at 16 kHz, of shape `(samples,)`.

        Pitch and speed are factors; an engine that is not `paced` speaks faster at a higher pitch. AudioError is raised if
        the engine fails, takes too long, stays silent or leaves out some of the text.
        """
        waveform, rate = self.engine.say(text, self.name, speed / pitch, seed)
        if waveform.size:
            waveform = soxr.resample(waveform, round(rate * pitch), SAMPLING_RATE_HZ)
        if waveform.size == 0 or float(np.abs(waveform).max()) < SILENCE_PEAK:
            raise AudioError(f"{self} stays silent at {shown(text)}")
        seconds, characters = len(waveform) / SAMPLING_RATE_HZ, sum(one.isalnum() for one in text)
        if characters > MAX_CHARACTERS_PER_SECOND * seconds * max(speed, 1.0):
            raise AudioError(f"{self} says {characters} letters in {seconds:.1f} s: some of {shown(text)} is left out")
        return waveform


@dataclass(frozen=True)
class SpokenText:
    """A text that is spoken, as [`Voice.speak`] does, when it is loaded; it can be pickled."""

    voice: Voice
    text: str
    pitch: float
    speed: float
    seed: int
    peak: float  # the loudest sample

    def load(self) -> tuple[np.ndarray, int]:
        """Return the speech, float32 of shape `(samples,)`, and its rate in Hz."""
        waveform = self.voice.speak(self.text, self.pitch, self.speed, self.seed)
        return waveform * (self.peak / float(np.abs(waveform).max())), SAMPLING_RATE_HZ


def plain(text: str) -> str:
    """Return a text in one line, without control characters; raise ValueError if there is nothing to say in it."""
    text = " ".join("".join(" " if unicodedata.category(one) == "Cc" else one for one in text).split())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is not Unicode: half of a character at {error.start}") from None
    if not any(unicodedata.category(one)[0] in "LNS" for one in text):
        raise ValueError(f"there is nothing to say in {text!r}" if text else "the text is empty")
    return text


def voice_named(name: str) -> Voice:
    """Return the voice `engine:voice`, or an engine's first, after it has said something; raise CorpusError without it."""
    engine_name, _, voice = name.partition(NAME_MARK)
    engine = known_engines().get(engine_name)
    if engine is None:
        known = ", ".join(known_engines())
        raise CorpusError(f"There is no text-to-speech engine {engine_name!r}; expected {known}, or --tts_command.")
    return _checked(Voice(engine, voice or engine.voices[0]))


def default_voices() -> list[Voice]:
    """Return the good voices of the engines that are installed."""
    voices, reasons = [], []
    for engine in known_engines().values():
        for name in engine.voices:
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
    Return the voices of a program of the user's, one for each name that `{voice}` stands for.

    The command, as a shell would split it (none runs it), has `PLACEHOLDERS`, and may take so many seconds over a text.
    ValueError is raised for others, and for `{voice}` or names without the other; CorpusError if it does not speak.
    """
    try:
        engine = CommandEngine(COMMAND, tuple(shlex.split(command)), timeout_seconds=timeout_seconds)
    except ValueError as error:
        raise ValueError(f"--tts_command {command!r}: {error}") from None
    if engine.takes("voice") != bool(names):
        problem = "has no {voice} for the names of --voices." if names else "has {voice}: name some with --voices."
        raise ValueError(f"--tts_command {command!r} {problem}")
    return [_checked(Voice(engine, name)) for name in names or [""]]


def _checked(voice: Voice) -> Voice:
    """Return the voice after it has said something."""
    voice.engine.check(voice.name)
    try:
        voice.speak(PROBE_TEXT)
    except AudioError as error:
        raise CorpusError(f"The voice {voice} cannot be used: {error}") from error
    return voice
