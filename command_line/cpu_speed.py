"""
Faster training and encoding on a CPU: products by the faster of torch's two libraries, and text that a batch's rows all
begin with run once. The commands switch it on; checkpoints do not carry it.
"""

from functools import cache, partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from audiollm.lora import MASKS_KEYWORD, FrozenLinearWithLora, autocasts
from audiollm.modeling_audiollm import CACHE_NAME
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

#: Linux' description of the processor.
PROCESSOR_FILE = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
#: Below so many rows, reading the weights takes the time, in either library.
MIN_ROWS = 16
#: Below such a width and height of the other matrix, there is nothing to gain: LoRA's are so thin, and gain.
MIN_SIZE = 8
#: Below this share of the batch's positions, a second pass through the layers costs more than it saves.
MIN_SHARE_SAVED = 0.1


def use_cpu_speed(model) -> None:
    """
    Make an AudioLLM model on a CPU train and encode faster, in place; on other devices it stays as it is.

    Weights and their names stay. Results without gradients stay too, but for the encoder's, which change by rounding.
    """
    body = model.model
    if model.device.type != "cpu":
        return
    if onednn_is_faster():
        FrozenLinearWithLora.product = staticmethod(fast_product)
        for module in (*body.audio_tower.modules(), *body.multi_modal_projector.modules()):
            if type(module) is nn.Linear:
                module.forward = MethodType(_fast_forward, module)  # type: ignore[method-assign]
        if type(model.lm_head) is nn.Linear:
            model.lm_head.forward = MethodType(_fast_forward_in_training, model.lm_head)  # type: ignore[method-assign]
    decoder = body.language_model
    if "forward" not in vars(decoder):
        decoder.forward = MethodType(_forward, decoder)


# ---- products --------------------------------------------------------------------------------------------------------


@cache
def onednn_is_faster() -> bool:
    """
    Return True where oneDNN multiplies float32 matrices faster than MKL, which torch takes.

    MKL uses AVX-512 on Intel's processors alone: on an AMD EPYC (Zen 5) it reaches less than half of oneDNN's rate.
    """
    has_product = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if not (has_product and is_wide and PROCESSOR_FILE.is_file()):  # no file: not Linux
        return False
    return INTEL not in PROCESSOR_FILE.read_text(encoding="utf-8", errors="replace")


def takes_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return True where oneDNN multiplies `x` `(n, in)` by `weight` `(out, in)`: float32 matrices, not too small."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) >= MIN_ROWS
        and min(weight.shape) >= MIN_SIZE
        and onednn_is_faster()
        and bool(torch.backends.mkldnn.enabled)
    )


def fast_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias` of `(n, in)`, `(out, in)` and `(out,)`; no gradient goes through it."""
    if not takes_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix without gaps, by rows or by columns: with others oneDNN takes a thousand times as long."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


class FastProduct(torch.autograd.Function):
    """[`fast_product`] with gradients, each by the same library and only where it is asked for."""

    @staticmethod
    def forward(ctx, x, weight, bias) -> torch.Tensor:
        """`x`: `(n, in)`, `weight`: `(out, in)`, `bias`: `(out,)` or None; gives `(n, out)`."""
        ctx.save_for_backward(x, weight)
        return fast_product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """Return the gradients of `x`, `weight` and `bias`."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            fast_product(grad, weight.T) if needs_x else None,
            fast_product(grad.T, x.T) if needs_weight else None,
            grad.sum(dim=0) if needs_bias else None,
        )


def fast_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, by the faster library; `x`: `(..., in)`, `weight`: `(out, in)`, `bias`: `(out,)`."""
    flat = x.flatten(0, -2)
    if autocasts(x.device.type) or not takes_onednn(flat, weight):
        return nn.functional.linear(x, weight, bias)
    multiply = FastProduct.apply if torch.is_grad_enabled() else fast_product
    return multiply(flat, weight, bias).view(*x.shape[:-1], len(weight))


def _fast_forward(linear: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return fast_linear(input, linear.weight, linear.bias)


def _fast_forward_in_training(linear: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    """Multiply as [`fast_linear`]; in evaluation mode as torch does, to the last bit."""
    multiply = fast_linear if linear.training else nn.functional.linear
    return multiply(input, linear.weight, linear.bias)


# ---- shared beginnings -----------------------------------------------------------------------------------------------


def _forward(
    self, *args: Any, inputs_embeds=None, attention_mask=None, use_cache=None, **kwargs: Any
) -> BaseModelOutputWithPast:
    """
    Run a decoder; in training, positions that all rows begin with are run for the first row alone.

    The keys and values of that row serve all, and their gradients add up in it. Dropout drops the same of all beginnings.
    """
    whole, masks = partial(type(self).forward, self), kwargs.get(MASKS_KEYWORD) or {}
    others = {name for name, value in kwargs.items() if value is not None} - {MASKS_KEYWORD}
    may_share = self.training and torch.is_grad_enabled() and use_cache is False and masks and not (args or others)
    length = shared_prefix_length(self, inputs_embeds, attention_mask, masks) if may_share else 0
    if not length:
        return whole(*args, inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=use_cache, **kwargs)
    first = {name: mask if mask is None else mask[:1, :length] for name, mask in masks.items()}
    rest = {name: mask if mask is None else mask[:, length:] for name, mask in masks.items()}
    rows, filled = inputs_embeds.shape[0], DynamicCache(config=self.config)
    keywords: dict[str, Any] = {CACHE_NAME: filled, "use_cache": True}
    shared = whole(inputs_embeds=inputs_embeds[:1, :length], **keywords, **{MASKS_KEYWORD: first}).last_hidden_state
    filled.batch_repeat_interleave(rows)
    keywords["attention_mask"] = attention_mask
    own = whole(inputs_embeds=inputs_embeds[:, length:], **keywords, **{MASKS_KEYWORD: rest}).last_hidden_state
    return BaseModelOutputWithPast(last_hidden_state=torch.cat([shared.expand(rows, -1, -1), own], dim=1))


def shared_prefix_length(
    decoder: nn.Module, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, masks: dict[str, Any]
) -> int:
    """
    Return the number of positions to run once for all rows, which begin alike there; 0 where it cannot be or does not pay.

    One adapter must act on all rows, since text-only rows stay the base's, and the layers must keep keys and values of all
    positions. Activation checkpointing allows no cache; several processes must run their layers equally often.
    """
    rows, positions = inputs_embeds.shape[:2]
    if attention_mask is not None and attention_mask.shape != (rows, positions):
        return 0
    alike = (inputs_embeds == inputs_embeds[:1]).all(dim=-1).all(dim=0)
    if attention_mask is not None:
        alike &= attention_mask.bool().all(dim=0)
    length = min(int(alike.long().cumprod(dim=0).sum()), positions - 1)  # at least one of each row is left
    several_processes = torch.distributed.is_available() and torch.distributed.is_initialized()
    if (rows - 1) * length < MIN_SHARE_SAVED * rows * positions or several_processes:
        return 0
    # Its name before transformers gave it the present one, which warns of the old.
    known = hasattr(type(decoder), "is_activation_checkpointing")
    checkpoints = getattr(decoder, "is_activation_checkpointing" if known else "is_gradient_checkpointing", False)
    if checkpoints or not any(mask is None or bool(mask.all()) for mask in masks.values()):
        return 0
    layers = DynamicCache(config=decoder.config).layers  # type: ignore[arg-type]
    return length if layers and all(type(layer) is DynamicLayer for layer in layers) else 0
