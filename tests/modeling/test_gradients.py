"""Gradients, activation checkpointing, padding, packing and the loss: trained weights move, frozen ones stay."""

import logging
import os
from pathlib import Path

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.modeling_audiollm import is_padded_on_the_right, logger
from audiollm.training.collator import pack_batch, uses_flash
from batches import IGNORED_LABEL, assert_same_step, collate, labelled, loss_and_gradients, make_row, mixed_rows
from clients import play
from tiny_models import enable_checkpointing
from transformers.utils import is_flash_attn_2_available


@pytest.mark.quick
def test_gradients_reach_what_trains_and_nothing_else(tiny_model, supervised, capsys) -> None:
    _, found = loss_and_gradients(tiny_model.train(), supervised)
    assert set(found) == set(tiny_model.trainable_names())
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in found if "lora" in name}
    assert targets == set(tiny_model.config.lora_target_modules)
    assert all(bool(gradient.any()) for gradient in found.values())
    assert set(found) == {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    tiny_model.print_trainable_parameters()
    trained, total = sum(each.numel() for each in found.values()), sum(p.numel() for p in tiny_model.parameters())
    assert f"trainable params: {trained:,} || all params: {total:,}" in capsys.readouterr().out


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_optimizer_leaves_the_bases_as_they_are(tiny_bases, dtype, supervised) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, dtype=dtype).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = set(model.trainable_names())
    assert {model.get_parameter(name).dtype for name in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(4):
        losses.append(float(loss_and_gradients(model, supervised)[0]))
        optimizer.step()
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained


@pytest.mark.parametrize("input_grads", [False, True], ids=["plain", "input-require-grads"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(tiny_model, reentrant: bool, input_grads: bool) -> None:
    """Whatever is run between a layer's first and second run."""
    config = tiny_model.config
    batch, text = labelled(config, mixed_rows(config)), collate(config, [make_row(config, 5)])
    expected = loss_and_gradients(tiny_model.train(), batch)
    enable_checkpointing(tiny_model, {"use_reentrant": reentrant})
    if input_grads:
        tiny_model.enable_input_require_grads()
    for between in (None, lambda: tiny_model(**text), lambda: tiny_model(**batch, adapter_names=["speech"] * 5)):
        assert_same_step(loss_and_gradients(tiny_model, batch, between), expected)
    tiny_model.disable_input_require_grads()
    assert not tiny_model.get_input_embeddings()(batch["input_ids"][:, :1]).requires_grad


def test_audio_tower_stays_in_evaluation_mode(tiny_model, supervised) -> None:
    model, tower = tiny_model, tiny_model.model.audio_tower
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.training and model.model.language_model.training and model.model.multi_modal_projector.training
    assert not any(module.training for module in tower.modules())
    tower.layers[-1].requires_grad_(True)  # whoever trains it has it in training mode
    assert model.train().model.audio_tower.training
    _, found = loss_and_gradients(model, supervised)
    assert any("audio_tower.layers.1" in name for name in found)


@pytest.mark.quick
@pytest.mark.parametrize("num_items", [None, 40, torch.tensor(40)], ids=["mean", "int", "tensor"])
def test_loss_is_that_of_the_full_logits(tiny_model, num_items, supervised) -> None:
    extra = {} if num_items is None else {"num_items_in_batch": num_items}
    evaluated = tiny_model(**supervised, **extra)
    logits, targets = evaluated.logits[:, :-1].flatten(0, 1), supervised["labels"][:, 1:].flatten()
    reduction = "mean" if num_items is None else "sum"
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction=reduction)
    expected = expected if num_items is None else expected / int(num_items)
    torch.testing.assert_close(evaluated.loss, expected)
    trained = tiny_model.train()(**supervised, **extra)
    assert trained.logits is None  # the head runs on the supervised positions only
    torch.testing.assert_close(trained.loss, expected)
    shifted = torch.nn.functional.pad(supervised.pop("labels")[:, 1:], (0, 1), value=IGNORED_LABEL)
    assert torch.equal(tiny_model(**supervised, shift_labels=shifted, **extra).loss, trained.loss)
    with pytest.raises(ValueError, match=r"labels holds the id 130.*Audio tokens must be -100"):
        tiny_model(**supervised, labels=supervised["input_ids"])


# ---- batches without audio or labels, as distributed training meets them -----------------------------------------------


def test_batch_without_supervised_positions(tiny_model, supervised) -> None:
    supervised["labels"].fill_(IGNORED_LABEL)
    loss, found = loss_and_gradients(tiny_model.train(), supervised)
    assert float(loss) == 0.0 and found and not any(bool(gradient.any()) for gradient in found.values())


@pytest.mark.parametrize("tower_trains", [False, True])
def test_batch_without_audio_reaches_every_trained_weight(tiny_model, tower_trains: bool, caplog, monkeypatch) -> None:
    """Every process has a gradient, of zero where there is no audio, for every weight; and it is said, once."""
    config, tower = tiny_model.config, tiny_model.model.audio_tower
    texts = labelled(config, [make_row(config, 9, seed=2), make_row(config, 5, seed=4)])
    expected = tiny_model(**texts).loss
    tower.requires_grad_(tower_trains)
    tower.embed_positions.requires_grad_(False)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logger.warning_once.cache_clear()
    for _ in range(2):
        loss, found = loss_and_gradients(tiny_model.train(), texts)
    assert torch.equal(loss, expected.detach())
    assert set(found) == {name for name, value in tiny_model.named_parameters() if value.requires_grad}
    assert not any(bool(gradient.any()) for gradient in found.values())
    assert caplog.text.count("no audio") == 1


#: DistributedDataParallel raises in the second step when the first one left a weight out. It ends without clearing up:
#: a process group that is cleared up with its model can wait for its own thread for ever.
DATA_PARALLEL = """
import os
import sys

import torch
from batches import composed, labelled, make_row, mixed_rows

adapters = {"speech": {"rank": 2}, "sound": {"rank": 2}}
model = composed(sys.argv[1:3], lora_adapters=adapters, projector_readout="pieces", projector_letters="ab").train()
texts = labelled(model.config, [make_row(model.config, 9), make_row(model.config, 5)])
mixed = labelled(model.config, mixed_rows(model.config))
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
parallel = torch.nn.parallel.DistributedDataParallel(model)
for batch in (texts, mixed, texts):
    parallel(**batch).loss.backward()
left_out = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
print(left_out, flush=True)
os._exit(0)
"""


def test_data_parallel_training_has_no_unused_weights(tiny_bases, tmp_path) -> None:
    here = Path(__file__).parent
    assert play(DATA_PARALLEL, *tiny_bases, cwd=tmp_path, PYTHONPATH=f"{here}{os.pathsep}{here.parent}") == "[]"


# ---- padding behind a row, which nobody looking ahead masks ------------------------------------------------------------


def masks_seen(model, batch) -> list[bool]:
    """True for each call that gave the language model a mask."""
    seen: list[bool] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, args, keywords: seen.append(keywords.get("attention_mask") is not None), with_kwargs=True
    )
    model(**batch)
    handle.remove()
    return seen


def test_padding_is_masked_where_it_would_reach_the_loss(tiny_model) -> None:
    """(test_text_rows.py compares steps with and without a mask.)"""
    config = tiny_model.config
    right, left = (labelled(config, mixed_rows(config), side) for side in ("right", "left"))
    expected = loss_and_gradients(tiny_model.train(), right)
    other = {**right, "input_ids": right["input_ids"].masked_fill(~right["attention_mask"].bool(), 5)}
    assert not torch.equal(right["input_ids"], other["input_ids"])
    assert_same_step(loss_and_gradients(tiny_model, other), expected, atol=0, rtol=0)
    assert masks_seen(tiny_model, right) == [False]
    for batch in (
        left,
        {**right, "use_cache": True},
        {**right, "output_hidden_states": True},
        {name: value for name, value in right.items() if name != "labels"},
    ):
        assert masks_seen(tiny_model, batch) == [True]
    assert masks_seen(tiny_model.eval(), right) == [True]
    for mask, expected in (([[1, 1, 0], [1, 0, 0]], True), ([[1, 0, 1], [1, 1, 1]], False)):
        assert is_padded_on_the_right(torch.tensor(mask)) is expected
    assert not is_padded_on_the_right(None)


# ---- packed rows: the loss and gradients of the padded batch, and no one sees another ---------------------------------


NUM_ITEMS = {"num_items_in_batch": torch.tensor(7)}


@pytest.fixture
def packed(supervised) -> dict[str, torch.Tensor]:
    found = pack_batch(supervised)
    assert found["input_ids"].shape == (1, int(supervised["attention_mask"].sum())) and "attention_mask" not in found
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_is_that_of_the_padded_batch(tiny_model, supervised, packed, attention: str) -> None:
    tiny_model.set_attn_implementation(attention)
    tiny_model.train()
    expected = loss_and_gradients(tiny_model, {**supervised, **NUM_ITEMS})
    assert_same_step(loss_and_gradients(tiny_model, {**packed, **NUM_ITEMS}), expected, 1e-3)
    left = labelled(tiny_model.config, mixed_rows(tiny_model.config), "left")
    for row, length in enumerate(left["attention_mask"].sum(dim=1).tolist()):
        left["labels"][row, -length] = IGNORED_LABEL  # which padding on the left would predict
    assert_same_step(loss_and_gradients(tiny_model, {**pack_batch(left), **NUM_ITEMS}), expected, 1e-3)
    enable_checkpointing(tiny_model, {"use_reentrant": False})
    assert_same_step(loss_and_gradients(tiny_model, {**packed, **NUM_ITEMS}), expected, 1e-3)


@torch.no_grad()
def test_rows_are_their_own_and_have_their_own_adapter(shared_tiny_model, supervised, packed) -> None:
    """Text-only rows are the base's to the last bit, which is what it makes of the same packed row."""
    model, mask = shared_tiny_model, supervised["attention_mask"].bool()
    for each in (supervised, packed):
        each.pop("labels")
    together = model(**packed).logits
    torch.testing.assert_close(together[0], model(**supervised).logits[mask], rtol=1e-4, atol=1e-4)
    assert torch.equal(model(**packed, adapter_names=["speech", None, "speech", None, "speech"]).logits, together)
    assert not torch.equal(model(**packed, adapter_names=["speech"] * 5).logits, together)
    base = model(**packed, adapter_names=[None] * 5).logits
    rows = mask.nonzero()[:, 0]
    is_base = [torch.equal(together[0][rows == row], base[0][rows == row]) for row in range(5)]
    assert is_base == [False, True, False, True, False]
    with pytest.raises(ValueError, match="4 adapter names for a batch of 5 rows"):
        model(**packed, adapter_names=["speech"] * 4)


def test_a_batch_of_one_row_and_one_without_audio(tiny_model) -> None:
    config = tiny_model.train().config
    for rows in ([make_row(config, 4, (150,), 3)], [make_row(config, 5, seed=1), make_row(config, 3, seed=2)]):
        supervised = labelled(config, rows)
        found = loss_and_gradients(tiny_model, pack_batch(supervised))
        assert_same_step(found, loss_and_gradients(tiny_model, supervised), 1e-3)
        assert set(found[1]) == set(tiny_model.trainable_names())


def test_lengths_for_flash_attention(supervised) -> None:
    packed = pack_batch(supervised, flash=True)
    lengths = supervised["attention_mask"].sum(dim=1)
    assert packed["cu_seq_lens_q"].tolist() == [0, *lengths.cumsum(0).tolist()]
    assert packed["cu_seq_lens_q"].dtype == torch.int32 and packed["max_length_k"] == int(lengths.max())


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()),
    reason="flash attention needs a GPU and its package",
)
def test_flash_attention_gives_the_same_loss(tiny_model, supervised) -> None:
    model = tiny_model.to("cuda", torch.bfloat16).train()
    supervised = {name: value.to("cuda") for name, value in supervised.items()}
    expected = model(**supervised).loss
    model.set_attn_implementation("flash_attention_2")
    assert uses_flash(model)
    found = model(**pack_batch(supervised, flash=True)).loss
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
