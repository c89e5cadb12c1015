"""Language models laid out like Llama that AudioLLM supports, each with what is peculiar to its class made visible."""

from tiny_models import TEXT_FIELDS, llama_config
from transformers import (
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

PHI3_TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
#: Name: a function that makes the configuration, and the fields of AudioLLM's that it needs.
ARCHITECTURES = {
    "llama-untied": (lambda: llama_config(tie_word_embeddings=False), {}),
    "qwen2": (lambda: Qwen2Config(**TEXT_FIELDS, tie_word_embeddings=True), {}),
    "qwen3": (lambda: Qwen3Config(**TEXT_FIELDS, head_dim=8), {}),
    "mistral": (lambda: MistralConfig(**TEXT_FIELDS, sliding_window=16), {}),
    "gemma2": (
        lambda: Gemma2Config(**TEXT_FIELDS, head_dim=8, sliding_window=16, final_logit_softcapping=3.0),
        {},
    ),
    "granite": (
        lambda: GraniteConfig(
            **TEXT_FIELDS,
            logits_scaling=7.0,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            tie_word_embeddings=True,
        ),
        {},
    ),
    "cohere": (lambda: CohereConfig(**TEXT_FIELDS, logit_scale=0.3), {}),
    "phi3": (lambda: Phi3Config(**TEXT_FIELDS), {"lora_target_modules": PHI3_TARGETS}),
}
