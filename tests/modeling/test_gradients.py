"""Gradients, activation checkpointing and the loss: trained weights move, frozen ones stay."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from audiollm import AudioLlmForConditionalGeneration
from batches import collate, make_row, mixed_rows
from tiny_models import enable_checkpointing, randomise_trainables, save_text_base

IGNORED = -100
CHECKPOINTING = {
    "reentrant": {"use_reentrant": True},
    "non-reentrant": {"use_reentrant": False},
}


def labelled(config, rows, num_supervised: int = 3) -> dict[str, torch.Tensor]:
    """The last few ids of each row are to be learned; padded on the right, as in training."""
    batch = collate(config, rows, "right")
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
    for index, row in enumerate(rows):
        text = [position for position, token in enumerate(row.ids.tolist()) if token < config.vocab_size]
        for position in text[-num_supervised:]:
            batch["labels"][index, position] = row.ids[position]
    return batch


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def backward(model, batch, between=None) -> dict[str, torch.Tensor]:
    """Gradients of one step; `between` runs after the forward pass and before the backward pass."""
    model.zero_grad()
    loss = model(**batch).loss
    if between is not None:
        between()
    loss.backward()
    return gradients(model)


@pytest.mark.quick
def test_gradients_reach_what_trains_and_nothing_else(tiny_model) -> None:
    tiny_model.train()
    found = backward(tiny_model, labelled(tiny_model.config, mixed_rows(tiny_model.config)))
    assert set(found) == set(tiny_model.trainable_names())
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in found if "lora" in n} == set(
        tiny_model.config.lora_target_modules
    )
    assert all(bool(gradient.any()) for gradient in found.values())
    frozen = {name for name, parameter in tiny_model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in tiny_model.named_parameters()} - set(found)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_optimizer_leaves_the_bases_as_they_are(tiny_bases, dtype) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, dtype=dtype).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = set(model.trainable_names())
    assert {model.get_parameter(name).dtype for name in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    batch = labelled(model.config, mixed_rows(model.config))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained


@pytest.mark.parametrize("input_grads", [False, True], ids=["plain", "input-require-grads"])
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_activation_checkpointing(tiny_model, kind: str, input_grads: bool) -> None:
    config = tiny_model.config
    batch = labelled(config, mixed_rows(config))
    text = collate(config, [make_row(config, 5)])
    tiny_model.train()
    expected = backward(tiny_model, batch)
    enable_checkpointing(tiny_model, CHECKPOINTING[kind])
    if input_grads:
        tiny_model.enable_input_require_grads()
    runs = {
        "plain": backward(tiny_model, batch),
        "text in between": backward(tiny_model, batch, lambda: tiny_model(**text)),
        "all rows adapted in between": backward(
            tiny_model, batch, lambda: tiny_model(**batch, adapter_names=["speech"] * 5)
        ),
    }
    for found in runs.values():
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpointing_keeps_routes_in_other_architectures(tiny_bases, tmp_path: Path, name: str) -> None:
    make_config, fields = ARCHITECTURES[name]
    folder = save_text_base(tmp_path / "text", make_config())
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, lora_rank=4, **fields)
    randomise_trainables(model, std=0.05).train()
    batch = labelled(model.config, mixed_rows(model.config))
    text = collate(model.config, [make_row(model.config, 5)])
    expected = backward(model, batch)
    enable_checkpointing(model, {"use_reentrant": False})
    found = backward(model, batch, lambda: model(**text))
    assert found.keys() == expected.keys() == set(model.trainable_names())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-4, rtol=1e-4)


def test_input_require_grads_can_be_taken_back(tiny_model) -> None:
    ids = torch.tensor([[7, 8]])
    tiny_model.enable_input_require_grads()
    assert tiny_model.get_input_embeddings()(ids).requires_grad
    tiny_model.disable_input_require_grads()
    assert not tiny_model.get_input_embeddings()(ids).requires_grad


def test_audio_tower_stays_in_evaluation_mode(tiny_bases) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases)
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.training and model.model.language_model.training and model.model.multi_modal_projector.training
    assert not any(module.training for module in model.model.audio_tower.modules())
    model.model.train()
    assert not model.model.audio_tower.training
    model.model.audio_tower.layers[-1].requires_grad_(True)  # whoever trains it has it in training mode
    assert model.train().model.audio_tower.training
    found = backward(model, labelled(model.config, mixed_rows(model.config)))
    assert any("audio_tower.layers.1" in name for name in found)


@pytest.mark.quick
@pytest.mark.parametrize("num_items", [None, 40, torch.tensor(40)], ids=["mean", "int", "tensor"])
def test_loss_is_that_of_the_full_logits(tiny_model, num_items) -> None:
    batch = labelled(tiny_model.config, mixed_rows(tiny_model.config))
    extra = {} if num_items is None else {"num_items_in_batch": num_items}
    evaluated = tiny_model(**batch, **extra)
    logits, targets = evaluated.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    reduction = "mean" if num_items is None else "sum"
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=reduction)
    expected = expected if num_items is None else expected / int(num_items)
    torch.testing.assert_close(evaluated.loss, expected)
    trained = tiny_model.train()(**batch, **extra)
    assert trained.logits is None  # the head runs on the supervised positions only
    torch.testing.assert_close(trained.loss, expected)
    shifted = torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORED)
    assert torch.equal(tiny_model(**batch, shift_labels=shifted, **extra).loss, trained.loss)


def test_batch_without_supervised_positions(tiny_model) -> None:
    batch = labelled(tiny_model.config, mixed_rows(tiny_model.config))
    batch["labels"].fill_(IGNORED)
    tiny_model.train()
    found = backward(tiny_model, batch)
    assert tiny_model(**batch).loss.item() == 0.0
    assert not any(bool(gradient.any()) for gradient in found.values())


def test_batch_without_audio_reaches_every_trained_weight(tiny_model) -> None:
    """In distributed training every rank runs the same modules, with gradients of zero where there is no audio."""
    config = tiny_model.config
    texts = labelled(config, [make_row(config, 9, seed=2), make_row(config, 5, seed=4)])
    expected = tiny_model(**texts).loss
    tiny_model.train()
    assert torch.equal(tiny_model(**texts).loss, expected)
    found = backward(tiny_model, texts)
    assert set(found) == set(tiny_model.trainable_names())
    assert not any(bool(gradient.any()) for gradient in found.values())


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel_training_has_no_unused_weights(tiny_bases, process_group) -> None:
    """DistributedDataParallel raises in the second step when the first one left a weight out."""
    adapters = {"speech": {"rank": 2}, "sound": {"rank": 2}}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_adapters=adapters).train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    texts = labelled(model.config, [make_row(model.config, 9), make_row(model.config, 5)])
    mixed = labelled(model.config, mixed_rows(model.config))
    for batch in (texts, mixed, texts):
        parallel(**batch).loss.backward()
    assert set(gradients(model)) == set(model.trainable_names())


def test_audio_ids_in_the_labels_are_named(tiny_model) -> None:
    batch = labelled(tiny_model.config, mixed_rows(tiny_model.config))
    batch["labels"] = batch["input_ids"].clone()
    with pytest.raises(ValueError, match=r"labels holds the id 130.*Audio tokens must be -100"):
        tiny_model(**batch)


def test_trainable_parameters_are_told(tiny_model, capsys) -> None:
    tiny_model.print_trainable_parameters()
    trained = sum(tiny_model.get_parameter(name).numel() for name in tiny_model.trainable_names())
    total = sum({id(p): p.numel() for p in tiny_model.parameters()}.values())
    assert f"trainable params: {trained:,} || all params: {total:,}" in capsys.readouterr().out


@pytest.mark.parametrize("tower_trains", [False, True])
def test_a_batch_without_audio_reaches_all_that_trains(tiny_model, tower_trains: bool) -> None:
    """As distributed training needs: every process has a gradient for every weight."""
    tiny_model.model.audio_tower.requires_grad_(tower_trains)
    tiny_model.model.audio_tower.embed_positions.requires_grad_(False)
    tiny_model.train()
    ids = torch.tensor([[7, 8, 9]])
    tiny_model(input_ids=ids, labels=ids).loss.backward()
    without = [name for name, value in tiny_model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    if tower_trains:
        tower = tiny_model.model.audio_tower
        assert all(not value.grad.any() for value in tower.parameters() if value.grad is not None)
