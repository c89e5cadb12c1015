"""The CPU speed-ups change products, losses and gradients by rounding alone."""

import copy

import pytest
import torch
from audiollm.command_line import cpu_speed
from audiollm.command_line.cpu_speed import fast_linear, fast_product, takes_onednn, use_cpu_speed
from audiollm.lora import FrozenLinearWithLora
from batches import Row, assert_same_step, labelled, loss_and_gradients, make_row
from tiny_models import enable_checkpointing
from torch import nn

ROWS, IN_FEATURES, OUT_FEATURES, RANK = 40, 160, 136, 4
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
PREFIX_LENGTH = 12


@pytest.fixture
def by_onednn(monkeypatch) -> None:
    """Products by oneDNN, as on a processor where it is faster."""
    monkeypatch.setattr(cpu_speed, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(FrozenLinearWithLora, "product", staticmethod(fast_product))


def operands(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Input, weight, bias and more."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, IN_FEATURES), (OUT_FEATURES, IN_FEATURES), (OUT_FEATURES,), *shapes)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def assert_same_gradients(result, expected, leaves, atol: float) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)
    upstream = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(each, leaves, upstream) for each in (result, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("trains", [(True, False, False), (True, True, True)])
def test_products_and_gradients_are_those_of_autograd(by_onednn, trains: tuple[bool, bool, bool]) -> None:
    x, weight, bias = operands()
    assert takes_onednn(x, weight)
    expected = x.double() @ weight.double().T + bias
    torch.testing.assert_close(fast_product(x, weight, bias).double(), expected, rtol=0, atol=1e-4)
    inputs = [x.view(2, ROWS // 2, IN_FEATURES), weight, bias]
    leaves = [tensor.requires_grad_() for tensor, wanted in zip(inputs, trains) if wanted]
    assert_same_gradients(fast_linear(*inputs), nn.functional.linear(*inputs), leaves, 1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast_linear(x, weight, bias).dtype == torch.bfloat16


def test_fused_lora_and_its_gradients_are_those_of_autograd(by_onednn) -> None:
    x, weight, bias, down, up = operands((RANK, IN_FEATURES), (OUT_FEATURES, RANK))
    leaves = [tensor.requires_grad_() for tensor in (x, down, up)]
    result = FrozenLinearWithLora.apply(x, weight, bias, None, down, up, 0.5)
    assert_same_gradients(result, nn.functional.linear(x, weight, bias) + 0.5 * x @ down.T @ up.T, leaves, 1e-2)


def test_what_oneDNN_is_not_faster_at_stays_torchs(by_onednn) -> None:
    bfloat16, meta = {"dtype": torch.bfloat16}, {"device": "meta"}
    for rows, width, options in ((ROWS, 160, bfloat16), (1, 160, {}), (ROWS, 4, {}), (ROWS, 160, meta)):
        x, weight = torch.ones(rows, width, **options), torch.ones(OUT_FEATURES, width, **options)
        assert not takes_onednn(x, weight)
        assert fast_product(x, weight).shape == (rows, OUT_FEATURES)


@pytest.mark.parametrize(
    "processor, capability, expected",
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)]
    + [(None, "AVX512", False)],
)
def test_oneDNN_is_taken_by_processor(monkeypatch, tmp_path, processor, capability: str, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    if processor is not None:
        file.write_text(f"vendor_id\t: {processor}\n")
    monkeypatch.setattr(cpu_speed, "PROCESSOR_FILE", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu_speed.onednn_is_faster.__wrapped__() is expected


# ---- shared beginnings -----------------------------------------------------------------------------------------------


def batch_with_prefix(config, num_rows: int = 3) -> dict[str, torch.Tensor]:
    """Rows that begin alike and then hold a recording each, of different lengths; labels on all text."""
    prefix = make_row(config, PREFIX_LENGTH, seed=9).ids
    rests = [make_row(config, (40 + 30 * index,), 4 + index, seed=index) for index in range(num_rows)]
    return labelled(config, [Row(torch.cat([prefix, rest.ids]), rest.windows) for rest in rests])


def positions_run(model, batch) -> list[int]:
    """Positions that the language model's layers saw, call by call."""
    seen: list[int] = []
    layer = model.get_decoder().layers[0].mlp
    handle = layer.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0] * args[0].shape[1]))
    model(**batch)
    handle.remove()
    return seen


def assert_shared_equals_full(model, batch) -> None:
    """Told the positions, which start at zero as they would anyway, the model runs every row whole."""
    use_cpu_speed(model)
    rows, length = batch["input_ids"].shape
    whole = {**batch, "position_ids": torch.arange(length).expand(rows, -1)}
    boundary = PREFIX_LENGTH + 1  # `<audio>` is alike in all rows too
    assert positions_run(model, batch) == [boundary, rows * (length - boundary)]
    assert positions_run(model, whole) == [rows * length]
    assert_same_step(loss_and_gradients(model, batch), loss_and_gradients(model, whole))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_shared_beginning_is_run_once(tiny_model, attention: str) -> None:
    """(test_text_rows.py has other language models.)"""
    tiny_model.set_attn_implementation(attention)
    assert_shared_equals_full(tiny_model.train(), batch_with_prefix(tiny_model.config))
    batch = batch_with_prefix(tiny_model.config, num_rows=1)
    batch = {name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    batch["input_features"] = torch.randn_like(batch["input_features"])
    batch.pop("attention_mask")
    assert_shared_equals_full(tiny_model, batch)


def test_when_rows_are_run_whole(tiny_model) -> None:
    config = tiny_model.config
    batch = batch_with_prefix(config)
    whole = [batch["input_ids"].numel()]
    names: list[str | None] = ["speech", None, "speech"]
    tiny_model.train()
    use_cpu_speed(tiny_model)
    assert len(positions_run(tiny_model, batch)) == 2
    short = batch["input_ids"].clone()
    short[1, 1] = 7 if short[1, 1] != 7 else 8
    for changed in (
        {"adapter_names": names},  # the second row is the base's
        {"adapter_names": [None] * 3},
        {"use_cache": True},
        {"output_hidden_states": True},
        {"input_ids": short},  # one position alike is not worth a pass
    ):
        assert positions_run(tiny_model, {**batch, **changed}) == whole
    assert positions_run(tiny_model.eval(), batch) == whole
    checkpointed = copy.deepcopy(tiny_model).train()
    enable_checkpointing(checkpointed, {"use_reentrant": False})
    assert positions_run(checkpointed, batch) == whole
    tiny_model.train()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:  # several processes run their layers equally often
        assert positions_run(tiny_model, batch) == whole
    finally:
        torch.distributed.destroy_process_group()
