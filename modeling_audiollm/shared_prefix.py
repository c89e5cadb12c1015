"""Training on rows that begin with the same text: that beginning is run once for all of them."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from .generation_audiollm import CACHE_NAME
from .lora import MASKS_KEYWORD

#: Below this share of the batch's positions, a second pass through the layers costs more than it saves.
MIN_SHARE_SAVED = 0.1


def shared_prefix_length(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, excluded_id: int) -> int:
    """
    How many positions all rows begin with alike: the same ids, none of them padding or `excluded_id`.

    At least one position of each row is left to be run by itself. None on other devices than a CPU, where nothing is
    shared ([`can_share_prefix`]) and looking would wait for the device.

    Args:
        input_ids: `(batch, length)`.
        attention_mask: `(batch, length)`, or None where nothing is padded. Others are not looked into: nothing is
            shared.
        excluded_id: of the audio slots, whose embeddings differ though their ids are the same.
    """
    if input_ids.device.type != "cpu":
        return 0
    alike = ((input_ids == input_ids[:1]) & (input_ids != excluded_id)).all(dim=0)
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            return 0
        alike &= attention_mask.bool().all(dim=0)
    return min(int(alike.long().cumprod(dim=0).sum()), input_ids.shape[1] - 1)


def is_worth_sharing(rows: int, positions: int, length: int) -> bool:
    """Whether to run the first `length` of `positions` once for all `rows` saves more than a second pass costs."""
    return (rows - 1) * length >= MIN_SHARE_SAVED * rows * positions


def can_share_prefix(language_model: nn.Module, embeds: torch.Tensor, length: int, rows: dict) -> bool:
    """
    Whether the first `length` positions can be run once for all rows, and whether it is worth it.

    One adapter must be that of all rows (text-only rows stay the base's to the last bit), and the layers must keep keys
    and values of all positions. Not with activation checkpointing, which allows no cache; not where several processes
    must run their layers equally often; and only on a CPU, where time goes by positions rather than by passes.
    """
    several_processes = torch.distributed.is_available() and torch.distributed.is_initialized()
    count, positions, _ = embeds.shape
    if not is_worth_sharing(count, positions, length) or embeds.device.type != "cpu" or several_processes:
        return False
    if not any(mask is None or bool(mask.all()) for mask in rows.values()):
        return False
    # Its name before transformers gave it the present one, which warns of the old.
    known = hasattr(type(language_model), "is_activation_checkpointing")
    if getattr(language_model, "is_activation_checkpointing" if known else "is_gradient_checkpointing", False):
        return False
    layers = DynamicCache(config=language_model.config).layers  # type: ignore[arg-type]
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def run_with_shared_prefix(
    language_model: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    length: int,
    keywords: dict[str, Any],
) -> torch.Tensor:
    """
    The language model's last hidden states, with its first `length` positions run for the first row alone.

    The keys and values of that row serve all, and their gradients add up in it; so it is the same function of the
    weights, to float rounding. Dropout, where there is any, drops the same of all rows' beginnings.

    Args:
        inputs_embeds: `(batch, positions, hidden_size)`, rows alike in their first `length` positions.
        attention_mask: `(batch, positions)`, or None.
        keywords: further ones for both passes.

    Returns:
        `(batch, positions, hidden_size)`.
    """
    masks = keywords.pop(MASKS_KEYWORD)
    first, rest = (
        {name: mask if mask is None else mask[part] for name, mask in masks.items()}
        for part in (np.s_[:1, :length], np.s_[:, length:])
    )
    cache = DynamicCache(config=language_model.config)  # type: ignore[arg-type]
    shared = language_model(
        inputs_embeds=inputs_embeds[:1, :length], **{CACHE_NAME: cache}, use_cache=True, lora_masks=first, **keywords
    ).last_hidden_state
    rows = inputs_embeds.shape[0]
    cache.batch_repeat_interleave(rows)
    own = language_model(
        inputs_embeds=inputs_embeds[:, length:],
        attention_mask=attention_mask,
        **{CACHE_NAME: cache},
        use_cache=True,
        lora_masks=rest,
        **keywords,
    ).last_hidden_state
    return torch.cat([shared.expand(rows, -1, -1), own], dim=1)


__all__ = ["can_share_prefix", "is_worth_sharing", "run_with_shared_prefix", "shared_prefix_length"]
