"""Products with frozen weights on a CPU, by the faster of torch's two libraries for them."""

from functools import cache
from pathlib import Path

import torch
from torch import nn

#: Where Linux says whose the processor is.
PROCESSOR_FILE = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
#: Below so many rows, reading the weights takes the time, in either library.
MIN_ROWS = 16
#: Below such a width or height of the weights, what is copied in and out takes longer than is saved.
MIN_WEIGHT_SIZE = 128


@cache
def onednn_is_faster() -> bool:
    """
    Whether oneDNN multiplies float32 matrices faster here than MKL, which torch takes for them by itself.

    MKL knows AVX-512 on Intel's processors alone. On two cores of an AMD EPYC (Zen 5) it reaches less than half of
    oneDNN's rate (`benchmarks/limit.py`). The same on every run on a machine: nothing is measured here.
    """
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        return INTEL not in PROCESSOR_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: torch's own choice
        return False


def autocasts(device: str) -> bool:
    """Whether autocast is on; on devices that know none (`meta`, which has shapes alone), torch would raise."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def takes_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether products of `x` `(n, in or out)` with `weight` `(out, in)` are made by oneDNN: large float32 ones."""
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) >= MIN_ROWS
        and min(weight.shape) >= MIN_WEIGHT_SIZE
        and weight.is_contiguous()
        and onednn_is_faster()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
    )


def frozen_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias`, `(n, out)`, without gradients; `x`: `(n, in)`, `weight`: `(out, in)`, `bias`: `(out,)`."""
    if not takes_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    return nn.functional.linear(x.to_mkldnn(), weight, bias).to_dense()


def frozen_product_gradient(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`grad @ weight`, `(n, in)`: what [`frozen_product`] hands back to its input; `grad`: `(n, out)`."""
    if not takes_onednn(grad, weight):
        return grad @ weight
    shape = [len(grad), weight.shape[1]]
    return torch.ops.aten.mkldnn_linear_backward_input(shape, grad.to_mkldnn(), weight).to_dense()


class FrozenLinear(nn.Linear):
    """A linear layer with [`frozen_product`] where no gradient is asked for; else torch's own, with the same weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input`: `(..., in)`; gives `(..., out)`."""
        if torch.is_grad_enabled() or autocasts(input.device.type):
            return super().forward(input)
        flat = input.flatten(0, -2)
        if not takes_onednn(flat, self.weight):
            return super().forward(input)
        return frozen_product(flat, self.weight, self.bias).view(*input.shape[:-1], self.out_features)


def use_frozen_products(module: nn.Module) -> None:
    """Makes every plain linear layer within `module` a [`FrozenLinear`] that holds the same parameters."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                layer = FrozenLinear(child.in_features, child.out_features, child.bias is not None, device="meta")
                layer.weight, layer.bias = child.weight, child.bias
                layer.train(child.training)
                setattr(parent, name, layer)


__all__ = [
    "FrozenLinear",
    "frozen_product",
    "frozen_product_gradient",
    "onednn_is_faster",
    "takes_onednn",
    "use_frozen_products",
]
