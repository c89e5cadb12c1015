"""Products on a CPU by the faster of torch's two libraries for them."""

from functools import cache
from pathlib import Path

import torch
from torch import nn

#: Where Linux says whose the processor is.
PROCESSOR_FILE = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
#: Below so many rows, reading the weights takes the time, in either library.
MIN_ROWS = 16
#: Below such a width and height of the other matrix, there is nothing to gain: LoRA's are so thin, and gain.
MIN_SIZE = 8


@cache
def onednn_is_faster() -> bool:
    """
    Whether oneDNN multiplies float32 matrices faster here than MKL, which torch takes for them by itself.

    MKL knows AVX-512 on Intel's processors alone. On two cores of an AMD EPYC (Zen 5) it reaches less than half of
    oneDNN's rate (`benchmarks/limit.py`). The same on every run on a machine: nothing is measured here.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # torch's compiler calls it too, but promises it to nobody
        return False
    try:
        return INTEL not in PROCESSOR_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: torch's own choice
        return False


def autocasts(device: str) -> bool:
    """Whether autocast is on; on devices that know none (`meta`, which has shapes alone), torch would raise."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def takes_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether products of `x` `(n, in)` with `weight` `(out, in)` are made by oneDNN: float32 ones, not too small."""
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) >= MIN_ROWS
        and min(weight.shape) >= MIN_SIZE
        and onednn_is_faster()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
    )


def fast_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    `x @ weight.T + bias`, `(n, out)`; no gradient goes through it.

    Args:
        x: `(n, in)`.
        weight: `(out, in)`; like `x` it may be another matrix's transpose.
        bias: `(out,)`.
    """
    if not takes_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix without gaps, by rows or by columns: with others oneDNN takes a thousand times as long."""
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
        """The gradients of `x`, `weight` and `bias`."""
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


class FastLinear(nn.Linear):
    """A linear layer whose products, and those of its gradients, are [`fast_linear`]'s."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input`: `(..., in)`; gives `(..., out)`."""
        return fast_linear(input, self.weight, self.bias)


def use_fast_products(module: nn.Module) -> None:
    """Makes every plain linear layer within `module` a [`FastLinear`] that holds the same parameters."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                layer = FastLinear(child.in_features, child.out_features, child.bias is not None, device="meta")
                layer.weight, layer.bias = child.weight, child.bias
                layer.train(child.training)
                setattr(parent, name, layer)


__all__ = [
    "FastLinear",
    "fast_linear",
    "fast_product",
    "onednn_is_faster",
    "takes_onednn",
    "use_fast_products",
]
