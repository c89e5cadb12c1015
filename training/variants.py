"""
Augmented waveforms in the feature cache, so that they cost no encoder time in a step.

Each recording gets a few variants, encoded once and cached as the recording itself is; training takes one of them, or the
recording, in every epoch. With N variants the cache is N + 1 times as large.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from transformers import TrainerCallback

from .dataset import resize_slots
from .encoding import EXAMPLE_ERRORS, ExampleEncoder
from .feature_cache import KEY_LENGTH, FeatureCache
from .waveform_augment import WaveformAugmentation

#: The sizes of a row that other variants change, as of its longest.
SIZE_COLUMNS = ("length", "audio_frames")


class WaveformVariants:
    """A number of variants of each training recording, which depend on it and the augmentation alone: runs share them."""

    def __init__(self, cache: FeatureCache, augmentation: WaveformAugmentation, count: int):
        self.cache = cache
        self.augmentation = augmentation
        self.count = count

    def keys(self, key: str) -> list[str]:
        """Return the cache keys of a recording's variants, given that of the recording."""
        settings = (key, self.augmentation.key)
        return [_digest([*settings, number])[:KEY_LENGTH] for number in range(self.count)]

    def add(self, sources: Sequence[Sequence[Any]], progress: bool = True, announce: bool = True) -> None:
        """Store what is missing of the variants of all examples that can be used; print what it costs, in one process."""
        encoder = ExampleEncoder(self.cache.processor, self.cache)
        # Where each lies: recordings within a table are read again when they are encoded, not held.
        places: dict[str, tuple[Sequence[Any], int, int]] = {}
        for examples in sources:
            for index in range(len(examples)):
                for place, recording in enumerate(examples[index].recordings):
                    with suppress(*EXAMPLE_ERRORS):
                        places.setdefault(encoder.measure(recording)[0], (examples, index, place))

        def vary(own_key: str, examples: Sequence[Any], index: int, place: int) -> np.ndarray:
            waveform = self.cache.processor.load_audio(encoder.content(examples[index].recordings[place]))
            generator = np.random.default_rng(int(own_key, 16))
            return self.augmentation(waveform, self.cache.processor.sampling_rate, generator)

        variants = {own: partial(vary, own, *place) for key, place in places.items() for own in self.keys(key)}
        if announce:
            missing = sum(not self.cache.has(own) for own in variants)
            print(
                f"Waveform augmentation: {self.count} variants of each of {len(places)} recordings are cached, "
                f"{self.count + 1} times the cache; {missing} are encoded now."
            )
        self.cache.fill(variants, progress)

    def dataset(self, rows: datasets.Dataset, seed: int) -> tuple[datasets.Dataset, "VariantChoice"]:
        """
        Return rows that take other variants in every epoch, and the callback that tells them the epoch.

        Rows have `audio`, the keys of recordings that were added, a list or one; and `input_ids` and `labels` where
        recordings have audio tokens in them. Each is as long in `length` and `audio_frames` as with its longest variants.
        """
        keys = dict.fromkeys(key for audio in rows["audio"] for key in _as_list(audio))
        frames = {key: [self.cache.lengths(own) for own in (key, *self.keys(key))] for key in keys}
        stack = self.cache.processor.stack_factor
        slots = {key: [sum(-(-n // stack) for n in windows) for windows in each] for key, each in frames.items()}
        totals = {key: [sum(windows) for windows in each] for key, each in frames.items()}
        has_slots = "input_ids" in rows.column_names
        growing = {"length": slots if has_slots else totals, "audio_frames": totals}
        for column in set(SIZE_COLUMNS) & set(rows.column_names):
            sizes = [
                size + sum(max(growing[column][key]) - growing[column][key][0] for key in _as_list(audio))
                for size, audio in zip(rows[column], rows["audio"])
            ]
            rows = rows.remove_columns(column).add_column(column, sizes)
        table = {key: list(zip((key, *self.keys(key)), slots[key])) for key in keys}
        choice = VariantChoice(table, self.cache.processor.audio_token_id, seed)
        columns = ["audio", *(("input_ids", "labels") if has_slots else ())]
        return rows.with_transform(choice, columns=columns, output_all_columns=True), choice


class VariantChoice(TrainerCallback):
    """
    Chooses for each recording of a row itself or one of its variants, by seed, epoch and row alone.

    So a resumed run, and any number of processes, choose the same. The table has, for each recording's key, key and audio
    tokens of itself and of its variants.
    """

    def __init__(self, table: dict[str, list[tuple[str, int]]], slot_id: int, seed: int):
        self.table = table
        self.slot_id = slot_id
        self.seed = seed
        #: Shared with worker processes, which may outlive an epoch.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Note the epoch that begins, or that a resumed run is in."""
        self.epoch.fill_(int(state.epoch or 0))

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return a batch of columns with the variants chosen, and their audio tokens and labels."""
        if "input_ids" not in rows:
            return {"audio": [self.choose([], [key])[0][0] for key in rows["audio"]]}
        varied: dict[str, list[Any]] = {"input_ids": [], "labels": [], "audio": []}
        for input_ids, labels, audio in zip(rows["input_ids"], rows["labels"], rows["audio"]):
            taken = self.choose(input_ids, audio)
            new_ids, new_labels = resize_slots(input_ids, labels, self.slot_id, [slots for _, slots in taken])
            varied["input_ids"].append(new_ids)
            varied["labels"].append(new_labels)
            varied["audio"].append([key for key, _ in taken])
        return varied

    def choose(self, input_ids: Sequence[int], audio: Sequence[str]) -> list[tuple[str, int]]:
        """Return (key, audio tokens) of what is chosen for each recording of a row."""
        row = _digest([self.seed, int(self.epoch), list(map(int, input_ids)), list(audio)])
        generator = np.random.default_rng(int(row, 16))
        return [self.table[key][generator.integers(len(self.table[key]))] for key in audio]


def _as_list(audio: Any) -> list[str]:
    return [audio] if isinstance(audio, str) else list(audio)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
