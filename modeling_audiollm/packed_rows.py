"""
How examples lie in a batch's rows: several one after the other without padding, and which position is whose; or one in
each, with padding behind it.
"""

import torch
from transformers.cache_utils import Cache


def example_starts(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor | None:
    """
    Return the boolean mask `(batch, length)` of the positions where an example starts; None where rows are not packed.

    Rows may be packed, for transformers as here, where there is neither an attention mask nor a cache. Position ids
    `(batch, length)` start over where an example does, and attention stays within it.
    """
    if position_ids is None or position_ids.dim() != 2 or attention_mask is not None or cache is not None:
        return None
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    return starts


def is_padded_on_the_right(attention_mask: torch.Tensor | None) -> bool:
    """Whether an attention mask `(batch, length)` masks nothing but what lies behind each row's last token."""
    if attention_mask is None or attention_mask.dim() != 2:
        return False
    is_token = attention_mask.bool()
    return bool((is_token[:, :-1] >= is_token[:, 1:]).all())


__all__ = ["example_starts", "is_padded_on_the_right"]
