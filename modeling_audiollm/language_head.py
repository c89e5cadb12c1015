"""The language model's head: what its own class does around it, and a check that AudioLLM does the same."""

import torch
from torch import nn
from transformers import PreTrainedModel

#: Any two ids will do to compare two ways to the same logits; every vocabulary has these.
PROBE_IDS = ((0, 1),)


def scale_logits(logits: torch.Tensor, text_config) -> torch.Tensor:
    """What a base's own class does after its head: Granite's and Cohere's scales, Gemma's soft cap."""
    if getattr(text_config, "logits_scaling", None):
        logits = logits / text_config.logits_scaling
    if getattr(text_config, "logit_scale", None):
        logits = logits * text_config.logit_scale
    cap = getattr(text_config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def check_language_model(causal_lm: PreTrainedModel) -> None:
    """
    Makes sure that AudioLLM's own head gives this language model's logits.

    Raises:
        ValueError: its embeddings or its head are laid out otherwise, or its class does something else around them.
    """
    name = type(causal_lm).__name__
    if getattr(causal_lm.base_model, "embed_tokens", None) is not causal_lm.get_input_embeddings():
        raise ValueError(
            f"{name} does not keep its token embeddings in `embed_tokens` as Llama does. AudioLLM supports language "
            "models laid out like Llama: Llama, Qwen, Mistral, Gemma 2, Granite, Cohere, Phi-3 and their like."
        )
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(f"The head of {name} is {head}; AudioLLM supports a linear head without bias, as Llama's is.")
    probe = torch.tensor(PROBE_IDS)
    with torch.no_grad():
        expected = causal_lm(input_ids=probe).logits
        hidden_states = causal_lm.base_model(input_ids=probe).last_hidden_state
        found = scale_logits(head(hidden_states), causal_lm.config)
    if not torch.equal(found, expected):
        raise ValueError(
            f"{name} treats its logits in a way that AudioLLM does not know (they differ by up to "
            f"{float((found - expected).abs().max()):.3g} on a probe), so that text-only rows would not be those of "
            "the base. Choose another language model, or add its treatment to `scale_logits`."
        )


__all__ = ["check_language_model", "scale_logits"]
