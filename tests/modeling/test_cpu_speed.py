"""The CPU speed-ups change products, losses and gradients by rounding alone."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from audiollm import AudioLlmForConditionalGeneration, cpu_speed
from audiollm.cpu_speed import (
    fast_linear,
    fast_product,
    takes_onednn,
    use_cpu_speed,
)
from audiollm.lora import FrozenLinearWithLora
from batches import Row, collate, make_row
from tiny_models import enable_checkpointing, randomise_trainables, save_text_base
from torch import nn

ROWS, IN_FEATURES, OUT_FEATURES, RANK = 40, 160, 136, 4
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
IGNORED = -100
PREFIX_LENGTH = 12
#: Architectures some of whose layers attend to a window only, and do not keep what has left it.
SLIDING = ("mistral", "gemma2")


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch's choice"])
def by_onednn(request, monkeypatch) -> bool:
    """Products by oneDNN, as on a processor where it is faster, or by what torch takes."""
    monkeypatch.setattr(cpu_speed, "onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(FrozenLinearWithLora, "product", staticmethod(fast_product))
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
    monkeypatch.setattr(cpu_speed, "onednn_is_faster", lambda: True)
    assert not takes_onednn(x, weight)
    assert fast_product(x, weight).shape == (len(x), len(weight))


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
    monkeypatch.setattr(cpu_speed, "PROCESSOR_FILE", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu_speed.onednn_is_faster.__wrapped__() is expected


# ---- shared beginnings -----------------------------------------------------------------------------------------------


def batch_with_prefix(config, num_rows: int = 3) -> dict[str, torch.Tensor]:
    """Rows that begin alike and then hold a recording each, of different lengths; labels on all text."""
    prefix = make_row(config, PREFIX_LENGTH, seed=9).ids
    rows = []
    for index in range(num_rows):
        rest = make_row(config, (40 + 30 * index,), 4 + index, seed=index)
        rows.append(Row(torch.cat([prefix, rest.ids]), rest.windows))
    batch = collate(config, rows, "right")
    ignored = (batch["input_ids"] >= config.vocab_size) | ~batch["attention_mask"].bool()
    batch["labels"] = batch["input_ids"].masked_fill(ignored, IGNORED)
    return batch


def positions_run(model, batch) -> list[int]:
    """Positions that the language model's layers saw, call by call."""
    seen: list[int] = []
    layer = model.get_decoder().layers[0].mlp
    handle = layer.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0] * args[0].shape[1]))
    model(**batch)
    handle.remove()
    return seen


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_shared_equals_full(model, batch) -> None:
    """Told the positions, which start at zero as they would anyway, the model runs every row whole."""
    use_cpu_speed(model)
    rows, length = batch["input_ids"].shape
    whole = {**batch, "position_ids": torch.arange(length).expand(rows, -1)}
    boundary = PREFIX_LENGTH + 1  # `<audio>` is alike in all rows too
    assert positions_run(model, batch) == [boundary, rows * (length - boundary)]
    assert positions_run(model, whole) == [rows * length]
    (loss, gradients), (expected_loss, expected) = loss_and_gradients(model, batch), loss_and_gradients(model, whole)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys() == set(model.trainable_names())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients(tiny_bases, attention: str) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, attn_implementation=attention)
    randomise_trainables(model, std=0.05).train()
    assert_shared_equals_full(model, batch_with_prefix(model.config))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in SLIDING])
def test_other_architectures(tiny_bases, tmp_path: Path, name: str) -> None:
    make_config, fields = ARCHITECTURES[name]
    folder = save_text_base(tmp_path / "text", make_config())
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, lora_rank=4, **fields)
    randomise_trainables(model, std=0.05).train()
    assert_shared_equals_full(model, batch_with_prefix(model.config))


@pytest.mark.parametrize("name", SLIDING)
def test_layers_that_forget_are_run_whole(tiny_bases, tmp_path: Path, name: str) -> None:
    make_config, fields = ARCHITECTURES[name]
    folder = save_text_base(tmp_path / "text", make_config())
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, lora_rank=4, **fields)
    batch = batch_with_prefix(model.config)
    use_cpu_speed(model)
    assert positions_run(model.train(), batch) == [batch["input_ids"].numel()]


def test_without_padding(tiny_model) -> None:
    batch = batch_with_prefix(tiny_model.config, num_rows=1)
    batch = {name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    batch["input_features"] = torch.randn_like(batch["input_features"])
    batch.pop("attention_mask")
    randomise_trainables(tiny_model, std=0.05).train()
    assert_shared_equals_full(tiny_model, batch)


def test_when_rows_are_run_whole(tiny_model) -> None:
    config = tiny_model.config
    batch = batch_with_prefix(config)
    whole = [batch["input_ids"].numel()]
    names: list[str | None] = ["speech", None, "speech"]
    tiny_model.train()
    use_cpu_speed(tiny_model)
    assert len(positions_run(tiny_model, batch)) == 2
    assert positions_run(tiny_model, {**batch, "adapter_names": names}) == whole  # the second row is the base's
    assert positions_run(tiny_model, {**batch, "adapter_names": [None] * 3}) == whole
    assert positions_run(tiny_model, {**batch, "use_cache": True}) == whole
    assert positions_run(tiny_model, {**batch, "output_hidden_states": True}) == whole
    short = {**batch, "input_ids": batch["input_ids"].clone()}
    short["input_ids"][1, 1] = 7 if batch["input_ids"][1, 1] != 7 else 8  # one position alike: not worth a pass
    assert positions_run(tiny_model, short) == whole
    enable_checkpointing(tiny_model, {"use_reentrant": False})
    assert positions_run(tiny_model, batch) == whole
    assert positions_run(tiny_model.eval(), batch) == whole


def test_several_processes_run_their_layers_equally_often(tiny_model) -> None:
    batch = batch_with_prefix(tiny_model.config)
    tiny_model.train()
    use_cpu_speed(tiny_model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert positions_run(tiny_model, batch) == [batch["input_ids"].numel()]
    finally:
        torch.distributed.destroy_process_group()
