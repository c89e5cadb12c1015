"""Tasks that need no download: the studio prompts, unseen speakers, texts and choices, and recordings without speech."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.corpora.unseen import load_unseen_speech
from audiollm.files import is_audio
from audiollm.processing.audio_io import SAMPLING_RATE_HZ

from .settings import Settings
from .task import Item, Problem, TaskError

RETENTION_FILE = Path(__file__).parent / "retention.yaml"
#: Recordings without speech: seconds, seed of the noises, root mean square of the loud and the quiet ones.
NO_SPEECH_SECONDS = (0.5, 2.0, 8.0, 30.0)
NO_SPEECH_SEED = 20_250_101
LOUD_RMS, QUIET_RMS = 0.1, 0.003
#: Power falls with frequency to this power: none, pink and brown noise.
NOISE_SLOPES = {"white noise": 0.0, "pink noise": 1.0, "brown noise": 2.0}
HUM_HZ, HUM_HARMONICS = 50.0, (1, 2, 3, 5)
CLICKS_PER_S = 2.0
FULL_SCALE = 0.99


def studio_prompts(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """The held-out studio prompts."""
    _no_copy(name, data)
    for row in load_studio_prompts("test"):
        extra = {"speaker": row["speaker"], "language": "en", "duration_s": row["duration_s"]}
        yield Item(row["id"], settings.prompt, [row["audio"]], [row["text"]], extra)


def unseen_speech(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """The ten clips of speakers that no bundled corpus holds."""
    _no_copy(name, data)
    for row in load_unseen_speech():
        extra = {
            **{"speaker": row["speaker"], "category": row["source"], "language": "en"},
            "duration_s": row["duration_s"],
        }
        yield Item(row["id"], settings.prompt, [row["audio"]], [row["text"]], extra)


def no_speech(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """
    Recordings in which nobody speaks: made ones, or all that lie in a folder.

    Raises:
        TaskError: the folder is not there, or holds no recordings.
    """
    if data is None:
        for category, seconds in ((category, seconds) for category in _MADE for seconds in NO_SPEECH_SECONDS):
            identity = f"{category.replace(' ', '_').replace(',', '')}-{seconds:g}s"
            recording = {
                "array": made_recording(category, seconds),
                "sampling_rate": SAMPLING_RATE_HZ,
                "path": f"{identity}.wav",
            }
            yield Item(identity, settings.prompt, [recording], [], {"category": category, "duration_s": seconds})
        return
    if not os.path.isdir(data):
        raise TaskError(f"Task {name!r}: --data {data!r} is no folder; expected one with recordings without speech.")
    for folder, folders, files in os.walk(data):
        folders.sort()
        for file in sorted(filter(is_audio, files)):
            path = os.path.abspath(os.path.join(folder, file))
            place = Path(os.path.relpath(path, data))
            category = place.parent.as_posix() if place.parent.name else "recordings"
            yield Item(place.as_posix(), settings.prompt, [path], [], {"category": category})


def made_recording(category: str, seconds: float) -> np.ndarray:
    """
    Sound without speech, the same every time.

    Args:
        category: one of those of the task, such as "white noise, quiet".
        seconds: its length.

    Returns:
        float32 of shape `(samples,)` at 16 kHz, within [-1, 1].
    """
    kind, rms = _MADE[category]
    samples = int(seconds * SAMPLING_RATE_HZ)
    generator = np.random.default_rng([NO_SPEECH_SEED, list(_MADE).index(category), samples])
    if kind == "silence":
        return np.zeros(samples, np.float32)
    if kind in NOISE_SLOPES:
        spectrum = np.fft.rfft(generator.standard_normal(samples))
        frequencies = np.maximum(np.arange(len(spectrum)), 1)
        waveform = np.fft.irfft(spectrum * frequencies ** (-NOISE_SLOPES[kind] / 2), samples)
    elif kind == "hum":
        times = np.arange(samples) / SAMPLING_RATE_HZ
        waves = [np.sin(2 * np.pi * HUM_HZ * each * times) / each for each in HUM_HARMONICS]
        waveform = np.sum(waves, axis=0)
    else:
        waveform = (generator.random(samples) < CLICKS_PER_S / SAMPLING_RATE_HZ).astype(np.float64)
        waveform[samples // 2] = 1.0
    waveform = waveform * rms / np.sqrt(np.mean(np.square(waveform)))
    return np.clip(waveform, -FULL_SCALE, FULL_SCALE).astype(np.float32)


#: Made recordings by name: what is heard, and how loud.
_MADE: dict[str, tuple[str, float]] = {
    "silence": ("silence", 0.0),
    **{kind: (kind, LOUD_RMS) for kind in NOISE_SLOPES},
    "white noise, quiet": ("white noise", QUIET_RMS),
    "hum": ("hum", LOUD_RMS),
    "clicks": ("clicks", QUIET_RMS),
}


@lru_cache(maxsize=1)
def _retention() -> dict[str, list[Any]]:
    return yaml.safe_load(RETENTION_FILE.read_text(encoding="utf-8"))


def retention_texts(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """Texts, each its own prompt, without a right answer."""
    _no_copy(name, data)
    for number, entry in enumerate(_retention()["texts"], start=1):
        yield Item(f"text-{number:03d}", entry["text"].strip(), [], [], {"category": entry["category"]})


def retention_choices(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """Written questions with four answers."""
    _no_copy(name, data)
    for number, entry in enumerate(_retention()["choices"], start=1):
        choices = {letter: str(entry[letter]) for letter in "ABCD"}
        lines = [entry["question"], *(f"{letter}. {text}" for letter, text in choices.items())]
        prompt = "\n".join([*lines, "Answer with one letter, A, B, C or D."])
        extra = {"question": entry["question"], "choices": choices, "category": entry["category"]}
        yield Item(f"choice-{number:03d}", prompt, [], [entry["answer"]], extra)


def _no_copy(name: str, data: str | None) -> None:
    if data is not None:
        raise TaskError(f"Task {name!r} ships with the package and takes no --data, got {data!r}.")


__all__ = ["made_recording", "no_speech", "retention_choices", "retention_texts", "studio_prompts", "unseen_speech"]
