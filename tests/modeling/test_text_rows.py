"""A text-only row is the base language model's, bit for bit, whatever was trained and whatever stands beside it."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from audiollm import AudioLlmForConditionalGeneration, embedded_bases
from batches import MIXED_TEXT_ROWS, Row, collate, make_row, mixed_rows
from tiny_models import TEXT_FIELDS, randomise_trainables, randomised, save_text_base
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig


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


def assert_text_rows_are_the_bases(model, base, padding_side: str) -> None:
    config = model.config
    with torch.no_grad():
        single = collate(config, text_rows(config)[:1])
        assert torch.equal(model(**single).logits, base_logits(base, single))

        texts = collate(config, text_rows(config), padding_side)
        assert torch.equal(model(**texts).logits, base_logits(base, texts))

        mixed = collate(config, mixed_rows(config), padding_side)
        ours, bases = model(**mixed).logits, base_logits(base, mixed)
        for row in range(len(ours)):
            assert torch.equal(ours[row], bases[row]) == (row in MIXED_TEXT_ROWS)


@pytest.mark.quick
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logits_are_the_bases(tiny_bases, dtype, padding_side) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4, dtype=dtype)
    randomise_trainables(model)
    assert model.dtype == dtype
    assert_text_rows_are_the_bases(model, base_of(tiny_bases[1], dtype), padding_side)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_bases_in_other_architectures(tiny_bases, tmp_path: Path, name: str) -> None:
    make_config, fields = ARCHITECTURES[name]
    folder = save_text_base(tmp_path / "text", make_config())
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, lora_rank=4, **fields)
    assert_text_rows_are_the_bases(randomise_trainables(model), base_of(folder), "left")
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    batch = collate(model.config, mixed_rows(model.config))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.quick
def test_training_mode_keeps_text_rows_too(tiny_model, tiny_bases) -> None:
    batch = collate(tiny_model.config, mixed_rows(tiny_model.config))
    expected = base_logits(base_of(tiny_bases[1]), batch)
    with torch.no_grad():
        ours = tiny_model.train()(**batch).logits
    assert all(torch.equal(ours[row], expected[row]) for row in MIXED_TEXT_ROWS)


@pytest.mark.quick
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_generation_is_the_bases(tiny_model, tiny_bases, mode) -> None:
    base = base_of(tiny_bases[1])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, **mode}
    texts = collate(tiny_model.config, text_rows(tiny_model.config))
    torch.manual_seed(0)
    expected = base.generate(**texts, **options)
    torch.manual_seed(0)
    assert torch.equal(tiny_model.generate(**texts, **options), expected)
    if "do_sample" in mode:  # the rows of a batch share one random stream
        return
    mixed = collate(tiny_model.config, mixed_rows(tiny_model.config))
    ours = tiny_model.generate(**mixed, **options)[:, mixed["input_ids"].shape[1] :]
    assert torch.equal(ours[list(MIXED_TEXT_ROWS)], expected[:, texts["input_ids"].shape[1] :])


def test_real_pair(real_model, real_bases) -> None:
    base = base_of(str(embedded_bases.base_folder(real_bases[1])))
    with randomised(real_model, std=0.05):
        mixed = collate(real_model.config, mixed_rows(real_model.config)[:2])
        with torch.no_grad():
            ours, bases = real_model(**mixed).logits, base_logits(base, mixed)
        assert torch.equal(ours[1], bases[1]) and not torch.equal(ours[0], bases[0])
        text = collate(real_model.config, [make_row(real_model.config, 7)])
        options = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(real_model.generate(**text, **options), base.generate(**text, **options))


UNSUPPORTED = {
    "gpt2": (GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4), {}, "It has no linear layers"),
    "gpt2-conv1d": (
        GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4),
        {"lora_target_modules": ["c_attn"]},
        "Conv1D",
    ),
    "gpt2-without-lora": (
        GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4),
        {"lora_rank": 0},
        "embed_tokens",
    ),
    "phi-head-with-bias": (
        PhiConfig(**TEXT_FIELDS),
        {"lora_target_modules": ["q_proj", "v_proj"]},
        "linear head without bias",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_architectures_are_refused(tiny_bases, tmp_path: Path, name: str) -> None:
    config, fields, words = UNSUPPORTED[name]
    folder = save_text_base(tmp_path / "text", config)
    with pytest.raises(ValueError, match=words):
        AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], folder, **fields)
