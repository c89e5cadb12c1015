"""The fused LoRA layer gives what autograd's own way gives, and its dropout is dropout."""

import pytest
import torch
from audiollm import matrix_products
from audiollm.frozen_linear import FrozenLinearWithLora, can_fuse, dropout_mask, frozen_linear_with_lora
from audiollm.lora_routing import RoutedLoraLinear
from batches import collate, make_row, mixed_rows
from torch import nn

ROWS, IN_FEATURES, OUT_FEATURES, RANK = 6, 5, 7, 2
SCALING = 1.5


def operands(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (ROWS, IN_FEATURES),
        "weight": (OUT_FEATURES, IN_FEATURES),
        "bias": (OUT_FEATURES,),
        "down": (RANK, IN_FEATURES),
        "up": (OUT_FEATURES, RANK),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(name in ("x", "down", "up"))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("with_mask", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
def test_gradients_are_those_of_the_formula(with_mask: bool, with_bias: bool) -> None:
    given = operands()
    mask = dropout_mask(given["x"], 0.4)[0] if with_mask else None
    bias = given["bias"] if with_bias else None

    def fused(x, down, up):
        return FrozenLinearWithLora.apply(x, given["weight"], bias, mask, down, up, SCALING)

    seen = given["x"] if mask is None else given["x"] * mask
    expected = (
        nn.functional.linear(given["x"], given["weight"], bias) + SCALING * seen @ given["down"].T @ given["up"].T
    )
    torch.testing.assert_close(fused(given["x"], given["down"], given["up"]), expected)
    assert torch.autograd.gradcheck(fused, (given["x"], given["down"], given["up"]))


def test_trained_factors_keep_their_precision() -> None:
    given = {name: value.detach() for name, value in operands(torch.bfloat16).items()}
    down, up = (given[name].float().requires_grad_() for name in ("down", "up"))
    result = FrozenLinearWithLora.apply(given["x"], given["weight"], None, None, down, up, SCALING)
    result.sum().backward()
    assert result.dtype == torch.bfloat16
    assert down.grad.dtype == up.grad.dtype == torch.float32


@pytest.mark.parametrize("with_mask", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_without_gradients_every_bit_is_the_same(with_mask: bool, dtype: torch.dtype, no_gradients) -> None:
    given = operands(dtype)
    factors = [given[name].detach().float().requires_grad_() for name in ("down", "up")]
    mask = dropout_mask(given["x"], 0.4)[0] if with_mask else None
    arguments = (given["x"], given["weight"], given["bias"], mask, *factors, SCALING)
    expected = frozen_linear_with_lora(*arguments)
    assert expected.requires_grad
    with no_gradients():
        assert torch.equal(frozen_linear_with_lora(*arguments), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(frozen_linear_with_lora(*arguments), expected)


@pytest.mark.parametrize("probability", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dropout_drops_its_share(probability: float, dtype: torch.dtype) -> None:
    x = torch.randn(401, 499).to(dtype)  # not a multiple of four
    torch.manual_seed(0)
    mask, factor = dropout_mask(x, probability)
    assert mask.shape == x.shape and mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    dropped = 1 - mask.double()
    assert dropped.mean().item() == pytest.approx(probability, rel=0.1)
    assert factor == pytest.approx(1 / (1 - probability), rel=1e-4)
    # Elements that come of one draw are independent too.
    both = (dropped[:, :-1] * dropped[:, 1:]).mean().item()
    assert both == pytest.approx(probability**2, abs=5e-4 + 0.02 * probability**2)
    assert not torch.equal(dropout_mask(x, probability)[0], mask)
    torch.manual_seed(0)
    assert torch.equal(dropout_mask(x, probability)[0], mask)


def test_dropout_of_nothing_and_of_everything() -> None:
    assert dropout_mask(torch.empty(0, 8), 0.5)[0].shape == (0, 8)
    mask, factor = dropout_mask(torch.ones(64, 64), 1 - 1e-9)
    assert mask.sum() <= 8 and factor < float("inf")


def training_batch(config) -> dict[str, torch.Tensor]:
    batch = collate(config, [make_row(config, 4, (150,), 6, seed=1), make_row(config, 2, (40,), 6, seed=3)], "right")
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] >= config.vocab_size, -100)
    return batch


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_fused_and_plain_layers_agree(tiny_model) -> None:
    """A hook on a base layer must be called, so that the layer is not fused: the same gradients either way."""
    tiny_model.train()
    batch = training_batch(tiny_model.config)
    fused = gradients(tiny_model, batch)
    calls = []
    for module in tiny_model.modules():
        if isinstance(module, RoutedLoraLinear):
            assert can_fuse(module.base_layer, torch.zeros(1))
            module.base_layer.register_forward_hook(lambda *_: calls.append(1))
    plain = gradients(tiny_model, batch)
    assert calls and fused.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fused[name], gradient, atol=1e-5, rtol=1e-4)


def test_either_library_gives_the_same_gradients(tiny_model, monkeypatch) -> None:
    tiny_model.train()
    batch = training_batch(tiny_model.config)
    found = {}
    for faster in (True, False):
        monkeypatch.setattr(matrix_products, "onednn_is_faster", lambda faster=faster: faster)
        found[faster] = gradients(tiny_model, batch)
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_head_with_a_hook_is_called_while_training(tiny_model) -> None:
    tiny_model.train()
    batch = training_batch(tiny_model.config)
    expected = tiny_model(**batch).loss
    calls = []
    tiny_model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(tiny_model(**batch).loss, expected)
    assert calls


def test_what_is_not_plain_is_not_fused() -> None:
    layer, x = nn.Linear(4, 4), torch.zeros(2, 4)
    assert not can_fuse(layer, x)  # it trains
    layer.requires_grad_(False)
    assert can_fuse(layer, x) and not can_fuse(layer, x.bfloat16())
    for trained in (layer.weight, layer.bias):
        trained.requires_grad_(True)
        assert not can_fuse(layer, x)
        trained.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(layer, x)  # autocast would compute in bfloat16
        assert can_fuse(layer.bfloat16(), x.bfloat16())

    class Quantized(nn.Linear):
        pass

    assert not can_fuse(Quantized(4, 4).requires_grad_(False), x)


@pytest.mark.parametrize("rows", ["audio only", "mixed"])
def test_dropout_acts_in_training_only(tiny_model, rows: str) -> None:
    config = tiny_model.config
    batch = training_batch(config) if rows == "audio only" else collate(config, mixed_rows(config), "right")
    with torch.no_grad():
        expected = tiny_model(**batch).logits
        for module in tiny_model.modules():
            if isinstance(module, RoutedLoraLinear):
                module.lora_dropout["speech"] = nn.Dropout(0.3).eval()
        assert expected is None or torch.equal(tiny_model(**batch).logits, expected)
        batch.pop("labels", None)
        expected = tiny_model.eval()(**batch).logits
        trained = tiny_model.train()(**batch).logits
        assert not torch.allclose(trained, expected, atol=1e-3)
        assert not torch.equal(trained, tiny_model(**batch).logits)


@torch.no_grad()
def test_layers_that_peft_merged_add_nothing_more(tiny_model) -> None:
    config = tiny_model.config
    batch = collate(config, [make_row(config, 4, (150,), 6, seed=1)])
    expected = tiny_model(**batch).logits
    layers = [module for module in tiny_model.modules() if isinstance(module, RoutedLoraLinear)]
    for layer in layers:
        layer.merge()
    torch.testing.assert_close(tiny_model(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    for layer in layers:
        layer.unmerge()
    torch.testing.assert_close(tiny_model(**batch).logits, expected, atol=1e-4, rtol=1e-4)
