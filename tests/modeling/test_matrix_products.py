"""Products with frozen weights are the same, to rounding, whichever library makes them."""

import pytest
import torch
from audiollm import matrix_products
from audiollm.lora import FrozenLinearWithLora
from audiollm.matrix_products import (
    FastLinear,
    fast_linear,
    fast_product,
    takes_onednn,
    use_fast_products,
)
from torch import nn

ROWS, IN_FEATURES, OUT_FEATURES, RANK = 40, 160, 136, 4
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch's choice"])
def by_onednn(request, monkeypatch) -> bool:
    """Products by oneDNN, as on a processor where it is faster, or by what torch takes."""
    monkeypatch.setattr(matrix_products, "onednn_is_faster", lambda: request.param)
    return request.param


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, IN_FEATURES), (OUT_FEATURES, IN_FEATURES), (OUT_FEATURES,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_products_are_those_of_the_formula(by_onednn: bool, no_gradients) -> None:
    x, weight, bias = operands()
    assert takes_onednn(x, weight) is by_onednn
    with no_gradients():
        expected = x.double() @ weight.double().T
        torch.testing.assert_close(fast_product(x, weight).double(), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(fast_product(x, weight, bias).double(), expected + bias, rtol=0, atol=1e-4)
        grad = expected.float()
        expected = grad.double() @ weight.double()
        torch.testing.assert_close(fast_product(grad, weight.T).double(), expected, rtol=1e-5, atol=1e-3)


def test_fused_lora_and_its_gradients_are_those_of_autograd(by_onednn: bool) -> None:
    x, weight, bias = operands()
    down, up = torch.randn(RANK, IN_FEATURES), torch.randn(OUT_FEATURES, RANK)
    leaves = [tensor.requires_grad_() for tensor in (x, down, up)]
    result = FrozenLinearWithLora.apply(x, weight, bias, None, down, up, 0.5)
    expected = nn.functional.linear(x, weight, bias) + 0.5 * x @ down.T @ up.T
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)
    upstream = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(result, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "x, weight",
    [
        (
            torch.ones(ROWS, IN_FEATURES, dtype=torch.bfloat16),
            torch.ones(OUT_FEATURES, IN_FEATURES, dtype=torch.bfloat16),
        ),
        (torch.ones(1, IN_FEATURES), torch.ones(OUT_FEATURES, IN_FEATURES)),
        (torch.ones(ROWS, 4), torch.ones(OUT_FEATURES, 4)),
        (torch.ones(ROWS, IN_FEATURES, device="meta"), torch.ones(OUT_FEATURES, IN_FEATURES, device="meta")),
    ],
    ids=["bfloat16", "one row", "narrow", "meta"],
)
def test_what_oneDNN_is_not_faster_at_stays_torchs(monkeypatch, x: torch.Tensor, weight: torch.Tensor) -> None:
    monkeypatch.setattr(matrix_products, "onednn_is_faster", lambda: True)
    assert not takes_onednn(x, weight)
    assert fast_product(x, weight).shape == (len(x), len(weight))


def test_layers_are_replaced_with_the_same_parameters(by_onednn: bool) -> None:
    stock = nn.Sequential(nn.Linear(IN_FEATURES, OUT_FEATURES), nn.ReLU(), nn.Linear(OUT_FEATURES, 130, bias=False))
    names = {name: id(parameter) for name, parameter in stock.named_parameters()}
    x = torch.randn(2, ROWS, IN_FEATURES)
    expected = stock(x)
    use_fast_products(stock)
    assert isinstance(stock[0], FastLinear) and isinstance(stock[2], FastLinear)
    assert {name: id(parameter) for name, parameter in stock.named_parameters()} == names
    torch.testing.assert_close(stock(x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(stock(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trains", [(True, False, False), (False, True, False), (True, True, True)])
def test_gradients_are_those_of_autograd(by_onednn: bool, trains: tuple[bool, bool, bool]) -> None:
    x, weight, bias = operands()
    inputs = [x.view(2, ROWS // 2, IN_FEATURES), weight, bias]
    leaves = [tensor.requires_grad_() for tensor, wanted in zip(inputs, trains) if wanted]
    result, expected = fast_linear(*inputs), nn.functional.linear(*inputs)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(result, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_matrices_with_gaps_are_multiplied_as_others(by_onednn: bool) -> None:
    x, weight, _ = operands()
    wide, tall = torch.randn(ROWS, 3 * IN_FEATURES), torch.randn(2 * OUT_FEATURES, IN_FEATURES)
    wide[:, IN_FEATURES : 2 * IN_FEATURES], tall[::2] = x, weight
    found = fast_product(wide[:, IN_FEATURES : 2 * IN_FEATURES], tall[::2])
    torch.testing.assert_close(found, nn.functional.linear(x, weight), rtol=1e-4, atol=1e-4)


def test_autocast_is_left_to_torch(by_onednn: bool) -> None:
    x, weight, bias = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast_linear(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "processor, capability, expected",
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_oneDNN_is_taken_by_processor(monkeypatch, tmp_path, processor, capability: str, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    if processor is not None:
        file.write_text(f"vendor_id\t: {processor}\n")
    monkeypatch.setattr(matrix_products, "PROCESSOR_FILE", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert matrix_products.onednn_is_faster.__wrapped__() is expected
