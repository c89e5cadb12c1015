"""
Augmentation: of waveforms before the encoder, in variants that the feature cache keeps, and of the encoder's frames.

Rooms and noise are a few lines of numpy, and codecs those of libsndfile. The package audiomentations has most of this too,
but draws from Python's and numpy's global generators, and its rooms and codecs need further compiled packages.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import soundfile
import soxr
import torch
from audiollm.command_line.files import is_audio, sha256_of
from audiollm.command_line.option_parser import SHARE, CheckedOptions, Expected, option
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.audio import load_waveform
from transformers import TrainerCallback

from .collator import pad_rows, pad_windows, resize_slots, slot_runs, unpadded
from .feature_cache import KEY_LENGTH, FeatureCache
from .rows import ExampleEncoder

#: Raised when the same settings come to make another sound.
VERSION = 1
RANGES = ("speed", "noise_snr_db", "gain_db")
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


def within(lowest: float, highest: float) -> Expected:
    """Return the expectation of two numbers in order, not beyond these."""
    words = f"two numbers, the lower first, from {lowest} to {highest}"
    return Expected(words, lambda given: len(given) == 2 and lowest <= given[0] <= given[1] <= highest)


@dataclass(kw_only=True)
class WaveformAugmentation(CheckedOptions):
    """
    Speed perturbation (Ko et al. 2015), rooms (Ko et al. 2017), additive noise, telephones, codecs and gain, in this order.

    Every number is drawn uniformly from its range. A share is the probability that a recording is changed in that way.
    """

    speed: Annotated[list[float], within(0.5, 2.0)] | None = option(
        None, "Lowest and highest factor that variants are played faster by, such as 0.9 1.1, from 0.5 to 2."
    )
    room_share: Annotated[float, SHARE] = option(
        0.0, "Share of variants, from 0 to 1, in a room: simulated, or from --room_dir."
    )
    room_dir: str | None = option(None, "Folder of impulse responses, for --room_share.")
    noise_snr_db: Annotated[list[float], within(-5.0, 60.0)] | None = option(
        None,
        "Lowest and highest ratio of speech to added noise in dB, such as 5 30, from -5 to 60. The noise is white or "
        "pink, or from --noise_dir.",
    )
    noise_dir: str | None = option(None, "Folder of recordings of noise, for --noise_snr_db.")
    telephone_share: Annotated[float, SHARE] = option(
        0.0, "Share of variants, from 0 to 1, over a telephone: 300 to 3400 Hz, and A-law, mu-law or GSM."
    )
    codec_share: Annotated[float, SHARE] = option(
        0.0,
        "Share of variants, from 0 to 1, after MP3, Opus or Vorbis at a low bit rate, or without high frequencies.",
    )
    gain_db: Annotated[list[float], within(-20.0, 20.0)] | None = option(
        None, "Lowest and highest gain in dB, such as -6 6, from -20 to 20. Nothing is clipped."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.noise_dir is not None and self.noise_snr_db is None:
            raise ValueError("--noise_dir needs --noise_snr_db.")
        if self.room_dir is not None and not self.room_share:
            raise ValueError("--room_dir needs --room_share.")
        self._noise_files, self._room_files = (
            () if folder is None else recordings_below(folder, option)
            for folder, option in ((self.noise_dir, "--noise_dir"), (self.room_dir, "--room_dir"))
        )

    def waveform_options(self) -> list[str]:
        """Return the options given that change a recording."""
        return [f"--{name}" for name in (*RANGES, *SHARES) if getattr(self, name)]

    @cached_property
    def key(self) -> str:
        """Return settings, and a digest of the files of noise and rooms: the same for the same sound."""
        noises, rooms = (
            sha256_of("".join(sorted(map(sha256_of, files))).encode())
            for files in (self._noise_files, self._room_files)
        )
        ranges = (getattr(self, name) and tuple(getattr(self, name)) for name in RANGES)
        settings: list[Any] = [VERSION, *ranges, noises]
        if self.room_share:
            settings += ["rooms", self.room_share, REVERB_S, rooms]
        for name in ("telephone_share", "codec_share"):
            if getattr(self, name):
                settings += [name, getattr(self, name)]
        return repr(tuple(settings))

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Return a varied copy of a float32 waveform `(samples,)`; only a change of speed changes its length."""
        if self.speed is not None:
            faster = soxr.resample(waveform, sampling_rate * _drawn(self.speed, generator), sampling_rate)
            waveform = faster if len(faster) else waveform
        if self.room_share and generator.random() < self.room_share:
            response = self._room(sampling_rate, generator)
            size = len(waveform) + len(response) - 1
            heard = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)
            waveform = heard[: len(waveform)]
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
    return generator.uniform(bounds[0], bounds[1])


