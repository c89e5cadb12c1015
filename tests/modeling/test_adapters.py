"""Adapters of rows: chosen per row, remembered by the cache, kept apart in a batch."""

import copy
from contextlib import nullcontext

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.modeling_audiollm import CACHE_NAME, CACHE_ROWS_ATTRIBUTE
from batches import MIXED_TEXT_ROWS, TOLERANCE, collate, composed, make_row, mixed_rows
from transformers import DynamicCache

TWO_ADAPTERS = {"speech": {"rank": 4}, "sound": {"rank": 2, "alpha": 3.0, "target_modules": ["q_proj", "down_proj"]}}


@pytest.fixture
def two_adapters(tiny_bases) -> AudioLlmForConditionalGeneration:
    return composed(tiny_bases, lora_adapters=TWO_ADAPTERS)


@pytest.mark.parametrize("names", [None, ["speech", None, "sound", "sound", None]], ids=["by-audio", "by-name"])
@torch.no_grad()
def test_manual_decoding_keeps_the_adapters(two_adapters, names, batch) -> None:
    """The cache remembers its rows' adapters, when only the new token is passed on."""
    config = two_adapters.config
    expected = two_adapters.generate(**batch, adapter_names=names, max_new_tokens=8, min_new_tokens=8, do_sample=False)

    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = two_adapters(**batch, position_ids=positions, adapter_names=names, use_cache=True)
    for _ in range(8):
        scores = out.logits[:, -1]
        scores[:, config.eos_token_id] = float("-inf")
        new = scores.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, new], dim=1)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        positions = positions[:, -1:] + 1
        out = two_adapters(input_ids=new, attention_mask=mask, position_ids=positions, **{CACHE_NAME: out[CACHE_NAME]})
    assert torch.equal(ids, expected)


@pytest.mark.quick
@torch.no_grad()
def test_the_cache_has_two_names(tiny_model, deprecation_notices, batch) -> None:
    """transformers calls it `cache` since 5.24; either name keeps the rows' adapters."""
    out = tiny_model(**batch, use_cache=True)
    new = {"input_ids": torch.full((5, 1), 20)}
    names = ["speech" if index not in MIXED_TEXT_ROWS else None for index in range(5)]
    expected = tiny_model(**new, adapter_names=names, cache=copy.deepcopy(out[CACHE_NAME])).logits
    for name in ("cache", "past_key_values"):
        is_deprecated = name == "past_key_values" and CACHE_NAME == "cache"
        with pytest.warns(FutureWarning, match="Pass `cache`") if is_deprecated else nullcontext():
            assert torch.equal(tiny_model(**new, **{name: copy.deepcopy(out[CACHE_NAME])}).logits, expected)
    assert not torch.equal(tiny_model(**new, cache=out[CACHE_NAME], adapter_names=[None] * 5).logits, expected)
    with pytest.raises(ValueError, match="cache and past_key_values"):
        tiny_model(**new, cache=out[CACHE_NAME], past_key_values=out[CACHE_NAME])
    deprecation_notices.clear()


@torch.no_grad()
def test_rows_of_a_foreign_cache_are_not_guessed(tiny_model) -> None:
    ids = torch.tensor([[7, 8, 9]])
    cache = DynamicCache(config=tiny_model.config.text_config)
    tiny_model(input_ids=ids, **{CACHE_NAME: cache})
    delattr(cache, CACHE_ROWS_ATTRIBUTE)
    with pytest.raises(ValueError, match="adapter_names"):
        tiny_model(input_ids=ids, **{CACHE_NAME: copy.deepcopy(cache)})
    assert tiny_model(input_ids=ids, **{CACHE_NAME: cache}, adapter_names=[None]).logits.shape[1] == 3
    filled = tiny_model(**collate(tiny_model.config, mixed_rows(tiny_model.config)))[CACHE_NAME]
    filled.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match="filled with 5 rows, but the batch has 10"):
        tiny_model(input_ids=torch.full((10, 1), 20), **{CACHE_NAME: filled})


