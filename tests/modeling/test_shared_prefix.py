"""A beginning that all rows share is run once, and that changes neither loss nor gradients."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from audiollm import AudioLlmForConditionalGeneration
from audiollm.shared_prefix import shared_prefix_length
from batches import Row, collate, make_row
from tiny_models import enable_checkpointing, randomise_trainables, save_text_base

IGNORED = -100
PREFIX_LENGTH = 12
#: Architectures some of whose layers attend to a window only, and do not keep what has left it.
SLIDING = ("mistral", "gemma2")


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
    """How many positions the language model's layers saw, call by call."""
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
    assert positions_run(model.train(), batch) == [batch["input_ids"].numel()]


def test_without_padding(tiny_model) -> None:
    batch = batch_with_prefix(tiny_model.config, num_rows=1)
    batch = {name: value.repeat(3, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    batch.pop("attention_mask")
    randomise_trainables(tiny_model, std=0.05).train()
    assert_shared_equals_full(tiny_model, batch)


def test_when_rows_are_run_whole(tiny_model) -> None:
    config = tiny_model.config
    batch = batch_with_prefix(config)
    whole = [batch["input_ids"].numel()]
    names: list[str | None] = ["speech", None, "speech"]
    tiny_model.train()
    assert len(positions_run(tiny_model, batch)) == 2
    assert positions_run(tiny_model, {**batch, "adapter_names": names}) == whole  # the second row is the base's
    assert positions_run(tiny_model, {**batch, "adapter_names": [None] * 3}) == whole
    assert positions_run(tiny_model, {**batch, "use_cache": True}) == whole
    assert positions_run(tiny_model, {**batch, "output_hidden_states": True}) == whole
    assert positions_run(tiny_model, {k: v for k, v in batch.items() if k != "labels"}) == whole
    short = {**batch, "input_ids": batch["input_ids"].clone()}
    short["input_ids"][1, 1] = 7 if batch["input_ids"][1, 1] != 7 else 8  # one position alike: not worth a pass
    assert positions_run(tiny_model, short) == whole
    enable_checkpointing(tiny_model, {"use_reentrant": False})
    assert positions_run(tiny_model, batch) == whole
    assert positions_run(tiny_model.eval(), batch) == whole


def test_length_of_the_shared_beginning() -> None:
    ids = torch.tensor([[1, 2, 3, 9, 5], [1, 2, 3, 9, 5]])
    ones = torch.ones_like(ids)
    assert shared_prefix_length(ids, None, excluded_id=9) == 3
    assert shared_prefix_length(ids, ones, excluded_id=0) == 4  # one is left to be run
    left_padded = ones.clone()
    left_padded[1, 0] = 0
    assert shared_prefix_length(ids, left_padded, excluded_id=0) == 0
    assert shared_prefix_length(ids, torch.ones(2, 1, 5, 5), excluded_id=0) == 0
    assert shared_prefix_length(ids + torch.tensor([[0], [1]]), ones, excluded_id=0) == 0


def test_several_processes_run_their_layers_equally_often(tiny_model) -> None:
    batch = batch_with_prefix(tiny_model.config)
    tiny_model.train()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert positions_run(tiny_model, batch) == [batch["input_ids"].numel()]
    finally:
        torch.distributed.destroy_process_group()
