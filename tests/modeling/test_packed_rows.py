"""Packed rows: the loss and gradients of the padded batch, text-only rows still the base's, and no one sees another."""

import pytest
import torch
from audiollm.training.packing import pack_batch, uses_flash
from batches import collate, make_row, mixed_rows
from tiny_models import enable_checkpointing
from transformers.utils import is_flash_attn_2_available

IGNORED = -100


@pytest.fixture
def batch(tiny_model) -> dict[str, torch.Tensor]:
    """Rows with one, several and no recordings, each with labels on its second half, its very first label included."""
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config), padding_side="right")
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    is_text = mask & (ids < tiny_model.config.vocab_size)
    later = torch.arange(ids.shape[1]) >= mask.sum(dim=1, keepdim=True) // 2
    later[:, 0] = True
    batch["labels"] = ids.masked_fill(~(is_text & later), IGNORED)
    return batch


def gradients(model) -> dict[str, torch.Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_those_of_the_padded_batch(tiny_model, batch, attention: str, side: str) -> None:
    tiny_model.set_attn_implementation(attention)
    tiny_model.train()
    if side == "left":
        batch = {**batch, **{name: batch[name].flip(1) for name in ("input_ids", "attention_mask", "labels")}}
        for index, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            # The tokens keep their order.
            for name in ("input_ids", "labels"):
                batch[name][index, -length:] = batch[name][index, -length:].flip(0)
            batch["labels"][index, -length] = IGNORED  # which padding on the left would predict
    padded = tiny_model(**batch, num_items_in_batch=torch.tensor(7))
    padded.loss.backward()
    expected = gradients(tiny_model)
    packed = pack_batch(batch)
    assert packed["input_ids"].shape == (1, int(batch["attention_mask"].sum()))
    assert "attention_mask" not in packed
    found = tiny_model(**packed, num_items_in_batch=torch.tensor(7))
    found.loss.backward()
    torch.testing.assert_close(found.loss, padded.loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(tiny_model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3, msg=name)


def test_with_activation_checkpointing_too(tiny_model, batch) -> None:
    tiny_model.train()
    tiny_model(**batch).loss.backward()
    expected = gradients(tiny_model)
    enable_checkpointing(tiny_model, {"use_reentrant": False})
    tiny_model(**pack_batch(batch)).loss.backward()
    for name, gradient in gradients(tiny_model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3, msg=name)


def test_logits_are_each_rows_own(tiny_model, batch) -> None:
    tiny_model.eval()
    mask = batch.pop("attention_mask").bool()
    labels = batch.pop("labels")
    with torch.no_grad():
        padded = tiny_model(**batch, attention_mask=mask.long()).logits[mask]
        packed = pack_batch({**batch, "attention_mask": mask.long(), "labels": labels})
        packed.pop("labels")
        together = tiny_model(**packed).logits[0]
    torch.testing.assert_close(together, padded, rtol=1e-4, atol=1e-4)


def test_text_only_examples_are_the_bases_among_others(tiny_model, batch) -> None:
    """To the last bit what the base itself makes of the same packed row."""
    tiny_model.eval()
    packed = pack_batch(batch)
    packed.pop("labels")
    is_text = [row for row in range(5) if not (batch["input_ids"][row] == tiny_model.config.audio_token_id).any()]
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    with torch.no_grad():
        ours = tiny_model(**packed).logits[0]
        base = tiny_model(**packed, adapter_names=[None] * 5).logits[0]
    assert len(is_text) == 2
    for row in range(5):
        where = slice(ends[row] - lengths[row], ends[row])
        assert torch.equal(ours[where], base[where]) == (row in is_text)


def test_adapters_are_chosen_example_by_example(tiny_model, batch) -> None:
    tiny_model.eval()
    packed = pack_batch(batch)
    packed.pop("labels")
    with torch.no_grad():
        default = tiny_model(**packed).logits
        named = tiny_model(**packed, adapter_names=["speech", None, "speech", None, "speech"]).logits
        assert torch.equal(default, named)
        everywhere = tiny_model(**packed, adapter_names=["speech"] * 5).logits
        assert not torch.equal(default, everywhere)
    with pytest.raises(ValueError, match="4 adapter names for a batch of 5 rows"):
        tiny_model(**packed, adapter_names=["speech"] * 4)


def test_a_batch_of_one_row_and_one_without_audio(tiny_model) -> None:
    tiny_model.train()
    config = tiny_model.config
    for rows in ([make_row(config, 4, (150,), 3)], [make_row(config, 5, seed=1), make_row(config, 3, seed=2)]):
        batch = collate(config, rows, padding_side="right")
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        batch["labels"] = ids.masked_fill(~(mask & (ids < config.vocab_size)), IGNORED)
        expected, found = tiny_model(**batch).loss, tiny_model(**pack_batch(batch)).loss
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        found.backward()
        assert all(tiny_model.get_parameter(name).grad is not None for name in tiny_model.trainable_names())


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