@torch.no_grad()
def test_named_adapters_in_one_batch(two_adapters, batch) -> None:
    config = two_adapters.config
    rows, names = mixed_rows(config), ["speech", "sound", "sound", None, None]
    logits = two_adapters(**batch, adapter_names=names).logits
    for index, (row, name) in enumerate(zip(rows, names)):
        for each in ("speech", "sound", None):
            alone = two_adapters(**collate(config, [row]), adapter_names=[each]).logits[0]
            assert torch.allclose(logits[index, -len(row.ids) :], alone, **TOLERANCE) == (each == name)
    by_default = two_adapters(**batch, adapter_names=["speech", None, "speech", None, "speech"]).logits
    assert torch.equal(two_adapters(**batch).logits, by_default)
    for wrong, words in (
        (["musik", *names[1:]], r"no adapter \['musik'\].*speech.*sound"),
        (names[1:], "4 adapter names for a batch of 5 rows"),
    ):
        with pytest.raises(ValueError, match=words):
            two_adapters(**batch, adapter_names=wrong)


def test_beams_with_names(two_adapters) -> None:
    config = two_adapters.config
    rows, names = mixed_rows(config), ["speech", "sound", "sound", None, None]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "min_new_tokens": 6}
    batch = collate(config, rows)
    together = two_adapters.generate(**batch, adapter_names=names, **options)[:, batch["input_ids"].shape[1] :]
    for index, (row, name) in enumerate(zip(rows, names)):
        alone = two_adapters.generate(**collate(config, [row]), adapter_names=[name], **options)
        assert torch.equal(together[2 * index : 2 * index + 2], alone[:, len(row.ids) :])


@torch.no_grad()
def test_inputs_embeds_take_names(tiny_model) -> None:
    """Rows of embeddings without audio are the base's, unless an adapter is named."""
    batch = collate(tiny_model.config, [make_row(tiny_model.config, 6)])
    embeds, names = tiny_model.get_input_embeddings()(batch["input_ids"]), {"adapter_names": ["speech"]}
    base, adapted = tiny_model(**batch).logits, tiny_model(**batch, **names).logits
    assert torch.equal(tiny_model(inputs_embeds=embeds).logits, base) and not torch.allclose(adapted, base)
    assert torch.equal(tiny_model(inputs_embeds=embeds, **names).logits, adapted)


@torch.no_grad()
def test_rank_zero_is_the_projector_alone(tiny_bases, tmp_path, batch) -> None:
    model = composed(tiny_bases, lora_rank=0)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    parts = {name.split(".")[1] for name in model.trainable_names()}
    assert parts == {"multi_modal_projector", "audio_boundary_embeds"}
    expected = model(**batch).logits
    assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[0] == 5
    model.save_pretrained(tmp_path)
    assert torch.equal(AudioLlmForConditionalGeneration.from_pretrained(tmp_path)(**batch).logits, expected)
    with pytest.raises(ValueError, match="no adapter"):
        model(**batch, adapter_names=["speech"] * 5)


@pytest.mark.quick
@torch.no_grad()
def test_merging_is_the_adapter_on_every_row(tiny_model, two_adapters, batch) -> None:
    merged = copy.deepcopy(tiny_model).merge_adapters()
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    expected = tiny_model(**batch, adapter_names=["speech"] * 5).logits
    torch.testing.assert_close(merged(**batch).logits, expected, **TOLERANCE)
    assert tiny_model.config.lora_adapters  # the model itself is as it was
    with pytest.raises(ValueError, match=r"\['speech', 'sound'\].*only a model with one can be merged"):
        two_adapters.merge_adapters()


@torch.no_grad()
def test_fresh_adapters_do_nothing_and_fresh_audio_tokens_are_as_long_as_text(tiny_bases, batch) -> None:
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases)
    out, embeddings = model(**batch), model.get_input_embeddings().weight
    assert torch.equal(out.logits, model(**batch, adapter_names=[None] * 5).logits)
    assert 0.5 < float(out.audio_hidden_states.square().mean().sqrt() / embeddings.square().mean().sqrt()) < 2.0
    built = AudioLlmForConditionalGeneration(model.config)
    lora_b = [value for name, value in built.named_parameters() if ".lora_B." in name]
    assert lora_b and not any(value.any() for value in lora_b)
