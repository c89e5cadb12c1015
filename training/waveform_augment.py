"""
Augmentation of waveforms before the encoder: speed, rooms, noise, telephones, codecs and gain.

Rooms and noise are a few lines of numpy, and codecs those of libsndfile. The package audiomentations has most of this too,
but draws from Python's and numpy's global generators, and its rooms and codecs need further compiled packages.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from audiollm.command_line.files import is_audio
from audiollm.command_line.option_parser import option
from audiollm.processing.audio import load_waveform

#: Raised when the same settings come to make another sound.
VERSION = 1
#: What each option may range over, widest.
SPEED_LIMITS = (0.5, 2.0)
NOISE_LIMITS_DB = (-5.0, 60.0)
GAIN_LIMITS_DB = (-20.0, 20.0)
RANGES = {"speed": SPEED_LIMITS, "noise_snr_db": NOISE_LIMITS_DB, "gain_db": GAIN_LIMITS_DB}
SHARES = ("room_share", "telephone_share", "codec_share")
#: Reverberation times (RT60) of rooms from a small office to a hall.
REVERB_S = (0.15, 0.7)
#: Ratio of the direct sound to the room's, and how long after it the room's begins.
DIRECT_TO_REVERB_DB = (0.0, 12.0)
FIRST_REFLECTION_S = (0.001, 0.02)
#: Decibels by which a room's sound has fallen after its reverberation time (RT60).
REVERB_DECAY_DB = 60.0
#: Passband and rate of telephones (ITU-T G.711, GSM 06.10), and how many octaves its edges take.
TELEPHONE_BAND_HZ = (300.0, 3400.0)
TELEPHONE_RATE_HZ = 8000
TELEPHONE_CODECS = (("WAV", "ULAW"), ("WAV", "ALAW"), ("WAV", "GSM610"))
#: Of libsndfile: container, codec, lowest and highest degree of compression. About 10 to 40 kbit/s for speech at 16 kHz.
CODECS = (("OGG", "OPUS", 0.9, 1.0), ("OGG", "VORBIS", 0.8, 1.0), ("MP3", "MPEG_LAYER_III", 0.7, 0.8))
#: Rates whose half cuts the highs off as cheap microphones and old recordings do.
DULL_RATES_HZ = (5500.0, 13_000.0)
#: Recordings of noise and rooms held in memory at a time.
FILES_KEPT = 32


@dataclass(kw_only=True)
class WaveformAugmentation:
    """
    Speed perturbation (Ko et al. 2015), rooms (Ko et al. 2017), additive noise, telephones, codecs and gain, in this order.

    Every number is drawn uniformly from its range. A share is the probability that a recording is changed in that way.

    Raises:
        ValueError: a range is not two numbers within its limits, the lower first; a share is not from 0 to 1; or there
            is a folder for nothing.
        FileNotFoundError: a folder holds no recording.
    """

    speed: list[float] | None = option(
        None,
        "Lowest and highest factor that variants are played faster by, such as 0.9 1.1, from "
        f"{SPEED_LIMITS[0]} to {SPEED_LIMITS[1]}.",
    )
    room_share: float = option(0.0, "Share of variants, from 0 to 1, in a room: simulated, or from --room_dir.")
    room_dir: str | None = option(None, "Folder of impulse responses, for --room_share.")
    noise_snr_db: list[float] | None = option(
        None,
        "Lowest and highest ratio of speech to added noise in dB, such as 5 30, from "
        f"{NOISE_LIMITS_DB[0]:g} to {NOISE_LIMITS_DB[1]:g}. The noise is white or pink, or from --noise_dir.",
    )
    noise_dir: str | None = option(None, "Folder of recordings of noise, for --noise_snr_db.")
    telephone_share: float = option(
        0.0,
        f"Share of variants, from 0 to 1, over a telephone: {TELEPHONE_BAND_HZ[0]:g} to "
        f"{TELEPHONE_BAND_HZ[1]:g} Hz, and A-law, mu-law or GSM.",
    )
    codec_share: float = option(
        0.0,
        "Share of variants, from 0 to 1, after MP3, Opus or Vorbis at a low bit rate, or without high frequencies.",
    )
    gain_db: list[float] | None = option(
        None,
        "Lowest and highest gain in dB, such as -6 6, from "
        f"{GAIN_LIMITS_DB[0]:g} to {GAIN_LIMITS_DB[1]:g}. Nothing is clipped.",
    )

    def __post_init__(self):
        for name, (lowest, highest) in RANGES.items():
            given = getattr(self, name)
            if given is not None and not (len(given) == 2 and lowest <= given[0] <= given[1] <= highest):
                raise ValueError(
                    f"--{name} is {' '.join(map(str, given))}; expected two numbers, the lower first, from {lowest} to "
                    f"{highest}."
                )
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected a share from 0 to 1.")
        if self.noise_dir is not None and self.noise_snr_db is None:
            raise ValueError("--noise_dir needs --noise_snr_db.")
        if self.room_dir is not None and not self.room_share:
            raise ValueError("--room_dir needs --room_share.")
        self._noise_files = recordings_below(self.noise_dir, "--noise_dir") if self.noise_dir is not None else ()
        self._room_files = recordings_below(self.room_dir, "--room_dir") if self.room_dir is not None else ()

    def options(self) -> list[str]:
        """Return the options given that change a recording."""
        return [f"--{name}" for name in (*RANGES, *SHARES) if getattr(self, name)]

    @cached_property
    def key(self) -> str:
        """Settings, and a digest of the files of noise and rooms: the same for the same sound."""
        ranges = (None if getattr(self, name) is None else tuple(getattr(self, name)) for name in RANGES)
        settings: list[Any] = [VERSION, *ranges, _digest(self._noise_files)]
        if self.room_share:
            settings += ["rooms", self.room_share, REVERB_S, _digest(self._room_files)]
        for name in ("telephone_share", "codec_share"):
            if getattr(self, name):
                settings += [name, getattr(self, name)]
        return repr(tuple(settings))

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Return a varied copy of a float32 waveform `(samples,)`; only a change of speed changes its length."""
        if self.speed is not None:
            factor = _drawn(self.speed, generator)
            faster = soxr.resample(waveform, sampling_rate * factor, sampling_rate)
            waveform = faster if len(faster) else waveform
        if self.room_share and generator.random() < self.room_share:
            waveform = convolve(waveform, self._room(sampling_rate, generator))
        if self.noise_snr_db is not None:
            noise = self._noise(len(waveform), sampling_rate, generator)
            ratio = 10 ** (_drawn(self.noise_snr_db, generator) / 10)
            power = float(np.square(noise, dtype=np.float64).mean())
            if power > 0:
                wanted = float(np.square(waveform, dtype=np.float64).mean()) / ratio
                waveform = waveform + noise * math.sqrt(wanted / power)
        if self.telephone_share and generator.random() < self.telephone_share:
            waveform = through_telephone(waveform, sampling_rate, generator)
        if self.codec_share and generator.random() < self.codec_share:
            waveform = through_codec(waveform, sampling_rate, generator)
        if self.gain_db is not None:
            waveform = waveform * 10 ** (_drawn(self.gain_db, generator) / 20)
        return np.array(waveform, dtype=np.float32)

    def _noise(self, samples: int, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        if self._noise_files:
            noise = _load(self._noise_files[generator.integers(len(self._noise_files))], sampling_rate)
            start = int(generator.integers(len(noise)))
            return np.resize(np.roll(noise, -start), samples)
        white = generator.standard_normal(samples)
        return white if generator.random() < 0.5 else pink(white)

    def _room(self, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        if not self._room_files:
            return simulated_room(generator.uniform(*REVERB_S), sampling_rate, generator)
        response = _load(self._room_files[generator.integers(len(self._room_files))], sampling_rate)
        loudest = int(np.abs(response).argmax())
        return response[loudest:] / (response[loudest] or 1.0)


def _drawn(bounds: Sequence[float], generator: np.random.Generator) -> float:
    lowest, highest = bounds
    return float(generator.uniform(lowest, highest))


def simulated_room(reverb_s: float, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return an impulse response: the direct sound, 1 at sample 0, and noise that decays after the first reflection."""
    times = np.arange(1, int(reverb_s * sampling_rate) + 1) / sampling_rate
    tail = generator.standard_normal(len(times)) * 10 ** (-REVERB_DECAY_DB / 20 * times / reverb_s)
    tail[times < generator.uniform(*FIRST_REFLECTION_S)] = 0
    energy = 10 ** (-generator.uniform(*DIRECT_TO_REVERB_DB) / 10)
    return np.concatenate([[1.0], tail * math.sqrt(energy / np.square(tail).sum())])


def convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return a waveform as heard through an impulse response, of its own length."""
    size = len(waveform) + len(response) - 1
    return np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]


def through_telephone(waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return a waveform of the telephone's band, after one of its codecs."""
    narrow = soxr.resample(waveform, sampling_rate, TELEPHONE_RATE_HZ)
    lowest, highest = TELEPHONE_BAND_HZ
    frequencies = np.fft.rfftfreq(max(len(narrow), 1), 1 / TELEPHONE_RATE_HZ)
    # Butterworth of order 4 below and 8 above, without their phase.
    gains = 1 / np.sqrt((1 + (lowest / np.maximum(frequencies, 1)) ** 8) * (1 + (frequencies / highest) ** 16))
    narrow = np.fft.irfft(np.fft.rfft(narrow) * gains, len(narrow)) if len(narrow) else narrow
    codec = TELEPHONE_CODECS[generator.integers(len(TELEPHONE_CODECS))]
    heard = encode_and_decode(narrow, TELEPHONE_RATE_HZ, *codec)
    return fit(soxr.resample(heard, TELEPHONE_RATE_HZ, sampling_rate), len(waveform))


def through_codec(waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return a waveform after a codec of few bits, or without its highs."""
    choice = int(generator.integers(len(CODECS) + 1))
    if choice == len(CODECS):
        rate = generator.uniform(*DULL_RATES_HZ)
        return fit(soxr.resample(soxr.resample(waveform, sampling_rate, rate), rate, sampling_rate), len(waveform))
    container, codec, lowest, highest = CODECS[choice]
    degree = generator.uniform(lowest, highest)
    return fit(encode_and_decode(waveform, sampling_rate, container, codec, degree), len(waveform))


def encode_and_decode(
    waveform: np.ndarray, sampling_rate: int, container: str, codec: str, compression: float | None = None
) -> np.ndarray:
    """Return what a codec of libsndfile makes of a waveform; it is scaled to the codec's range and back."""
    peak = float(np.abs(waveform).max(initial=0))
    if peak == 0:
        return waveform
    options: dict[str, Any] = {} if compression is None else {"compression_level": compression}
    if codec.startswith("MPEG"):
        options["bitrate_mode"] = "CONSTANT"
    file = io.BytesIO()
    scaled = np.asarray(waveform * (0.9 / peak), dtype=np.float32)
    soundfile.write(file, scaled, sampling_rate, format=container, subtype=codec, **options)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0] * (peak / 0.9)


def fit(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Return a waveform cut, or filled with zeros, to a length."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform))))


def pink(white: np.ndarray) -> np.ndarray:
    """White noise `(samples,)` with its power made to fall by 3 dB an octave."""
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, n=len(white))


def _digest(files: Sequence[str]) -> str:
    contents = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(contents).encode()).hexdigest()


@lru_cache(maxsize=FILES_KEPT)
def _load(path: str, sampling_rate: int) -> np.ndarray:
    return load_waveform(path, None, sampling_rate, path)


def recordings_below(folder: str | Path, option: str) -> tuple[str, ...]:
    """
    Return all audio files below a folder, sorted.

    Raises:
        FileNotFoundError: it is no folder, or has no such file.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{option} {folder} is not a folder.")
    found = tuple(str(path) for path in sorted(Path(folder).rglob("*")) if is_audio(path))
    if not found:
        raise FileNotFoundError(f"{option} {folder} holds no recording; expected audio files such as *.wav or *.flac.")
    return found
