"""Inputs that cannot be are refused, each with a message that names the thing."""

import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmModel
from audiollm.modeling_audiollm import CACHE_NAME
from batches import collate, make_row, mixed_rows
from tiny_models import NUM_MEL_BINS, llama_config, save_text_base


@pytest.fixture
def batch(tiny_model) -> dict[str, torch.Tensor]:
    return collate(tiny_model.config, [make_row(tiny_model.config, 3, (80,), 2)])


def refused(call, words: str, arguments: dict, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=words):
        call(**arguments)


def test_inputs_that_do_not_fit_are_refused(tiny_model, batch) -> None:
    model, config, features = tiny_model, tiny_model.config, batch["input_features"]
    frames, lengths = model.model.encode_audio(features, batch["input_features_mask"])
    embeds, text = torch.zeros(1, 4, config.hidden_size), collate(config, [make_row(config, 4)])
    deaf, unmasked = {"input_ids": batch["input_ids"]}, {**batch, "input_features_mask": None}
    slots = r"input_ids has 10 audio slots \(id 129\) but the audio gives {} tokens"
    refused(model, slots.format(5), {**unmasked, "input_features": features[..., :40]})
    refused(model, "0 audio slots .* the audio gives 10 tokens", {**batch, **text})
    refused(model, slots.format(0), deaf)
    refused(model.generate, slots.format(0), {**deaf, "max_new_tokens": 2})
    refused(model, "exactly one of input_ids and inputs_embeds", {})
    refused(model, "exactly one of input_ids and inputs_embeds", {**text, "inputs_embeds": embeds})
    refused(model, "Audio needs input_ids", {"inputs_embeds": embeds, "input_features": features})
    refused(model.generate, "Audio needs input_ids", {**batch, "inputs_embeds": embeds})
    refused(model, "adapter_name", {**text, "adapter_name": ["speech"]}, TypeError)
    refused(model, "500", {"input_ids": torch.tensor([[7, 500]])}, IndexError)
    encoded = {"encoded_audio": frames, "encoded_audio_lengths": lengths}
    refused(model, "exactly one of input_features and encoded_audio", {**batch, **encoded})
    refused(model.get_audio_features, "exactly one of input_features and encoded_audio", {})
    refused(model, "encoded_audio needs encoded_audio_lengths", {**deaf, "encoded_audio": frames})
    for count in (0, 3001):
        words = f"{count} frames per window; expected 1 to 3000.*AudioLlmProcessor"
        refused(model, words, {**unmasked, "input_features": torch.zeros(1, NUM_MEL_BINS, count)})
    refused(model, "128 mel bins but this encoder takes 80", {**batch, "input_features": torch.zeros(1, 128, 80)})
    refused(model, r"of shape \(1, 79\).*\(1, 80\)", {**batch, "input_features_mask": torch.ones(1, 79)})
    refused(model, r"input_features is of shape \(80, 80\)", {**unmasked, "input_features": features[0]})
    model._is_replica = True  # as torch marks the copies that nn.DataParallel makes
    refused(model, "accelerate launch", batch, RuntimeError)


@torch.no_grad()
def test_logits_to_keep(tiny_model, batch) -> None:
    full = tiny_model(**batch).logits
    for kept, positions in ((2, slice(-2, None)), (torch.tensor([0, 3]), [0, 3])):
        torch.testing.assert_close(tiny_model(**batch, logits_to_keep=kept).logits, full[:, positions])


def test_bases_that_are_not_there(tiny_bases, tmp_path) -> None:
    for bases, words in (
        ((f"{tmp_path}/nowhere", tiny_bases[1]), "The audio base .*nowhere' is not a folder"),
        ((tiny_bases[0], "pypi:nothing"), "The text base 'pypi:nothing' is not in"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases)


@torch.no_grad()
def test_body_of_an_untied_model_loads_and_saves(tiny_bases, tmp_path) -> None:
    text = save_text_base(tmp_path / "text", llama_config(tie_word_embeddings=False))
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], text)
    batch = collate(model.config, mixed_rows(model.config))
    expected = model.model(**batch).last_hidden_state
    for weights in ("adapter", "full"):
        model.save_pretrained(tmp_path / weights, weights=weights)
        body = AudioLlmModel.from_pretrained(tmp_path / weights)
        body.save_pretrained(tmp_path / f"body {weights}", weights=weights)
        for each in (body, AudioLlmModel.from_pretrained(tmp_path / f"body {weights}")):
            assert torch.equal(each(**batch).last_hidden_state, expected)
    whole = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "body adapter")
    assert torch.equal(whole(**batch).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="lm_head"):
        AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "body full")


@torch.no_grad()
def test_the_configuration_can_do_without_a_cache(tiny_model, batch) -> None:
    assert tiny_model(**batch).get(CACHE_NAME) is not None
    tiny_model.config.use_cache = False
    assert tiny_model(**batch).get(CACHE_NAME) is None
    assert tiny_model(**batch, use_cache=True).get(CACHE_NAME) is not None
