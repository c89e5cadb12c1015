"""How far training has moved the answers to text alone: not at all for an adapter, and by how much otherwise."""

import torch
from transformers import PreTrainedModel

#: Text of several kinds; what matters is that it is always the same.
PROBES = (
    "The capital of France is Paris, and its river is the Seine.",
    "def add(a, b):\n    return a + b\n",
    "In 1969, 2 people walked on the Moon; 10 more followed by 1972.",
)


@torch.no_grad()
def text_logits(model: PreTrainedModel, tokenizer) -> list[torch.Tensor]:
    """
    Logits `(tokens, vocab_size)` of each probe, as the model answers text without audio, on the CPU.

    Args:
        model: the [`AudioLlmForConditionalGeneration`]; its mode is left as it was.
        tokenizer: the language model's.
    """
    was_training = model.training
    model.eval()
    logits = []
    for text in PROBES:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        # The class's own forward: the Trainer may have wrapped the model's in autocast, which rounds.
        logits.append(type(model).forward(model, input_ids=ids).logits[0].float().cpu())
    model.train(was_training)
    return logits


def drift(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Largest absolute difference of two results of [`text_logits`]; 0 only where every bit is the same."""
    if all(torch.equal(first, second) for first, second in zip(before, after, strict=True)):
        return 0.0
    largest = max(float((first - second).abs().max()) for first, second in zip(before, after))
    return largest or float("nan")  # minus zero against zero, or not a number: different, however small


def describe_drift(value: float, reference: str = "the base") -> str:
    """The line that a stage ends with."""
    if value == 0:
        return f"Text-only logits are those of {reference}, bit for bit: largest difference 0."
    return f"Text-only logits have drifted from {reference}: largest difference {value:.4g}."
