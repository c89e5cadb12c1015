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
from audiollm.files import is_audio
from audiollm.processing.audio import load_waveform

#: Raised when the same settings come to make another sound.
VERSION = 1
#: What each option may range over, widest.
SPEED_LIMITS = (0.5, 2.0)
REVERB_LIMITS_S = (0.05, 3.0)
NOISE_LIMITS_DB = (-5.0, 60.0)
GAIN_LIMITS_DB = (-20.0, 20.0)
#: Reverberation times of rooms from a small office to a hall.
DEFAULT_REVERB_S = (0.15, 0.7)
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

Range = tuple[float, float]


@dataclass(frozen=True)
class WaveformAugmentation:
    """
    Speed perturbation (Ko et al. 2015), rooms (Ko et al. 2017), additive noise, telephones, codecs and gain, in this order.

    Every number is drawn evenly from its range. A share is the chance that a recording is changed in that way.

    Attributes:
        speed: lowest and highest factor; 1.1 plays a tenth faster and higher. None leaves the speed.
        noise_snr_db: lowest and highest ratio of the recording's power to the noise's, in dB. None adds no noise.
        gain_db: lowest and highest gain in dB. None leaves the level. Nothing is clipped.
        noise_files: recordings to take noise from; without any, it is white or pink, evenly.
        room_share: of rooms.
        reverb_s: lowest and highest reverberation time (RT60) of rooms that are made up, of decaying noise.
        room_files: impulse responses to use instead of made-up rooms.
        telephone_share: of the telephone's band with one of its codecs.
        codec_share: of MP3, Opus or Vorbis at few bits, or the loss of the highs, evenly.

    Raises:
        ValueError: a range is not two numbers within its limits, the lower first; a share is not from 0 to 1; or there
            are files for nothing.
    """

    speed: Range | None = None
    noise_snr_db: Range | None = None
    gain_db: Range | None = None
    noise_files: tuple[str, ...] = ()
    room_share: float = 0.0
    reverb_s: Range = DEFAULT_REVERB_S
    room_files: tuple[str, ...] = ()
    telephone_share: float = 0.0
    codec_share: float = 0.0

    def __post_init__(self):
        check_range("speed", self.speed, SPEED_LIMITS)
        check_range("noise_snr_db", self.noise_snr_db, NOISE_LIMITS_DB)
        check_range("gain_db", self.gain_db, GAIN_LIMITS_DB)
        check_range("reverb_s", self.reverb_s, REVERB_LIMITS_S)
        for name in ("room_share", "telephone_share", "codec_share"):
            check_share(name, getattr(self, name))
        if self.noise_files and self.noise_snr_db is None:
            raise ValueError("There are noise files but no noise_snr_db, how loud noise is to be.")
        if self.room_files and not self.room_share:
            raise ValueError("There are room files but no room_share, how often rooms are to be heard.")

    @cached_property
    def _key(self) -> str:
        settings: list[Any] = [VERSION, self.speed, self.noise_snr_db, self.gain_db, _digest(self.noise_files)]
        if self.room_share:
            settings += ["rooms", self.room_share, self.reverb_s, _digest(self.room_files)]
        for name in ("telephone_share", "codec_share"):
            if getattr(self, name):
                settings += [name, getattr(self, name)]
        return repr(tuple(settings))

    def key(self) -> str:
        """Tells apart what sounds different: settings, and the contents of the files of noise and rooms."""
        return self._key

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """A varied copy of a float32 waveform `(samples,)`; only a change of speed changes its length."""
        if self.speed is not None:
            factor = generator.uniform(*self.speed)
            faster = soxr.resample(waveform, sampling_rate * factor, sampling_rate)
            waveform = faster if len(faster) else waveform
        if self.room_share and generator.random() < self.room_share:
            waveform = convolve(waveform, self._room(sampling_rate, generator))
        if self.noise_snr_db is not None:
            noise = self._noise(len(waveform), sampling_rate, generator)
            ratio = 10 ** (generator.uniform(*self.noise_snr_db) / 10)
            power = float(np.square(noise, dtype=np.float64).mean())
            if power > 0:
                wanted = float(np.square(waveform, dtype=np.float64).mean()) / ratio
                waveform = waveform + noise * math.sqrt(wanted / power)
        if self.telephone_share and generator.random() < self.telephone_share:
            waveform = through_telephone(waveform, sampling_rate, generator)
        if self.codec_share and generator.random() < self.codec_share:
            waveform = through_codec(waveform, sampling_rate, generator)
        if self.gain_db is not None:
            waveform = waveform * 10 ** (generator.uniform(*self.gain_db) / 20)
        return np.array(waveform, dtype=np.float32)

    def _noise(self, samples: int, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        if self.noise_files:
            noise = _load(self.noise_files[generator.integers(len(self.noise_files))], sampling_rate)
            start = int(generator.integers(len(noise)))
            return np.resize(np.roll(noise, -start), samples)
        white = generator.standard_normal(samples)
        return white if generator.random() < 0.5 else pink(white)

    def _room(self, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        if not self.room_files:
            return made_up_room(generator.uniform(*self.reverb_s), sampling_rate, generator)
        response = _load(self.room_files[generator.integers(len(self.room_files))], sampling_rate)
        loudest = int(np.abs(response).argmax())
        return response[loudest:] / (response[loudest] or 1.0)


def made_up_room(reverb_s: float, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
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


def check_range(name: str, given: Sequence[float] | None, limits: Range) -> None:
    """
    Raises:
        ValueError: `given` is neither None nor two numbers within the limits, the lower first.
    """
    lowest, highest = limits
    if given is not None and not (len(given) == 2 and lowest <= given[0] <= given[1] <= highest):
        raise ValueError(
            f"{name} is {' '.join(map(str, given))}; expected two numbers, the lower first, from {lowest} to {highest}."
        )


def check_share(name: str, given: float) -> None:
    """
    Raises:
        ValueError: `given` is not from 0 to 1.
    """
    if not 0 <= given <= 1:
        raise ValueError(f"{name} is {given}; expected a share from 0 to 1.")


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