def simulated_room(reverb_s: float, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return an impulse response: the direct sound, 1 at sample 0, and noise that decays after the first reflection."""
    times = np.arange(1, int(reverb_s * sampling_rate) + 1) / sampling_rate
    tail = generator.standard_normal(len(times)) * 10 ** (-REVERB_DECAY_DB / 20 * times / reverb_s)
    tail[times < generator.uniform(*FIRST_REFLECTION_S)] = 0
    energy = 10 ** (-generator.uniform(*DIRECT_TO_REVERB_DB) / 10)
    return np.concatenate([[1.0], tail * math.sqrt(energy / np.square(tail).sum())])


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
    """Return white noise `(samples,)` with its power made to fall by 3 dB an octave."""
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, n=len(white))


@lru_cache(maxsize=FILES_KEPT)
def _load(path: str, sampling_rate: int) -> np.ndarray:
    return load_waveform(path, None, sampling_rate, path)


def recordings_below(folder: str | Path, option: str) -> tuple[str, ...]:
    """Return all audio files below a folder, sorted. Raises FileNotFoundError where there are none."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{option} {folder} is not a folder.")
    found = tuple(str(path) for path in sorted(Path(folder).rglob("*")) if is_audio(path))
    if not found:
        raise FileNotFoundError(f"{option} {folder} holds no recording; expected audio files such as *.wav or *.flac.")
    return found


# ---- variants in the feature cache -----------------------------------------------------------------------------------


