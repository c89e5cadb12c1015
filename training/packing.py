"""
Packing: the rows of a batch one after the other in a single row, so that no padding is computed.

Each example attends to itself alone, as transformers knows by position ids that start over; what a batch costs is then
what its tokens cost. Worth it with flash attention, which leaves out what an example does not attend to. Other kernels
give the same loss, but compute all of a row's attention before masking it: quadratic in the tokens of the batch.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from audiollm.processing.conversations import IGNORED_LABEL
from torch import nn
from transformers import PreTrainedModel

#: Per row and position; anything else of this shape would be left as it is and no longer fit.
PACKED_NAMES = ("input_ids", "labels")
#: Which each row has one of, or the whole batch, and which stay as they are: audio lies in reading order anyway.
KEPT_NAMES = (
    "encoded_audio",
    "encoded_audio_lengths",
    "input_features",
    "input_features_mask",
    "adapter_names",
)
#: Two examples, of ids that every vocabulary has.
PROBE = ((0, 1, 2, 3, 1), (2, 0, 3))
#: Bounds on how far the hidden states of a packed example may lie from its own: rounding does not reach it, and seeing
#: another example goes far beyond.
PROBE_TOLERANCE = 0.05


@dataclass(frozen=True)
class BatchPacking:
    """
    Packs a training batch, at its own step.

    Attributes:
        vary: what is done to the padded batch before, such as an augmentation.
        flash: adds the lengths that flash attention would otherwise work out in every layer.
    """

    vary: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    flash: bool = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch of [`pack_batch`], varied first."""
        return pack_batch(batch if self.vary is None else self.vary(batch), self.flash)


def pack_batch(batch: dict[str, Any], flash: bool = False) -> dict[str, Any]:
    """
    The same batch in one row without padding.

    Args:
        batch: as [`AudioLlmCollator`] makes it: `input_ids`, `attention_mask` and `labels` `(batch, length)`, and audio.
        flash: see [`BatchPacking`].

    Returns:
        `input_ids`, `labels` and `position_ids` `(1, tokens)`, no attention mask, and the audio as it was.

    Raises:
        ValueError: the batch holds something that is not known to survive it.
    """
    unknown = sorted(set(batch) - {*PACKED_NAMES, *KEPT_NAMES, "attention_mask"})
    if unknown:
        raise ValueError(f"A batch with {unknown} cannot be packed; expected only {[*PACKED_NAMES, *KEPT_NAMES]}.")
    mask = batch["attention_mask"].bool()
    positions = mask.long().cumsum(dim=1) - 1
    # An example's first token is no other's next one.
    labels = batch["labels"].masked_fill(positions == 0, IGNORED_LABEL)
    packed = {name: batch[name] for name in KEPT_NAMES if name in batch}
    packed["input_ids"], packed["labels"] = batch["input_ids"][mask][None], labels[mask][None]
    packed["position_ids"] = positions[mask][None]
    if flash:
        lengths = mask.sum(dim=1)
        ends = nn.functional.pad(lengths.cumsum(dim=0), (1, 0)).to(torch.int32)
        longest = int(lengths.max())
        packed |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return packed


def uses_flash(model: PreTrainedModel) -> bool:
    """Whether a model's language model attends by flash attention."""
    return "flash" in (model.get_decoder().config._attn_implementation or "")


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """
    Makes sure that examples of one row do not see each other in this language model.

    Raises:
        ValueError: they do, as in layers that carry a state along the row.
    """
    device = cast(nn.Embedding, model.get_input_embeddings()).weight.device
    examples = [torch.tensor([ids], device=device) for ids in PROBE]
    if uses_flash(model) and device.type == "cpu":
        return  # moved to its GPU later
    with _evaluating(model):
        alone = torch.cat([model.model(input_ids=ids).last_hidden_state for ids in examples], dim=1).float()
        positions = torch.cat([torch.arange(ids.shape[1], device=device) for ids in examples])[None]
        together = model.model(input_ids=torch.cat(examples, dim=1), position_ids=positions).last_hidden_state.float()
    difference = float((together - alone).square().mean().sqrt() / alone.square().mean().sqrt())
    if difference > PROBE_TOLERANCE:
        raise ValueError(
            f"--packing cannot be used with {type(model.get_decoder()).__name__}: examples in one row change each "
            f"other (by {difference:.0%} of the hidden states on a probe). Leave --packing out."
        )


@contextmanager
def _evaluating(model: nn.Module):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
