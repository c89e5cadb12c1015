"""
Make recordings in which nobody speaks, for `audiollm train --stage align --no_speech_dir`: noises, knocks, engines, music, silence.

    python shipped_adapter/recipe/no_speech.py data/no_speech --clips 400

Everything is drawn from a seed. Recordings of your own rooms and music are better: put them into the same folder.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000
SECONDS = (0.5, 12.0)
LEVEL_DBFS = (-50.0, -15.0)
#: Semitones of the notes that music is made of, from its lowest.
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 3, 5, 7, 10))
HARMONICS = 6


def noise(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Noise whose power falls or rises by up to 9 dB an octave."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequencies = np.maximum(np.arange(len(spectrum)), 1)
    return np.fft.irfft(spectrum * frequencies ** generator.uniform(-1.5, 0.5), samples)


def wind(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Noise that swells and fades."""
    gusts = np.interp(np.arange(samples), np.linspace(0, samples, 9), generator.uniform(0.05, 1, 9))
    return noise(generator, samples) * gusts


def knocks(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Short bursts that ring on, at random moments, over faint noise."""
    found = 0.01 * generator.standard_normal(samples)
    for _ in range(1 + samples * generator.poisson(4) // RATE_HZ):
        start, length = int(generator.integers(samples)), int(generator.uniform(0.01, 0.2) * RATE_HZ)
        part = np.arange(min(length, samples - start))
        burst = generator.standard_normal(len(part)) + np.sin(part * generator.uniform(0.02, 0.8))
        found[start : start + len(part)] += burst * np.exp(-part * generator.uniform(3, 12) / length)
    return found


def engine(generator: np.random.Generator, samples: int) -> np.ndarray:
    """A hum of mains or motors with harmonics, its pitch steady or gliding."""
    pitch = generator.uniform(30, 220) * np.linspace(1, generator.choice([1, 1, 0.7, 1.5]), samples)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    partials = generator.exponential(1, HARMONICS) / np.arange(1, HARMONICS + 1)
    hum = sum(share * np.sin(number * phase) for number, share in enumerate(partials, start=1))
    return hum + 0.1 * noise(generator, samples)


def music(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Notes of a scale, one or several at a time, plucked or held."""
    scale, lowest = SCALES[generator.integers(len(SCALES))], generator.uniform(80, 400)
    length = int(RATE_HZ / generator.uniform(0.7, 8))
    fading, bright = generator.choice([0.3, 3, 8]), generator.uniform(0.5, 2)
    found = np.zeros(samples)
    for start in range(0, samples, length):
        seconds = np.arange(min(2 * length, samples - start)) / RATE_HZ
        for _ in range(generator.integers(1, 4)):
            semitone = scale[generator.integers(len(scale))] + 12 * generator.integers(0, 2)
            hertz = lowest * 2 ** (semitone / 12)
            note = sum(np.sin(2 * np.pi * n * hertz * seconds) / n**bright for n in range(1, HARMONICS))
            found[start : start + len(seconds)] += note * np.exp(-fading * seconds) * np.minimum(1, seconds * 200)
    return found


def silence(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Digital silence."""
    return np.zeros(samples)


KINDS = (noise, wind, knocks, engine, music, music, silence)


def make(number: int, seed: int) -> np.ndarray:
    """Return a clip, float32 of shape `(samples,)`; the same for the same number and seed."""
    generator = np.random.default_rng((seed, number))
    samples = int(generator.uniform(*SECONDS) * RATE_HZ)
    sound = KINDS[number % len(KINDS)](generator, samples)
    if number % 3 == 0:
        sound = sound / (np.std(sound) or 1.0) + generator.uniform(0, 0.5) * noise(generator, samples)
    level = 10 ** (generator.uniform(*LEVEL_DBFS) / 20)
    return np.clip(sound * level / (np.std(sound) or 1.0), -1, 1).astype(np.float32)


def main() -> None:
    """Write the recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder for the recordings")
    parser.add_argument("--clips", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for number in range(options.clips):
        path = options.output_dir / f"{KINDS[number % len(KINDS)].__name__}-{number:04d}.flac"
        soundfile.write(path, make(number, options.seed), RATE_HZ)
    print(f"{options.clips} recordings without speech in {options.output_dir}")


if __name__ == "__main__":
    main()
