"""Padding behind a row is masked by nobody looking ahead, and that changes neither loss nor gradients."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from audiollm import AudioLlmForConditionalGeneration
from audiollm.modeling_audiollm import is_padded_on_the_right
from batches import collate, make_row
from tiny_models import randomise_trainables, save_text_base

IGNORED = -100


def padded_batch(config, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of different text and length, the second without audio; labels on all text."""
    rows = [make_row(config, (40,), 4, seed=0), make_row(config, 13, seed=1), make_row(config, (90,), 22, seed=2)]
    batch = collate(config, rows, side)
    ignored = (batch["input_ids"] >= config.vocab_size) | ~batch["attention_mask"].bool()
    batch["labels"] = batch["input_ids"].masked_fill(ignored, IGNORED)
    return batch


def masks_seen(model, batch) -> list[bool]:
    """True for each call that gave the language model a mask."""
    seen: list[bool] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, args, keywords: seen.append(keywords.get("attention_mask") is not None), with_kwargs=True
    )
    model(**batch)
    handle.remove()
    return seen


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_without_mask(model) -> None:
    """Told the positions, which are what they would be anyway, the model masks padding."""
    batch = padded_batch(model.config)
    rows, length = batch["input_ids"].shape
    masked = {**batch, "position_ids": torch.arange(length).expand(rows, -1)}
    assert masks_seen(model, batch) == [False] and masks_seen(model, masked) == [True]
    (loss, gradients), (expected_loss, expected) = loss_and_gradients(model, batch), loss_and_gradients(model, masked)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys() == set(model.trainable_names())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients(tiny_bases, attention: str) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, attn_implementation=attention)
    assert_same_without_mask(randomise_trainables(model, std=0.05).train())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(tiny_bases, tmp_path: Path, name: str) -> None:
    make_config, fields = ARCHITECTURES[name]
    folder = save_text_base(tmp_path / "text", make_config())
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, lora_rank=4, **fields)
    assert_same_without_mask(randomise_trainables(model, std=0.05).train())


def test_what_padding_says_does_not_reach_the_loss(tiny_model) -> None:
    batch = padded_batch(tiny_model.config)
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), 5)}
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    randomise_trainables(tiny_model, std=0.05).train()
    (loss, gradients), (expected_loss, expected) = (loss_and_gradients(tiny_model, each) for each in (other, batch))
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_when_padding_is_masked(tiny_model) -> None:
    config = tiny_model.config
    right, left = padded_batch(config), padded_batch(config, "left")
    tiny_model.train()
    assert masks_seen(tiny_model, right) == [False]
    assert masks_seen(tiny_model, left) == [True]
    assert masks_seen(tiny_model, {**right, "use_cache": True}) == [True]
    assert masks_seen(tiny_model, {**right, "output_hidden_states": True}) == [True]
    assert masks_seen(tiny_model, {k: v for k, v in right.items() if k != "labels"}) == [True]
    assert masks_seen(tiny_model.eval(), right) == [True]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, False),
        ([[1, 1, 1], [1, 1, 1]], True),
        ([[1, 1, 0], [1, 0, 0]], True),
        ([[0, 0, 0], [1, 1, 1]], True),
        ([[1, 0, 1], [1, 1, 1]], False),
        ([[0, 1, 1], [1, 1, 0]], False),
    ],
)
def test_where_a_mask_says_that_padding_lies(mask, expected: bool) -> None:
    assert is_padded_on_the_right(None if mask is None else torch.tensor(mask)) is expected
