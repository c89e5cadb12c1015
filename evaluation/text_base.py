"""The language model by itself, as it was before an adapter was trained on it: what a cascade and a deaf model answer with."""

from typing import Any

import torch
from audiollm.base_models import resolve_base
from audiollm.checkpoints import fingerprint
from transformers import AutoModelForCausalLM

TEXT_KEYS = ("model.language_model.", "lm_head.")


def text_fingerprint(model: Any) -> str:
    """The fingerprint of an AudioLLM's language model, without its LoRA; see [`audiollm.checkpoints.fingerprint`]."""
    tied = model.config.get_text_config().tie_word_embeddings
    held = {
        key.replace(".base_layer.", "."): value
        for key, value in model.state_dict().items()
        if key.startswith(TEXT_KEYS[: 1 if tied else 2]) and ".lora_" not in key
    }
    return fingerprint(held)


def holds_its_base(model: Any) -> bool:
    """Whether an AudioLLM's answers to text are its base's, as far as the weights say."""
    return model.config.base_fingerprint.get("text") == text_fingerprint(model)


def load_text_model(config: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """
    The base language model that a checkpoint was made from, loaded by itself.

    Raises:
        ValueError: the checkpoint does not say which it is.
    """
    if not config.text_model_id:
        raise ValueError("The checkpoint does not say which language model it was made from.")
    folder, revision = resolve_base(config.text_model_id, "text"), config.text_model_revision or "main"
    model = AutoModelForCausalLM.from_pretrained(
        folder, revision=revision, dtype=dtype, trust_remote_code=False, use_safetensors=True
    )
    return model.eval().to(device)


def base_text_model(model: Any) -> Any:
    """
    What answers text as the base does: the AudioLLM itself, or the base by itself where training has changed it.

    Raises:
        ValueError: see [`load_text_model`].
    """
    if holds_its_base(model):
        return model
    return load_text_model(model.config, model.get_input_embeddings().weight.dtype, model.device)


__all__ = ["base_text_model", "holds_its_base", "load_text_model", "text_fingerprint"]
