"""Recordings for tests of long audio: real prompts in a row, with pauses, and noises that nobody speaks in."""

from collections.abc import Sequence

import numpy as np
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.processing import load_waveform

RATE = 16_000


def prompts(count: int) -> list[np.ndarray]:
    """The first real test prompts, as waveforms `(samples,)`."""
    return [load_waveform(row["audio"]) for row in load_studio_prompts("test").select(range(count))]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """White noise, as a waveform `(samples,)`."""
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE), np.float32) / 10


def silence(seconds: float) -> np.ndarray:
    """Silence as a 16-bit recorder leaves it."""
    generator = np.random.default_rng(0)
    return (1e-5 * generator.standard_normal(int(seconds * RATE))).astype(np.float32)


def in_a_row(clips: Sequence[np.ndarray], pauses_s: Sequence[float]) -> np.ndarray:
    """Clips one after the other, each with silence before it; as many pauses as clips, and one more for the end."""
    parts: list[np.ndarray] = []
    for clip, pause in zip(clips, pauses_s):
        parts += [silence(pause), clip]
    return np.concatenate([*parts, silence(pauses_s[len(clips)])])


def noises(seconds: float, level_dbfs: float) -> dict[str, np.ndarray]:
    """Return what a room without a voice sounds like, by name, at a level (RMS)."""
    generator = np.random.default_rng(0)
    samples = int(seconds * RATE)
    times = np.arange(samples) / RATE
    white = generator.standard_normal(samples)
    frequencies = np.maximum(np.fft.rfftfreq(samples), 1 / samples)
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    sounds = {
        "white": white,
        "pink": np.fft.irfft(spectrum / np.sqrt(frequencies), samples),
        "brown": np.fft.irfft(spectrum / frequencies, samples),
        "hum": sum(np.sin(2 * np.pi * 50 * harmonic * times) / harmonic for harmonic in (1, 3, 5)),
        "tone": np.sin(2 * np.pi * 440 * times),
    }
    scale = 10 ** (level_dbfs / 20)
    return {name: np.clip(scale * sound / sound.std(), -1, 1).astype(np.float32) for name, sound in sounds.items()}
