"""Batches of rows of token ids with their audio: padded, augmented, packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import IGNORED_LABEL
from transformers import PreTrainedModel

from .feature_cache import FeatureCache, FeatureStore


@dataclass
class AudioLlmCollator:
    """
    Pads rows of [`build_dataset`] on the right and brings in their audio, from the cache or encoded in the step.

    Of a [`FeatureCache`] only what reads it is kept: workers of the DataLoader are sent the collator, and must not be sent
    the model.
    """

    processor: AudioLlmProcessor
    cache: FeatureStore | None = None

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
        )
        recordings = [recording for row in rows for recording in row["audio"]]
        if not recordings:
            return batch
        if self.cache is not None:
            return {**batch, **load_encoded_audio(self.cache, recordings)}
        return {**batch, **self.processor.batch_features([self.processor.load_audio(path) for path in recordings])}


@dataclass(frozen=True)
class FeatureAugmentation:
    """
    SpecAugment (Park et al. 2019, arXiv:1904.08779) on encoder frames instead of log-mel ones, and a change of tempo.

    The encoder need not run again, so that the cache stays useful. Draws come from torch's global generator, whose
    state a checkpoint keeps.
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


@dataclass(frozen=True)
class BatchAugmentation:
    """
    Varies the encoder output of a batch that [`AudioLlmCollator`] made with a cache.

    A change of tempo changes the number of a recording's audio tokens. Draws come from torch's global generator, so this
    happens in the step, not in the collator, which works ahead: a resumed run would draw other numbers.
    """

    features: FeatureAugmentation
    slot_id: int  # of an audio token
    stack_factor: int
    pad_id: int

    @classmethod
    def of(cls, processor: AudioLlmProcessor, features: FeatureAugmentation | None = None) -> "BatchAugmentation":
        """Return the augmentation of batches for a processor's model, by default masks and tempo."""
        pad_id = processor.tokenizer.pad_token_id
        return cls(features or FeatureAugmentation(), processor.audio_token_id, processor.stack_factor, pad_id)

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a varied copy of a batch; one without `encoded_audio` comes back as it is."""
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
        padded = {**pad_rows(ids, labels, self.pad_id), **pad_windows(varied)}
        device = batch["input_ids"].device
        return {**batch, **{name: tensor.to(device) for name, tensor in padded.items()}}

    def _slots(self, window: torch.Tensor) -> int:
        return -(-len(window) // self.stack_factor)


def pad_rows(
    input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` `(batch, length)` of rows of ids, padded on the right."""
    length = max(map(len, input_ids))
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
    """Return `encoded_audio` `(windows, max_frames, d_model)`, padded with zeros, and `encoded_audio_lengths`."""
    return {
        "encoded_audio": torch.nn.utils.rnn.pad_sequence(list(windows), batch_first=True),
        "encoded_audio_lengths": torch.tensor([len(window) for window in windows]),
    }


def load_encoded_audio(cache: FeatureStore, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Load the encoder frames of several recordings, as [`pad_windows`] gives them."""
    return pad_windows([window for key in keys for window in cached_windows(cache, key)])


def pack_batch(batch: dict[str, Any], flash: bool = False) -> dict[str, Any]:
    """
    Return a batch of [`AudioLlmCollator`] in one row without padding: `(1, tokens)`, and no attention mask.

    Each example attends to itself alone; transformers knows this by position ids that start over. It saves time with flash
    attention; other kernels compute the whole row's attention before masking it. Augmentation comes before: it changes
    lengths, so transformers' `DataCollatorWithFlattening` would be too early. `flash` adds the lengths that flash
    attention would otherwise work out in every layer.
    """
    mask = batch["attention_mask"].bool()
    positions = mask.long().cumsum(dim=1) - 1
    # No example predicts the first token of the next.
    labels = batch["labels"].masked_fill(positions == 0, IGNORED_LABEL)
    packed = {name: value for name, value in batch.items() if name != "attention_mask"}
    packed["input_ids"], packed["labels"] = batch["input_ids"][mask][None], labels[mask][None]
    packed["position_ids"] = positions[mask][None]
    if flash:
        lengths = mask.sum(dim=1)
        ends = torch.nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).to(torch.int32)
        longest = int(lengths.max())
        packed |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return packed


def uses_flash(model: PreTrainedModel) -> bool:
    """Return whether a model's language model attends by flash attention."""
    return "flash" in (model.get_decoder().config._attn_implementation or "")
