"""
How examples lie in a batch's rows: several one after the other without padding, and which position is whose; or one in
each, with padding behind it.
"""

import torch
from transformers.cache_utils import Cache


def packed_sequences(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor | None:
    """
    Which example each position of a packed batch belongs to.

    A batch is packed, for transformers as here, where there is neither an attention mask nor a cache, and position ids
    start over within a row. Attention then stays within an example.

    Args:
        position_ids: `(batch, length)`.

    Returns:
        `(batch * length,)`, numbered from 0 through the whole batch; None where no row holds several examples.
    """
    if position_ids is None or position_ids.dim() != 2 or attention_mask is not None or cache is not None:
        return None
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    if not bool(starts[:, 1:].any()):
        return None
    return starts.flatten().cumsum(dim=0) - 1


def hold_audio(input_ids: torch.Tensor, slot_id: int, sequences: torch.Tensor | None) -> list[bool]:
    """Whether each row of `input_ids` `(batch, length)`, or each packed example, has audio slots."""
    slots = input_ids == slot_id
    if sequences is None:
        return slots.any(dim=1).tolist()
    held = torch.zeros(count_sequences(sequences), dtype=torch.bool, device=input_ids.device)
    held[sequences[slots.flatten()]] = True
    return held.tolist()


def count_sequences(sequences: torch.Tensor) -> int:
    """How many examples a packed batch has."""
    return int(sequences[-1]) + 1


def is_padded_on_the_right(attention_mask: torch.Tensor | None) -> bool:
    """Whether an attention mask `(batch, length)` masks nothing but what lies behind each row's last token."""
    if attention_mask is None or attention_mask.dim() != 2:
        return False
    is_token = attention_mask.bool()
    return bool((is_token[:, :-1] >= is_token[:, 1:]).all())


__all__ = ["count_sequences", "hold_audio", "is_padded_on_the_right", "packed_sequences"]
