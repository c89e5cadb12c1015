"""Packed rows: the loss and gradients of the padded batch, text-only rows still the base's, and no one sees another."""

import pytest
import torch
from audiollm.training.collator import pack_batch, uses_flash
from batches import IGNORED_LABEL, assert_same_step, labelled, loss_and_gradients, make_row, mixed_rows
from tiny_models import enable_checkpointing
from transformers.utils import is_flash_attn_2_available

NUM_ITEMS = {"num_items_in_batch": torch.tensor(7)}


@pytest.fixture
def batch(supervised) -> dict[str, torch.Tensor]:
    return supervised


@pytest.fixture
def packed(batch) -> dict[str, torch.Tensor]:
    found = pack_batch(batch)
    assert found["input_ids"].shape == (1, int(batch["attention_mask"].sum())) and "attention_mask" not in found
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_is_that_of_the_padded_batch(tiny_model, batch, packed, attention: str) -> None:
    tiny_model.set_attn_implementation(attention)
    tiny_model.train()
    expected = loss_and_gradients(tiny_model, {**batch, **NUM_ITEMS})
    assert_same_step(loss_and_gradients(tiny_model, {**packed, **NUM_ITEMS}), expected, 1e-3)
    left = labelled(tiny_model.config, mixed_rows(tiny_model.config), "left")
    for row, length in enumerate(left["attention_mask"].sum(dim=1).tolist()):
        left["labels"][row, -length] = IGNORED_LABEL  # which padding on the left would predict
    assert_same_step(loss_and_gradients(tiny_model, {**pack_batch(left), **NUM_ITEMS}), expected, 1e-3)
    enable_checkpointing(tiny_model, {"use_reentrant": False})
    assert_same_step(loss_and_gradients(tiny_model, {**packed, **NUM_ITEMS}), expected, 1e-3)


@torch.no_grad()
def test_rows_are_their_own_and_have_their_own_adapter(shared_tiny_model, batch, packed) -> None:
    """Text-only rows are the base's to the last bit, which is what it makes of the same packed row."""
    model, mask = shared_tiny_model, batch["attention_mask"].bool()
    for each in (batch, packed):
        each.pop("labels")
    together = model(**packed).logits
    torch.testing.assert_close(together[0], model(**batch).logits[mask], rtol=1e-4, atol=1e-4)
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
        batch = labelled(config, rows)
        found = loss_and_gradients(tiny_model, pack_batch(batch))
        assert_same_step(found, loss_and_gradients(tiny_model, batch), 1e-3)
        assert set(found[1]) == set(tiny_model.trainable_names())


def test_lengths_for_flash_attention(batch) -> None:
    packed = pack_batch(batch, flash=True)
    lengths = batch["attention_mask"].sum(dim=1)
    assert packed["cu_seq_lens_q"].tolist() == [0, *lengths.cumsum(0).tolist()]
    assert packed["cu_seq_lens_q"].dtype == torch.int32 and packed["max_length_k"] == int(lengths.max())


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()),
    reason="flash attention needs a GPU and its package",
)
def test_flash_attention_gives_the_same_loss(tiny_model, batch) -> None:
    model = tiny_model.to("cuda", torch.bfloat16).train()
    batch = {name: value.to("cuda") for name, value in batch.items()}
    expected = model(**batch).loss
    model.set_attn_implementation("flash_attention_2")
    assert uses_flash(model)
    found = model(**pack_batch(batch, flash=True)).loss
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
