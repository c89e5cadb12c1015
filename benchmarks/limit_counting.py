"""
What a forward or a training step of AudioLLM has to compute: counted while it runs, and by formula.

torch's FLOP counter sees the operations inside of autograd functions as well; the few that it has no formula for (products
that add in place, oneDNN's, attention on a CPU) get theirs here. A formula of the model's shapes, checked against what was
counted, then says how much of it the mathematics needs: padding does not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from audiollm.cpu_speed import shared_prefix_length
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
#: A multiplication and an addition.
FLOPS_PER_PRODUCT = 2
#: Products over all pairs of query and key: scores and values forward; backward, the gradients of queries, keys, values and
#: weights. (The kernel makes the scores once more; that is not counted.)
PRODUCTS_OF_ATTENTION, PRODUCTS_OF_ATTENTION_BACKWARD = 2, 4
IGNORED_LABEL = -100


def shared_text(model, batch: dict[str, torch.Tensor]) -> int:
    """How many positions, all of them text, the rows of a batch begin with alike."""
    ids = batch["input_ids"]
    embeds = model.model.embed_text(ids).detach()
    is_slot = (ids == model.config.audio_token_id)[..., None]
    return shared_prefix_length(embeds.masked_fill(is_slot, float("nan")), batch["attention_mask"])


def attended_pairs(query: torch.Tensor, key: torch.Tensor, is_causal: bool, mask: torch.Tensor | None) -> int:
    """How many pairs of query and key an attention looks at, over all rows and heads; `query`: `(rows, heads, n, d)`."""
    rows, heads, queries, keys = *query.shape[:3], key.shape[2]
    if mask is not None:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return int(allowed.sum()) * (rows * heads * queries * keys // mask.numel())
    if is_causal:
        return rows * heads * sum(min(position + 1, keys) for position in range(queries))
    return rows * heads * queries * keys


def _attention(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None, out_val=None) -> int:
    pairs = attended_pairs(query, key, is_causal, attn_mask)
    return FLOPS_PER_PRODUCT * PRODUCTS_OF_ATTENTION * pairs * query.shape[-1]


def _attention_backward(
    grad, query, key, value, out, logsumexp, dropout_p, is_causal, *, attn_mask=None, scale=None, out_val=None
) -> int:
    pairs = attended_pairs(query, key, is_causal, attn_mask)
    return FLOPS_PER_PRODUCT * PRODUCTS_OF_ATTENTION_BACKWARD * pairs * query.shape[-1]


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Marks a formula that wants tensors, not shapes, as `register_flop_formula(get_raw=True)` does."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def _linear(x_shape, weight_shape, *_, out_shape=None, **__) -> int:
    rows = torch.Size(x_shape).numel() // x_shape[-1]
    return FLOPS_PER_PRODUCT * rows * weight_shape[0] * weight_shape[1]


#: What torch's counter has no formula for.
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.addmm_: lambda out, a, b, **_: FLOPS_PER_PRODUCT * a[0] * a[1] * b[1],
    torch.ops.mkldnn._linear_pointwise: _linear,
    aten._scaled_dot_product_flash_attention_for_cpu: _raw(_attention),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _raw(_attention_backward),
}


class TrafficCounter(TorchDispatchMode):
    """Sums the bytes of what operations read and write, views left out: the traffic were there no caches."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in (*_tensors(args), *_tensors((kwargs or {}).values()), *_tensors([result])):
                self.bytes += tensor.numel() * tensor.element_size()
        return result


def _tensors(values) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def count(run: Callable[[], Any]) -> tuple[int, int]:
    """
    Floating-point operations of the matrix products, convolutions and attentions that `run` makes, and the bytes that all
    its operations read and write.
    """
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as flops, TrafficCounter() as traffic:
        run()
    return flops.get_total_flops(), traffic.bytes


@dataclass(frozen=True)
class Positions:
    """
    What the language model is run on.

    Attributes:
        lengths: of each row, as far as it is run for itself.
        shared: positions at the beginning of all rows that are run once.
        audio_tokens: that the projector makes, of all rows.
        supervised: positions that the head is run on.
    """

    lengths: Sequence[int]
    shared: int
    audio_tokens: int
    supervised: int

    @property
    def total(self) -> int:
        """Positions that go through the layers."""
        return self.shared + sum(self.lengths)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key not after it."""
        own = sum(length * self.shared + length * (length + 1) // 2 for length in self.lengths)
        return own + self.shared * (self.shared + 1) // 2


def language_model_flops(model, positions: Positions, trains: bool) -> int:
    """
    Operations of language model, LoRA, projector and head, and with `trains` of their backward pass.

    Frozen weights get no gradient; their inputs do. LoRA is run on all positions, and gets gradients of its weights and
    of its input.
    """
    text = model.config.text_config
    base = lora = 0
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            if ".lora_" in name:
                lora += module.weight.numel()
            else:
                base += module.weight.numel()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_attention_heads * head_dim * text.num_hidden_layers
    attention = PRODUCTS_OF_ATTENTION + (PRODUCTS_OF_ATTENTION_BACKWARD if trains else 0)
    projector = [
        m.weight.numel() for m in model.model.multi_modal_projector.modules() if isinstance(m, torch.nn.Linear)
    ]
    # The encoder's output gets no gradient, but the first layer's input does where a norm before it trains.
    without = 0 if model.config.projector_pre_norm else projector[0]
    of_projector = 3 * sum(projector) - without if trains else sum(projector)
    products = positions.total * base * (2 if trains else 1)
    products += positions.total * lora * (3 if trains else 1)
    products += positions.supervised * text.hidden_size * text.vocab_size * (2 if trains else 1)
    products += positions.audio_tokens * of_projector
    products += positions.pairs * width * attention
    return FLOPS_PER_PRODUCT * products


def encoder_flops(config, mel_frames: Sequence[int]) -> int:
    """Operations of Whisper's encoder on windows of so many log-mel frames each, without padding."""
    width, taps, total = config.d_model, 3, 0
    for inputs in mel_frames:
        frames = (inputs + 1) // 2
        total += inputs * taps * config.num_mel_bins * width + frames * taps * width * width
        layer = frames * (4 * width * width + 2 * width * config.encoder_ffn_dim)
        layer += PRODUCTS_OF_ATTENTION * frames * frames * width
        total += config.encoder_layers * layer
    return FLOPS_PER_PRODUCT * total


def positions_of(model, batch: dict[str, Any], shared: int, padded: bool, supervised: int | None = None) -> Positions:
    """
    What of a batch is run, with its padding or without it.

    Args:
        shared: positions that all rows begin with and that are run once.
        supervised: positions that the head is run on, where it is not run on those that have labels.
    """
    mask = batch["attention_mask"]
    longest = mask.shape[1]
    rows = [longest if padded else int(length) for length in mask.sum(dim=1)]
    if supervised is None:
        supervised = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    return Positions(
        lengths=[length - shared for length in rows],
        shared=shared,
        audio_tokens=int((batch["input_ids"] == model.config.audio_token_id).sum()),
        supervised=supervised,
    )
