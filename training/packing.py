"""
Packing: the rows of a batch one after the other in a single row, so that no padding is computed.

Each example attends to itself alone; transformers knows this by position ids that start over. It saves time with flash
attention. Other kernels give the same loss, but compute the whole row's attention before masking it.
"""

from typing import Any

import torch
from audiollm.processing.conversations import IGNORED_LABEL
from torch import nn
from transformers import PreTrainedModel


def pack_batch(batch: dict[str, Any], flash: bool = False) -> dict[str, Any]:
    """
    Return the same batch in one row without padding.

    Augmentation comes before: it changes lengths, so transformers' `DataCollatorWithFlattening` would be too early.

    Args:
        batch: as [`AudioLlmCollator`] makes it: `input_ids`, `attention_mask` and `labels` `(batch, length)`, and audio.
        flash: adds the lengths that flash attention would otherwise work out in every layer.

    Returns:
        `input_ids`, `labels` and `position_ids` `(1, tokens)`, no attention mask, and the audio as it was.
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
        ends = nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).to(torch.int32)
        longest = int(lengths.max())
        packed |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return packed


def uses_flash(model: PreTrainedModel) -> bool:
    """Return whether a model's language model attends by flash attention."""
    return "flash" in (model.get_decoder().config._attn_implementation or "")
