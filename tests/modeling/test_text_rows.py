"""A text-only row is the base language model's, bit for bit, whatever was trained and whatever stands beside it."""

import pytest
import torch
from batches import MIXED_TEXT_ROWS, Row, collate, composed, make_row, mixed_rows
from tiny_models import llama_config, save_text_base
from transformers import AutoModelForCausalLM


def base_of(folder: str, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def base_logits(base, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The base's logits of the same batch; it has no audio ids, and other rows' content is no matter to a row."""
    ids = batch["input_ids"]
    ids = ids.masked_fill(ids >= base.config.vocab_size, 0)
    with torch.no_grad():
        return base(input_ids=ids, attention_mask=batch["attention_mask"]).logits


def text_rows(config) -> list[Row]:
    return [make_row(config, 9, seed=2), make_row(config, 5, seed=4)]


@torch.no_grad()
def assert_text_rows_are_the_bases(model, base, padding_side: str) -> None:
    """Alone, in a batch of text, and between rows with audio."""
    config = model.config
    for rows in (text_rows(config)[:1], text_rows(config)):
        texts = collate(config, rows, padding_side)
        assert torch.equal(model(**texts).logits, base_logits(base, texts))
    mixed = collate(config, mixed_rows(config), padding_side)
    ours, bases = model(**mixed).logits, base_logits(base, mixed)
    for row in range(len(ours)):
        assert torch.equal(ours[row], bases[row]) == (row in MIXED_TEXT_ROWS)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("dtype", "padding_side"), [(torch.float32, "left"), (torch.float32, "right"), (torch.bfloat16, "right")], ids=str
)
def test_logits_are_the_bases(tiny_bases, dtype, padding_side: str) -> None:
    model = composed(tiny_bases, dtype=dtype)
    assert model.dtype == dtype
    assert_text_rows_are_the_bases(model, base_of(tiny_bases[1], dtype), padding_side)


@pytest.mark.quick
def test_training_mode_keeps_text_rows_too(tiny_model, tiny_bases) -> None:
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config))
    expected = base_logits(base_of(tiny_bases[1]), batch)
    with torch.no_grad():
        ours = tiny_model.train()(**batch).logits
    assert all(torch.equal(ours[row], expected[row]) for row in MIXED_TEXT_ROWS)


@pytest.mark.quick
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_generation_is_the_bases(shared_tiny_model, tiny_bases, mode) -> None:
    model, base = shared_tiny_model, base_of(tiny_bases[1])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, **mode}
    texts = collate(model.config, text_rows(model.config))
    torch.manual_seed(0)
    expected = base.generate(**texts, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**texts, **options), expected)
    if "do_sample" in mode:  # the rows of a batch share one random stream
        return
    mixed = collate(model.config, mixed_rows(model.config))
    ours = model.generate(**mixed, **options)[:, mixed["input_ids"].shape[1] :]
    assert torch.equal(ours[list(MIXED_TEXT_ROWS)], expected[:, texts["input_ids"].shape[1] :])


def test_at_the_width_of_real_models(tiny_bases, tmp_path) -> None:
    """For which matrix products have other kernels than for tiny ones."""
    config = llama_config(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    folder = save_text_base(tmp_path, config)
    assert_text_rows_are_the_bases(composed((tiny_bases[0], folder), lora_rank=16), base_of(folder), "left")
