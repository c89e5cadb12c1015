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


def test_slots_and_audio_tokens_differ(tiny_model, batch) -> None:
    config = tiny_model.config
    shorter = {**batch, "input_features": batch["input_features"][..., :40], "input_features_mask": None}
    with pytest.raises(ValueError, match=r"input_ids has 10 audio slots \(id 129\) but the audio gives 5 tokens"):
        tiny_model(**shorter)
    text = collate(config, [make_row(config, 4)])
    with pytest.raises(ValueError, match=r"input_ids has 0 audio slots .* but the audio gives 10 tokens"):
        tiny_model(**{**batch, **text})
    without = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with pytest.raises(ValueError, match=r"input_ids has 10 audio slots .* but the audio gives 0 tokens"):
        tiny_model(**without)
    with pytest.raises(ValueError, match=r"input_ids has 10 audio slots .* but the audio gives 0 tokens"):
        tiny_model.generate(**without, max_new_tokens=2)


def test_ids_and_embeddings(tiny_model, batch) -> None:
    embeds = torch.zeros(1, 4, tiny_model.config.hidden_size)
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds"):
        tiny_model(input_ids=torch.tensor([[7]]), inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds"):
        tiny_model()
    with pytest.raises(ValueError, match=r"Audio needs input_ids"):
        tiny_model(inputs_embeds=embeds, input_features=batch["input_features"])
    with pytest.raises(ValueError, match=r"Audio needs input_ids"):
        tiny_model.generate(**batch, inputs_embeds=embeds, max_new_tokens=2)
    with pytest.raises(TypeError, match="adapter_name"):
        tiny_model(input_ids=torch.tensor([[7, 8, 9]]), adapter_name=["speech"])
    with pytest.raises(IndexError, match="500"):
        tiny_model(input_ids=torch.tensor([[7, 500]]))


def test_features_and_encoded_audio(tiny_model, batch) -> None:
    frames, lengths = tiny_model.model.encode_audio(batch["input_features"], batch["input_features_mask"])
    with pytest.raises(ValueError, match=r"exactly one of input_features and encoded_audio"):
        tiny_model(**batch, encoded_audio=frames, encoded_audio_lengths=lengths)
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with pytest.raises(ValueError, match=r"encoded_audio needs encoded_audio_lengths"):
        tiny_model(**text, encoded_audio=frames)
    with pytest.raises(ValueError, match=r"exactly one of input_features and encoded_audio"):
        tiny_model.get_audio_features()


def test_features_of_another_shape(tiny_model, batch) -> None:
    for frames in (0, 3001):
        features = {"input_features": torch.zeros(1, NUM_MEL_BINS, frames), "input_features_mask": None}
        with pytest.raises(ValueError, match=rf"{frames} frames per window; expected 1 to 3000.*AudioLlmProcessor"):
            tiny_model(**{**batch, **features})
    with pytest.raises(ValueError, match=r"128 mel bins but this encoder takes 80"):
        tiny_model(**{**batch, "input_features": torch.zeros(1, 128, 80)})
    with pytest.raises(ValueError, match=r"input_features_mask is of shape \(1, 79\).*\(1, 80\)"):
        tiny_model(**{**batch, "input_features_mask": torch.ones(1, 79, dtype=torch.long)})
    with pytest.raises(ValueError, match=r"input_features is of shape \(80, 80\)"):
        tiny_model(**{**batch, "input_features": batch["input_features"][0], "input_features_mask": None})


def test_logits_to_keep(tiny_model, batch) -> None:
    with torch.no_grad():
        full = tiny_model(**batch).logits
        torch.testing.assert_close(tiny_model(**batch, logits_to_keep=2).logits, full[:, -2:])
        kept = tiny_model(**batch, logits_to_keep=torch.tensor([0, 3])).logits
        torch.testing.assert_close(kept, full[:, [0, 3]])


def test_bases_that_are_no_bases(tiny_bases, tmp_path) -> None:
    audio, text = tiny_bases
    compose = AudioLlmForConditionalGeneration.from_audio_text_pretrained
    with pytest.raises(ValueError, match=r"audio_config.model_type is 'llama'"):
        compose(text, text)
    with pytest.raises(
        ValueError, match=r"text_config.model_type is .*; expected the configuration of a decoder-only"
    ):
        compose(audio, audio)
    with pytest.raises(FileNotFoundError, match=r"The audio base .*nowhere' is not a folder"):
        compose(str(tmp_path / "nowhere"), text)
    with pytest.raises(FileNotFoundError, match=r"The text base 'pypi:nothing' is not in"):
        compose(audio, "pypi:nothing")
    with pytest.raises(
        ValueError, match=r"targets 'fc1', which is not there in LlamaModel.* linear layers: \['down_proj'"
    ):
        compose(audio, text, lora_target_modules=["fc1"])


def test_body_of_an_untied_model_loads_and_saves(tiny_bases, tmp_path) -> None:
    text = save_text_base(tmp_path / "text", llama_config(tie_word_embeddings=False))
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(tiny_bases[0], text)
    batch = collate(model.config, mixed_rows(model.config))
    for weights in ("adapter", "full"):
        model.save_pretrained(tmp_path / weights, weights=weights)
        body = AudioLlmModel.from_pretrained(tmp_path / weights)
        body.save_pretrained(tmp_path / f"body {weights}", weights=weights)
        again = AudioLlmModel.from_pretrained(tmp_path / f"body {weights}")
        with torch.no_grad():
            expected = model.model(**batch).last_hidden_state
            assert torch.equal(body(**batch).last_hidden_state, expected)
            assert torch.equal(again(**batch).last_hidden_state, expected)
    whole = AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "body adapter")
    with torch.no_grad():
        assert torch.equal(whole(**batch).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="lm_head"):
        AudioLlmForConditionalGeneration.from_pretrained(tmp_path / "body full")


def test_replicas_of_data_parallel_are_refused(tiny_model, batch) -> None:
    tiny_model._is_replica = True  # as torch marks the copies that nn.DataParallel makes
    with pytest.raises(RuntimeError, match="accelerate launch"):
        tiny_model(**batch)


@torch.no_grad()
def test_the_configuration_can_do_without_a_cache(tiny_model, batch) -> None:
    assert tiny_model(**batch).get(CACHE_NAME) is not None
    tiny_model.config.use_cache = False
    assert tiny_model(**batch).get(CACHE_NAME) is None
    assert tiny_model(**batch, use_cache=True).get(CACHE_NAME) is not None
