"""Batches: of conversations, for any Trainer that takes a data collator; and of this command's rows, padded or packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from audiollm.processing import AudioLlmProcessor
from audiollm.processing.conversations import IGNORED_LABEL, as_recordings
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from .feature_cache import FeatureCache


@dataclass
class ConversationCollator:
    """
    Encodes rows of conversations, with labels on what the assistant says.

    A row has `messages`, as for [`AudioLlmProcessor.apply_chat_template`]. Its recordings are parts of the messages
    (`{"type": "audio", "path": ...}`), or lie beside them in `audio`: one recording or a list, in the order of the
    `<audio>` in the text. One batch keeps to one of the two ways. Rows without audio may be mixed in.

    With the Trainer pass `remove_unused_columns=False`: the model knows no column of that name.
    """

    processor: AudioLlmProcessor  # the model's
    pad_to_multiple_of: int | None = None  # rounds the length up, for hardware that likes it

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` `(rows, length)`, and the features of all recordings."""
        recordings = [as_recordings(row.get("audio")) for row in rows]
        batch = self.processor.apply_chat_template(
            [row["messages"] for row in rows],
            audio=recordings if any(recordings) else None,
            tokenize=True,
            output_labels=True,
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        return dict(batch)


# ---- batches of `audiollm train` -------------------------------------------------------------------------------------


@dataclass
class AudioLlmCollator:
    """Pads rows of [`build_dataset`] on the right and brings in their audio, from the cache or encoded in the step."""

    processor: AudioLlmProcessor
    cache: FeatureCache | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `(batch, length)`, and what [`audio_inputs`] has of recordings."""
        encoded = [(row["input_ids"], row["labels"]) for row in rows]
        batch = pad_rows(encoded, self.processor.tokenizer.pad_token_id)
        recordings = [recording for row in rows for recording in row["audio"]]
        return {**batch, **self.audio_inputs(recordings)} if recordings else batch

    def audio_inputs(self, recordings: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Return what the model is given of recordings: encoder frames as [`pad_windows`] pads them, or features."""
        if self.cache is None:
            return self.processor.batch_features([self.processor.load_audio(path) for path in recordings])
        found = map(self.cache.load, recordings)
        return pad_windows([window for frames, lengths in found for window in frames.split(lengths.tolist())])


def pad_rows(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` `(batch, length)` of (ids, labels), padded on the right."""
    ids, labels = ([torch.tensor(each, dtype=torch.long) for each in column] for column in zip(*rows))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def unpadded(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """Return token ids and labels of each row of a batch, without its padding."""
    masks = batch["attention_mask"].bool()
    rows = zip(batch["input_ids"], batch["labels"], masks)
    return [(ids[mask].tolist(), labels[mask].tolist()) for ids, labels, mask in rows]


def slot_runs(input_ids: Sequence[int], slot_id: int) -> list[int]:
    """Return the number of audio tokens of each recording of a row, in reading order."""
    return [len(list(run)) for token_id, run in groupby(input_ids) if token_id == slot_id]


def resize_slots(
    input_ids: Sequence[int], labels: Sequence[int], slot_id: int, num_slots: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return token ids and labels with each run of audio tokens, in reading order, made `num_slots[i]` long."""
    counts = iter(num_slots)
    pairs: list[tuple[int, int]] = []
    for is_slot, run in groupby(zip(input_ids, labels), key=lambda pair: pair[0] == slot_id):
        pairs += [(slot_id, IGNORED_LABEL)] * next(counts) if is_slot else run
    return [token_id for token_id, _ in pairs], [label for _, label in pairs]


def pad_windows(windows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `encoded_audio` `(windows, max_frames, d_model)`, padded with zeros, and `encoded_audio_lengths`."""
    return {
        "encoded_audio": pad_sequence(list(windows), batch_first=True),
        "encoded_audio_lengths": torch.tensor([len(window) for window in windows]),
    }


def pack_batch(batch: dict[str, Any], flash: bool = False) -> dict[str, Any]:
    """
    Return a batch of [`AudioLlmCollator`] in one row without padding: `(1, tokens)`, and no attention mask.

    Each example attends to itself alone, by position ids that start over; `flash` adds the lengths that flash attention
    needs. It comes after augmentation, which changes lengths: `DataCollatorWithFlattening` would be too early.
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
