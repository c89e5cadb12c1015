"""A frozen linear layer with its low-rank update as one operation, and the dropout of its input."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from .matrix_products import autocasts, fast_product

#: Dropout on a CPU takes 16 random bits for an element, four elements from one number of the generator.
DROPOUT_BITS = 16
ELEMENTS_PER_DRAW = 64 // DROPOUT_BITS
DROPOUT_LEVELS = 1 << DROPOUT_BITS


def dropout_mask(x: torch.Tensor, probability: float) -> tuple[torch.Tensor, float]:
    """
    What dropout leaves of `x`: 1 where an element stays, 0 where it goes, in the shape and precision of `x`.

    torch draws each element of a CPU's mask by itself, one thread alone: in a training step on eight short clips, a
    fifth of the whole time. Four elements from one draw take a quarter of that; the probability is then rounded to
    1/65536.

    Returns:
        The mask, and the factor by which what stays must be scaled.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x).bernoulli_(1 - probability), 1 / (1 - probability)
    dropped_levels = min(round(probability * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)
    draws = torch.empty(-(-x.numel() // ELEMENTS_PER_DRAW), dtype=torch.int64).random_(
        torch.iinfo(torch.int64).min, None
    )
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(levels, dropped_levels - DROPOUT_LEVELS // 2, out=mask)
    return mask, DROPOUT_LEVELS / (DROPOUT_LEVELS - dropped_levels)


class FrozenLinearWithLora(torch.autograd.Function):
    """
    A frozen linear layer and its low-rank update (Hu et al. 2021, arXiv:2106.09685) as one operation.

    Autograd's own way passes over activations several times: for the base's output, for the update and for their sum,
    and in the backward pass for the sum of both gradients. Here products are added where they are made.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mask, down, up, scaling: float) -> torch.Tensor:
        """
        Args:
            x: the input, `(n, in)`.
            weight, bias: the base's, `(out, in)` and `(out,)` or None; no gradient is computed for them.
            mask: what of `x` LoRA sees, `(n, in)`, or None for all.
            down, up: LoRA's A `(rank, in)` and B `(out, rank)`, in any precision; computed with in that of `x`.
            scaling: of the update.

        Returns:
            `x @ weight.T + bias + scaling * (mask * x) @ down.T @ up.T`, `(n, out)`.
        """
        source = x if mask is None else x * mask
        # Autocast has nothing to do: everything has the precision of `x`, in the backward pass as well.
        with _without_autocast(x.device.type):
            result, low, down_cast, up_cast = _forward(x, weight, bias, source, down, up, scaling)
        ctx.save_for_backward(source, weight, mask, low, down_cast, up_cast)
        ctx.scaling, ctx.down_dtype, ctx.up_dtype = scaling, down.dtype, up.dtype
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """The gradients of `x`, `down` and `up`, each only where it is asked for."""
        source, weight, mask, low, down, up = ctx.saved_tensors
        needs_x, _, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        grad_x = grad_down = grad_up = None
        with _without_autocast(grad.device.type):
            grad_low = fast_product(grad, up.T).mul_(ctx.scaling)
            if needs_x:
                grad_x = fast_product(grad, weight.T)
                grad_x = grad_x.addmm_(grad_low, down) if mask is None else grad_x.addcmul_(grad_low @ down, mask)
            if needs_down:
                grad_down = fast_product(grad_low.T, source.T).to(ctx.down_dtype)
            if needs_up:
                grad_up = fast_product(low.T, grad.T).T.to(ctx.up_dtype).mul_(ctx.scaling)
        return grad_x, None, None, None, grad_down, grad_up, None


def frozen_linear_with_lora(x, weight, bias, mask, down, up, scaling: float) -> torch.Tensor:
    """
    [`FrozenLinearWithLora`], bit for bit, and without what an autograd function costs where no gradient is asked for.

    That is a seventh of the time of a token of SmolLM2-135M on one CPU core, which runs 210 of these.
    """
    if torch.is_grad_enabled() or autocasts(x.device.type):
        return FrozenLinearWithLora.apply(x, weight, bias, mask, down, up, scaling)
    return _forward(x, weight, bias, x if mask is None else x * mask, down, up, scaling)[0]


def _forward(x, weight, bias, source, down, up, scaling: float) -> tuple[torch.Tensor, ...]:
    """The result, and on the way to it: the inner product of rank `rank`, and both factors in the precision of `x`."""
    down_cast, up_cast = down.to(x.dtype), up.to(x.dtype)
    low = fast_product(source, down_cast)
    return fast_product(x, weight, bias).addmm_(low, up_cast.T, alpha=scaling), low, down_cast, up_cast


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether `layer` is torch's linear layer with unquantised weights, whose call is its class's and no more."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return type(layer.weight) is nn.Parameter  # quantised ones may be of a class that not all operations know


def can_fuse(base: nn.Module, x: torch.Tensor) -> bool:
    """Whether `base` is a plain frozen linear layer in the precision of `x`, whose call is its class's and no more."""
    if not is_plain_linear(base):
        return False
    device = x.device.type
    same_precision = not autocasts(device) or torch.get_autocast_dtype(device) == x.dtype
    trains = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    return same_precision and base.weight.dtype == x.dtype and not trains


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


__all__ = ["FrozenLinearWithLora", "can_fuse", "dropout_mask", "frozen_linear_with_lora", "is_plain_linear"]
