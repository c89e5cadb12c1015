"""Augmentation of waveforms before the encoder: speed, noise and gain."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr
from audiollm.processing.audio_io import load_waveform

#: Raised when the same settings come to make another sound.
VERSION = 1
#: What each option may range over, widest.
SPEED_LIMITS = (0.5, 2.0)
NOISE_LIMITS_DB = (-5.0, 60.0)
GAIN_LIMITS_DB = (-20.0, 20.0)
#: What a file must be named to count as a recording of noise.
NOISE_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
#: Noise recordings held in memory at a time.
NOISES_KEPT = 8


@dataclass(frozen=True)
class WaveformAugmentation:
    """
    Speed perturbation (Ko et al. 2015), additive noise and gain, each drawn evenly from its range, in this order.

    Attributes:
        speed: lowest and highest factor; 1.1 plays a tenth faster and higher. None leaves the speed.
        noise_snr_db: lowest and highest ratio of the recording's power to the noise's, in dB. None adds no noise.
        gain_db: lowest and highest gain in dB. None leaves the level. Nothing is clipped.
        noise_files: recordings to take noise from; without any, it is white or pink, evenly.

    Raises:
        ValueError: a range is not two numbers within its limits, the lower first; or there are noise files for nothing.
    """

    speed: tuple[float, float] | None = None
    noise_snr_db: tuple[float, float] | None = None
    gain_db: tuple[float, float] | None = None
    noise_files: tuple[str, ...] = ()
    _noise_key: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self):
        check_range("speed", self.speed, SPEED_LIMITS)
        check_range("noise_snr_db", self.noise_snr_db, NOISE_LIMITS_DB)
        check_range("gain_db", self.gain_db, GAIN_LIMITS_DB)
        if self.noise_files and self.noise_snr_db is None:
            raise ValueError("There are noise files but no noise_snr_db, how loud noise is to be.")
        contents = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in self.noise_files)
        object.__setattr__(self, "_noise_key", hashlib.sha256("".join(contents).encode()).hexdigest())

    def key(self) -> str:
        """Tells apart what sounds different: settings, and the contents of the noise files."""
        return repr((VERSION, self.speed, self.noise_snr_db, self.gain_db, self._noise_key))

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """A varied copy of a float32 waveform `(samples,)`; only a change of speed changes its length."""
        if self.speed is not None:
            factor = generator.uniform(*self.speed)
            faster = soxr.resample(waveform, sampling_rate * factor, sampling_rate)
            waveform = faster if len(faster) else waveform
        if self.noise_snr_db is not None:
            noise = self._noise(len(waveform), sampling_rate, generator)
            ratio = 10 ** (generator.uniform(*self.noise_snr_db) / 10)
            power = float(np.square(noise, dtype=np.float64).mean())
            if power > 0:
                wanted = float(np.square(waveform, dtype=np.float64).mean()) / ratio
                waveform = waveform + noise * math.sqrt(wanted / power)
        if self.gain_db is not None:
            waveform = waveform * 10 ** (generator.uniform(*self.gain_db) / 20)
        return np.array(waveform, dtype=np.float32)

    def _noise(self, samples: int, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        if self.noise_files:
            noise = _load_noise(self.noise_files[generator.integers(len(self.noise_files))], sampling_rate)
            start = int(generator.integers(len(noise)))
            return np.resize(np.roll(noise, -start), samples)
        white = generator.standard_normal(samples)
        return white if generator.random() < 0.5 else pink(white)


def pink(white: np.ndarray) -> np.ndarray:
    """White noise `(samples,)` with its power made to fall by 3 dB an octave."""
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, n=len(white))


@lru_cache(maxsize=NOISES_KEPT)
def _load_noise(path: str, sampling_rate: int) -> np.ndarray:
    return load_waveform(path, None, sampling_rate, path)


def check_range(name: str, given: Sequence[float] | None, limits: tuple[float, float]) -> None:
    """
    Raises:
        ValueError: `given` is neither None nor two numbers within the limits, the lower first.
    """
    lowest, highest = limits
    if given is not None and not (len(given) == 2 and lowest <= given[0] <= given[1] <= highest):
        raise ValueError(
            f"{name} is {' '.join(map(str, given))}; expected two numbers, the lower first, from {lowest} to {highest}."
        )


def noise_recordings(folder: str | Path) -> tuple[str, ...]:
    """
    All recordings below a folder, by their names' endings, sorted.

    Raises:
        FileNotFoundError: it is no folder, or has no such file.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--noise_dir {folder} is not a folder.")
    found = tuple(str(path) for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in NOISE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"--noise_dir {folder} holds no recording; expected {', '.join(NOISE_SUFFIXES)}.")
    return found
