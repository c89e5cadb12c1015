"""The configuration: impossible values are named, and what is written is what is read."""

import json

import pytest
from audiollm import AudioLlmConfig
from tiny_models import TEXT_FIELDS, llama_config, whisper_config
from transformers import AutoConfig, LlamaConfig, Qwen2Config, T5Config, WhisperConfig

#: Every field away from its default.
ALL_FIELDS = {
    "audio_model_id": "someone/whisper",
    "text_model_id": "someone/llama",
    "audio_model_revision": "v1",
    "text_model_revision": "v2",
    "base_fingerprint": {"audio": "a" * 32, "text": "b" * 32},
    "weight_format": "adapter",
    "projector_type": "mlp",
    "stack_factor": 3,
    "projector_hidden_size": 30,
    "projector_activation": "relu",
    "projector_pre_norm": False,
    "projector_mid_norm": False,
    "projector_norm_eps": 1e-5,
    "projector_context_layers": 2,
    "projector_readout": "pieces",
    "projector_letters": "ab",
    "lora_rank": 3,
    "lora_alpha": 7.5,
    "lora_dropout": 0.25,
    "lora_target_modules": ["q_proj"],
    "lora_adapters": {"speech": {}, "sound": {"rank": 2, "target_modules": ["v_proj"]}},
    "audio_begin_token_id": 140,
    "audio_token_id": 139,
    "audio_end_token_id": 138,
}


def tiny_config(**fields) -> AudioLlmConfig:
    return AudioLlmConfig(audio_config=whisper_config(), text_config=llama_config(), **fields)


def test_defaults_follow_the_sub_configs() -> None:
    config = tiny_config()
    assert (config.vocab_size, config.hidden_size) == (128, 32)
    assert (config.audio_begin_token_id, config.audio_token_id, config.audio_end_token_id) == (128, 129, 130)
    assert config.projector_hidden_size == 4 * 32
    assert config.lora_adapters == {"speech": {}}
    assert config.adapter_settings("speech") == {
        "rank": 16,
        "alpha": 32,
        "dropout": 0.0,
        "target_modules": config.lora_target_modules,
    }
    assert config.tie_word_embeddings is True
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 4, 4)
    assert config.get_text_config() is config.text_config
    bare = AudioLlmConfig()
    assert isinstance(bare.audio_config, WhisperConfig) and isinstance(bare.text_config, LlamaConfig)
    assert bare.audio_end_token_id == bare.vocab_size + 2


def test_sub_configs_as_dicts_and_objects() -> None:
    text = Qwen2Config(**TEXT_FIELDS)
    objects = AudioLlmConfig(audio_config=whisper_config(), text_config=text)
    dicts = AudioLlmConfig(audio_config=whisper_config().to_dict(), text_config=text.to_dict())
    assert isinstance(dicts.text_config, Qwen2Config)
    assert dicts.to_dict() == objects.to_dict()
    plain = AudioLlmConfig(audio_config={"d_model": 32, "encoder_attention_heads": 4}, text_config=dict(TEXT_FIELDS))
    assert (plain.audio_config.model_type, plain.text_config.model_type) == ("whisper", "llama")


#: Defaults that depend on the language model, of another one: they must not be taken for what goes without saying.
OF_ANOTHER_MODEL = {
    name: getattr(AudioLlmConfig(), name)
    for name in ("projector_hidden_size", "audio_begin_token_id", "audio_token_id", "audio_end_token_id")
}


@pytest.mark.parametrize("fields", [{}, ALL_FIELDS, {"lora_rank": 0}, OF_ANOTHER_MODEL], ids=len)
def test_what_is_written_is_what_is_read(tmp_path, fields) -> None:
    config = tiny_config(**fields)
    for use_diff in (True, False):
        config.to_json_file(tmp_path / "config.json", use_diff=use_diff)
        for read in (AudioLlmConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(read) is AudioLlmConfig and read.to_diff_dict() == config.to_diff_dict()
            assert {name: getattr(read, name) for name in fields} == fields


def test_configs_from_before_and_after_a_field_existed_load(tmp_path) -> None:
    known = {"model_type", "audio_config", "text_config", "audio_model_id", "text_model_id"}
    expected = tiny_config(audio_model_id="a/b", text_model_id="c/d")
    written = {name: value for name, value in expected.to_dict().items() if name in known}
    (tmp_path / "config.json").write_text(json.dumps({**written, "field_of_tomorrow": 3}))
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.to_diff_dict() == {**expected.to_diff_dict(), "field_of_tomorrow": 3}


IMPOSSIBLE = [
    ({"projector_type": "qformer"}, "projector_type is 'qformer'; expected one of"),
    ({"stack_factor": 0}, "stack_factor is 0; expected an integer of at least 1"),
    ({"stack_factor": True}, "stack_factor is True; expected an integer"),
    ({"stack_factor": 1501}, "stack_factor is 1501; expected at most 1500"),
    ({"projector_hidden_size": 31}, "projector_hidden_size is 31; expected an even number"),
    ({"projector_norm_eps": 0}, "projector_norm_eps is 0; expected a number above 0"),
    ({"projector_letters": "a b"}, "projector_letters is 'a b'; expected None, or letters that are .* without space"),
    ({"projector_letters": "ab"}, "projector_letters is 'ab'; expected None, because projector_readout is 'direct'"),
    ({"lora_alpha": "32"}, "lora alpha is '32'; expected a number"),
    ({"lora_dropout": 1.0}, "lora dropout is 1.0; expected a number from 0 to below 1"),
    ({"lora_target_modules": ["q_proj", 3]}, "target_modules is .* expected a non-empty list of module names"),
    ({"lora_target_modules": "q_proj"}, "lora_target_modules is 'q_proj'; expected a list of"),
    ({"lora_rank": 0, "lora_adapters": {"speech": {}}}, r"lora_rank is 0 .* lora_adapters names \['speech'\]"),
    ({"lora_adapters": {"bad name": {}}}, "'bad name' is not a usable name"),
    ({"lora_adapters": {"speech": {"r": 4}}}, r"lora_adapters\['speech'\] has unknown fields \['r'\]"),
    ({"lora_adapters": {"speech": {"rank": 0}}}, r"lora_adapters\['speech'\] rank is 0"),
    ({"lora_adapters": ["speech"]}, "lora_adapters is .*; expected a dict"),
    ({"audio_token_id": 127}, "audio_token_id is 127; expected an integer of at least 128"),
    ({"audio_begin_token_id": 129}, "audio token ids must differ"),
    ({"audio_config": LlamaConfig()}, "audio_config.model_type is 'llama'; expected the configuration of an encoder"),
    ({"audio_config": "openai/whisper-tiny"}, "audio_config must be a dict or a configuration object, got str"),
    ({"text_config": T5Config()}, "text_config.model_type is .*; expected the configuration of a decoder-only"),
    ({"text_config": AutoConfig.for_model("llava")}, "text_config.model_type is 'llava'; expected"),
]


@pytest.mark.parametrize(("fields", "words"), IMPOSSIBLE, ids=lambda value: str(value)[:60])
def test_impossible_values_are_named(fields, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AudioLlmConfig(**{"audio_config": whisper_config(), "text_config": llama_config(), **fields})