class WaveformVariants:
    """A number of variants of each training recording, which depend on it and the augmentation alone: runs share them."""

    def __init__(self, cache: FeatureCache, augmentation: WaveformAugmentation, count: int):
        self.cache, self.augmentation, self.count = cache, augmentation, count

    def keys(self, key: str) -> list[str]:
        """Return the cache keys of a recording's variants, given that of the recording."""
        return [_digest([key, self.augmentation.key, number])[:KEY_LENGTH] for number in range(self.count)]

    def add(self, sources: Sequence[Sequence[Any]], progress: bool = True, announce: bool = True) -> None:
        """Store what is missing of the variants of all examples that can be used; print what it costs, in one process."""
        encoder = ExampleEncoder(self.cache.processor, self.cache)
        recordings = {key: read for examples in sources for key, read in encoder.recordings(examples).items()}

        def vary(own_key: str, read: Callable[[], Any]) -> np.ndarray:
            waveform, rate = self.cache.processor.load_audio(read()), self.cache.processor.sampling_rate
            return self.augmentation(waveform, rate, np.random.default_rng(int(own_key, 16)))

        variants = {own: partial(vary, own, read) for key, read in recordings.items() for own in self.keys(key)}
        if announce:
            missing = sum(not self.cache.has(own) for own in variants)
            print(
                f"Waveform augmentation: {self.count} variants of each of {len(recordings)} recordings are cached, "
                f"{self.count + 1} times the cache; {missing} are encoded now."
            )
        self.cache.fill(variants, progress)

    def dataset(self, rows: datasets.Dataset, seed: int) -> tuple[datasets.Dataset, "VariantChoice"]:
        """Return rows with other variants in every epoch, of the longest ones' `length`, and the callback that they need."""
        has_slots = "input_ids" in rows.column_names
        table, longer = {}, {}
        for key in dict.fromkeys(key for audio in rows["audio"] for key in audio):
            own = [key, *self.keys(key)]
            frames = [self.cache.lengths(each) for each in own]
            slots = [sum(-(-length // self.cache.processor.stack_factor) for length in each) for each in frames]
            table[key] = list(zip(own, slots))
            sizes = slots if has_slots else list(map(sum, frames))
            longer[key] = max(sizes) - sizes[0]
        lengths = [size + sum(longer[key] for key in audio) for size, audio in zip(rows["length"], rows["audio"])]
        rows = rows.remove_columns("length").add_column("length", lengths)
        choice = VariantChoice(table, self.cache.processor.audio_token_id, seed)
        columns = ["input_ids", "labels", "audio"] if has_slots else ["audio"]
        return rows.with_transform(choice, columns=columns, output_all_columns=True), choice


class VariantChoice(TrainerCallback):
    """
    Chooses for each recording of a row itself or one of its variants, by seed, epoch and row alone.

    So a resumed run, and any number of processes, choose the same. The table has, for each recording's key, key and audio
    tokens of itself and of its variants.
    """

    def __init__(self, table: dict[str, list[tuple[str, int]]], slot_id: int, seed: int):
        self.table, self.slot_id, self.seed = table, slot_id, seed
        #: Shared with worker processes, which may outlive an epoch.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Note the epoch that begins, or that a resumed run is in."""
        self.epoch.fill_(int(state.epoch or 0))

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return a batch of columns with the variants chosen, and their audio tokens and labels."""
        varied: dict[str, list[Any]] = {name: [] for name in rows}
        for number, audio in enumerate(rows["audio"]):
            ids, labels = (rows[name][number] if name in rows else [] for name in ("input_ids", "labels"))
            digest = _digest([self.seed, int(self.epoch), list(map(int, ids)), list(audio)])
            generator = np.random.default_rng(int(digest, 16))
            taken = [self.table[key][generator.integers(len(self.table[key]))] for key in audio]
            new_ids, new_labels = resize_slots(ids, labels, self.slot_id, [slots for _, slots in taken])
            new = {"input_ids": new_ids, "labels": new_labels, "audio": [key for key, _ in taken]}
            for name, column in varied.items():
                column.append(new[name])
        return varied


def _digest(value: Any) -> str:
    return sha256_of(json.dumps(value).encode())


# ---- frames of the encoder, in the step ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureAugmentation:
    """
    SpecAugment (Park et al. 2019, arXiv:1904.08779) on encoder frames instead of log-mel ones, and a change of tempo.

    Draws come from torch's global generator, whose state a checkpoint keeps.
    """

    time_masks: int = 2  # stretches of frames set to zero
    max_time_share: float = 0.1  # of the clip, in each
    channel_masks: int = 2  # bands of channels set to zero
    max_channel_share: float = 0.1  # of the width, in each
    tempo_probability: float = 0.5  # that frames are stretched or squeezed, where lengths may change
    tempo_range: tuple[float, float] = (0.88, 1.14)  # of the new length over the old

    def __call__(self, frames: torch.Tensor, may_change_length: bool = False) -> torch.Tensor:
        """Return a varied copy of one clip's frames `(frames, width)`."""
        if may_change_length and _uniform() < self.tempo_probability:
            low, high = self.tempo_range
            length = max(2, round(len(frames) * (low + (high - low) * _uniform())))
            stretched = torch.nn.functional.interpolate(frames.float().T[None], size=length, mode="linear")[0].T
            frames = stretched.to(frames.dtype)
        frames = frames.clone()
        length, width = frames.shape
        for _ in range(self.time_masks):
            start, size = _span(length, self.max_time_share)
            frames[start : start + size] = 0
        for _ in range(self.channel_masks):
            start, size = _span(width, self.max_channel_share)
            frames[:, start : start + size] = 0
        return frames


def _uniform() -> float:
    return float(torch.rand(()))


def _span(total: int, max_share: float) -> tuple[int, int]:
    """Return a random stretch of up to `max_share` of `total`: where it starts, and its size."""
    size = int(_uniform() * (max_share * total + 1))
    return int(_uniform() * (total - size + 1)), size


class BatchAugmentation:
    """Varies encoder output and audio tokens of a batch, in the step: the collator, which works ahead, must not draw."""

    def __init__(self, processor: AudioLlmProcessor, features: FeatureAugmentation | None = None):
        self.processor, self.features = processor, features or FeatureAugmentation()

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a varied copy of a batch; one without `encoded_audio` comes back as it is."""
        if batch.get("encoded_audio") is None:
            return batch
        lengths = batch["encoded_audio_lengths"].tolist()
        windows = iter([window[:length] for window, length in zip(batch["encoded_audio"], lengths)])
        varied: list[torch.Tensor] = []
        rows = unpadded(batch) if "input_ids" in batch else []
        if not rows:  # of stage align: clips of one window
            varied = [self.features(window, True) for window in windows]
        for index, (ids, labels) in enumerate(rows):
            new_runs = []
            for slots in slot_runs(ids, self.processor.audio_token_id):
                recording = []
                while slots > 0:
                    recording.append(next(windows))
                    slots -= self._slots(recording[-1])
                # Only a recording of one window may change its length: others would no longer fit theirs.
                recording = [self.features(window, len(recording) == 1) for window in recording]
                new_runs.append(sum(map(self._slots, recording)))
                varied += recording
            rows[index] = resize_slots(ids, labels, self.processor.audio_token_id, new_runs)
        padded = pad_windows(varied)
        if rows:
            padded |= pad_rows(rows, self.processor.tokenizer.pad_token_id)
        return {**batch, **{name: tensor.to(batch["encoded_audio"].device) for name, tensor in padded.items()}}

    def _slots(self, window: torch.Tensor) -> int:
        return -(-len(window) // self.processor.stack_factor)
