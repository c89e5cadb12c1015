"""Language models quantised to 8 or 4 bits, which train and are saved as adapters like any other."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

#: What is not the frozen language model's layers, as patterns of module names; the head, too, is left alone, as
#: transformers does by default.
NOT_QUANTISED = (r".*audio_tower", r".*multi_modal_projector", r".*lora_[AB]", "lm_head")
#: What configurations call the modules they leave out: bitsandbytes' and all others'.
SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert")
#: bitsandbytes' 4-bit layers, on a CPU with AVX512, change their weights' layout for good when they are first run without
#: gradients; what is trained after an evaluation would then get wrong gradients. This attribute turns that off.
PACKS_FOR_CPU = "support_avx512bf16_for_cpu"
#: Of QLoRA (Dettmers et al. 2023, arXiv:2305.14314): four bits spaced as weights are, their scales quantised again.
FOUR_BIT_TYPE, FOUR_BIT_SCALES_TOO = "nf4", True


def quantisation(load_in_8bit: bool, load_in_4bit: bool, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the quantisation that the commands' options ask for, with products in `dtype`; None is none."""
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=FOUR_BIT_TYPE,
            bnb_4bit_use_double_quant=FOUR_BIT_SCALES_TOO,
            bnb_4bit_compute_dtype=dtype,
        )
    return None


def language_model_only(quantization_config: Any) -> Any:
    """
    Return a copy of a quantisation configuration that spares all but the language model's layers.

    Raises:
        ValueError: the configuration has no field for modules to spare.
    """
    config = deepcopy(quantization_config)
    is_dict = isinstance(config, dict)
    fields = config if is_dict else vars(config)
    names = [name for name in SKIP_FIELDS if name in fields]
    if not names and is_dict:
        names = [SKIP_FIELDS[0] if "bnb" in str(config.get("quant_method", "bitsandbytes")) else SKIP_FIELDS[1]]
    if not names:
        raise ValueError(
            f"{type(config).__name__} cannot leave modules out, but projector and LoRA must be. Use a configuration "
            f"with one of {SKIP_FIELDS}, such as BitsAndBytesConfig."
        )
    for name in names:
        fields[name] = [*(fields.get(name) or []), *NOT_QUANTISED]
    return config


def settle_quantised(model: Any, quantization_config: Any) -> None:
    """
    Mark a loaded model as one whose base is quantised, but not the weights that it saves.

    Without this, transformers would save the quantised base, and refuse to train what is not PEFT's own class.
    """
    model.quantised_base = quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    for module in model.modules():
        if hasattr(module, PACKS_FOR_CPU):
            setattr(module, PACKS_FOR_CPU, False)
    for config in (model.config, model.config.text_config, model.config.audio_config):
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config


def refuse_quantised(model: nn.Module, what: str) -> None:
    """Raise ValueError where the model's base is quantised, so that its weights are not those of the base."""
    if getattr(model, "quantised_base", None) is not None:
        raise ValueError(
            f"{what} needs the base's own weights, but this model's are quantised. Save the adapter (weights='adapter'), "
            "load it again without quantization_config, and go on from there."
        )


__all__ = ["language_model_only", "quantisation", "refuse_quantised", "settle_quantised"]
