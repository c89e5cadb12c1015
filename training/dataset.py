"""Rows of token ids to batches, with their audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import IGNORED_LABEL

from .augment import FeatureAugmentation
from .feature_cache import FeatureCache, FeatureStore


@dataclass
class AudioLlmCollator:
    """
    Pads rows of [`build_dataset`] on the right and brings in their audio.

    Attributes:
        processor: gives the padding token, and features where there is no cache.
        cache: what the dataset's features lie in, or None. Of a [`FeatureCache`] only what reads them is kept: workers
            of the DataLoader are sent the collator, and must not be sent the model.
        pad_to_multiple_of: rounds the length up, for hardware that likes it.
    """

    processor: AudioLlmProcessor
    cache: FeatureStore | None = None
    pad_to_multiple_of: int = 1

    def __post_init__(self):
        if isinstance(self.cache, FeatureCache):
            self.cache = self.cache.store

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `input_ids`, `attention_mask`, `labels` `(batch, length)`; and for rows with audio `encoded_audio`
            `(windows, max_frames, d_model)` with `encoded_audio_lengths` `(windows,)`, or `input_features` and
            `input_features_mask`.
        """
        batch = pad_rows(
            [row["input_ids"] for row in rows],
            [row["labels"] for row in rows],
            self.processor.tokenizer.pad_token_id,
            self.pad_to_multiple_of,
        )
        recordings = [recording for row in rows for recording in row["audio"]]
        if not recordings:
            return batch
        if self.cache is not None:
            return {**batch, **load_encoded_audio(self.cache, recordings)}
        return {**batch, **self.processor.batch_features([self.processor.load_audio(path) for path in recordings])}


@dataclass(frozen=True)
class BatchAugmentation:
    """
    Varies the encoder output of a batch that [`AudioLlmCollator`] made with a cache.

    A change of tempo changes the number of a recording's audio tokens. Draws come from torch's global generator, so this
    happens in the step, not in the collator, which works ahead: a resumed run would draw other numbers.

    Attributes:
        features: what is done to each window.
        slot_id: the id of an audio slot.
        stack_factor: encoder frames per slot.
        pad_id, pad_to_multiple_of: as in the collator.
    """

    features: FeatureAugmentation
    slot_id: int
    stack_factor: int
    pad_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A varied copy of a batch; one without `encoded_audio` comes back as it is."""
        if batch.get("encoded_audio") is None:
            return batch
        lengths = batch["encoded_audio_lengths"].tolist()
        windows = iter([window[:length] for window, length in zip(batch["encoded_audio"], lengths)])
        ids, labels, varied = [], [], []
        for row, row_labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool()):
            row_ids = row[mask].tolist()
            new_runs = []
            for slots in slot_runs(row_ids, self.slot_id):
                recording = []
                while slots > 0:
                    recording.append(next(windows))
                    slots -= self._slots(recording[-1])
                # Only a recording of one window may change its length: others would no longer fit theirs.
                recording = [self.features(window, len(recording) == 1) for window in recording]
                new_runs.append(sum(map(self._slots, recording)))
                varied.extend(recording)
            new_ids, new_labels = resize_slots(row_ids, row_labels[mask].tolist(), self.slot_id, new_runs)
            ids.append(new_ids)
            labels.append(new_labels)
        padded = {**pad_rows(ids, labels, self.pad_id, self.pad_to_multiple_of), **pad_windows(varied)}
        device = batch["input_ids"].device
        return {**batch, **{name: tensor.to(device) for name, tensor in padded.items()}}

    def _slots(self, window: torch.Tensor) -> int:
        return -(-len(window) // self.stack_factor)


def pad_rows(
    input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad_id: int, multiple_of: int = 1
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels` `(batch, length)` of rows of ids, padded on the right."""
    length = -(-max(map(len, input_ids)) // multiple_of) * multiple_of
    batch = {
        "input_ids": torch.full((len(input_ids), length), pad_id),
        "attention_mask": torch.zeros(len(input_ids), length, dtype=torch.long),
        "labels": torch.full((len(input_ids), length), IGNORED_LABEL),
    }
    for index, (row, row_labels) in enumerate(zip(input_ids, labels)):
        batch["input_ids"][index, : len(row)] = torch.tensor(row)
        batch["attention_mask"][index, : len(row)] = 1
        batch["labels"][index, : len(row)] = torch.tensor(row_labels)
    return batch


def slot_runs(input_ids: Sequence[int], slot_id: int) -> list[int]:
    """Return the number of audio tokens of each recording of a row, in reading order."""
    return [len(list(run)) for token_id, run in groupby(input_ids) if token_id == slot_id]


def resize_slots(
    input_ids: Sequence[int], labels: Sequence[int], slot_id: int, num_slots: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return token ids and labels with each run of audio tokens, in reading order, made `num_slots[i]` long."""
    counts = iter(num_slots)
    new_ids: list[int] = []
    new_labels: list[int] = []
    previous = None
    for token_id, label in zip(input_ids, labels):
        if token_id != slot_id:
            new_ids.append(token_id)
            new_labels.append(label)
        elif previous != slot_id:
            count = next(counts)
            new_ids.extend([slot_id] * count)
            new_labels.extend([IGNORED_LABEL] * count)
        previous = token_id
    return new_ids, new_labels


def cached_windows(cache: FeatureStore, key: str) -> list[torch.Tensor]:
    """Return the encoder frames of one recording, a tensor `(frames, d_model)` per window."""
    frames, lengths = cache.load(key)
    return list(frames.split(lengths.tolist()))


def pad_windows(windows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Pad windows for the model.

    Returns:
        `encoded_audio` `(windows, max_frames, d_model)`, zeros past a window's end, and `encoded_audio_lengths`
        `(windows,)`.
    """
    return {
        "encoded_audio": torch.nn.utils.rnn.pad_sequence(list(windows), batch_first=True),
        "encoded_audio_lengths": torch.tensor([len(window) for window in windows]),
    }


def load_encoded_audio(cache: FeatureStore, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Load the encoder frames of several recordings, as [`pad_windows`] gives them."""
    return pad_windows([window for key in keys for window in cached_windows(cache, key)])
