"""What transformers' common configuration test asks of every configuration, asked of ours."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from audiollm import AudioLlmConfig
from tiny_models import llama_config, whisper_config
from transformers import AutoConfig, LlamaConfig, WhisperConfig

FIELDS = {
    "stack_factor": 2,
    "lora_rank": 8,
    "projector_type": "mlp",
    "lora_adapters": {"speech": {}, "sound": {"rank": 2}},
}


@pytest.fixture
def config() -> AudioLlmConfig:
    return AudioLlmConfig(audio_config=whisper_config(), text_config=llama_config(), **FIELDS)


def without_place(config) -> dict[str, Any]:
    """All fields but the folder that it was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def test_properties_that_all_models_share(config) -> None:
    assert (config.vocab_size, config.hidden_size) == (config.text_config.vocab_size, config.text_config.hidden_size)
    assert config.get_text_config() is config.get_text_config(decoder=True) is config.text_config
    assert (config.get_text_config().num_hidden_layers, config.get_text_config().num_attention_heads) == (2, 4)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 4, 4)


def test_json_string_and_file(config, tmp_path: Path) -> None:
    fields = json.loads(config.to_json_string())
    assert {name: fields[name] for name in FIELDS} == FIELDS
    config.to_json_file(tmp_path / "config.json")
    assert AudioLlmConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    assert AudioLlmConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert AudioLlmConfig(**config.to_diff_dict()).to_dict() == config.to_dict()


def test_saved_and_loaded(config, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path / "sub")
    for loaded in (
        AudioLlmConfig.from_pretrained(tmp_path / "sub"),
        AudioLlmConfig.from_pretrained(tmp_path, subfolder="sub"),
        AutoConfig.from_pretrained(tmp_path / "sub"),
    ):
        assert without_place(loaded) == without_place(config)


def test_sub_configurations_load_by_themselves_from_the_whole(config, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert without_place(LlamaConfig.from_pretrained(tmp_path)) == without_place(config.text_config)
    assert without_place(WhisperConfig.from_pretrained(tmp_path)) == without_place(config.audio_config)
    whole = AudioLlmConfig.from_pretrained(tmp_path)
    assert type(whole.text_config) is LlamaConfig and type(whole.audio_config) is WhisperConfig
    assert whole.text_config.to_dict() == config.text_config.to_dict()
    assert whole.audio_config.to_dict() == config.audio_config.to_dict()


def test_arguments_at_loading(config, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    loaded, unused = AudioLlmConfig.from_pretrained(
        tmp_path, lora_alpha=5.0, nonsense=1, return_unused_kwargs=True, output_attentions=False
    )
    assert loaded.lora_alpha == 5.0 and unused == {"nonsense": 1}


def test_common_fields_are_kept() -> None:
    fields = {"return_dict": False, "output_hidden_states": True, "num_labels": 3, "architectures": ["Mine"]}
    config = AudioLlmConfig(audio_config=whisper_config(), text_config=llama_config(), **fields)
    assert {name: getattr(config, name) for name in fields} == fields
    assert AudioLlmConfig(**config.to_dict()).num_labels == 3


def test_copied_and_pickled(config) -> None:
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again.to_dict() == config.to_dict() and again.text_config is not config.text_config
        again.text_config.hidden_size = 1
        assert config.hidden_size != 1


def test_every_argument_can_be_left_out() -> None:
    assert AudioLlmConfig().to_dict() == AudioLlmConfig(**AudioLlmConfig().to_dict()).to_dict()
