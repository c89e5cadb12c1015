"""Text retention: whether the model's answers to text are those of its base, bit for bit, and how likely it finds text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .generating import Answer, Generator
from .systems import System


@torch.inference_mode()
def text_logits(model: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What a model makes of a text by itself.

    Returns:
        Ids `(tokens,)`, and logits `(tokens, vocab_size)` in the model's own precision, both on the CPU.
    """
    ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    return ids[0].cpu(), model(input_ids=ids).logits[0].cpu()


def likelihood(ids: torch.Tensor, logits: torch.Tensor) -> dict[str, Any]:
    """How many tokens of a text were foretold, and the sum of their negative log likelihoods, in nats."""
    scored = max(len(ids) - 1, 0)
    total = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:], reduction="sum") if scored else 0.0
    return {"tokens": scored, "negative_log_likelihood": float(total)}


@dataclass
class RetentionSystem(System):
    """
    Measures what a model makes of text; there is nothing to answer.

    Args:
        generator: holds the model that is measured.
        base: the base language model by itself, to compare with; None measures likelihood alone.
    """

    generator: Generator
    base: Any | None = None

    def answer(self, questions, waveforms, bounds: Sequence[int]) -> list[Answer]:
        """See [`System`]; an answer is empty, and its `extra` has what was measured of the prompt."""
        return [Answer("", extra=self.measure(question.item.prompt)) for question in questions]

    def measure(self, text: str) -> dict[str, Any]:
        """Likelihood of a text, and, where there is a base, whether its logits are the same."""
        tokenizer = self.generator.processor.tokenizer
        ids, logits = text_logits(self.generator.model, tokenizer, text)
        measured = likelihood(ids, logits)
        if self.base is not None:
            _, base_logits = text_logits(self.base, tokenizer, text)
            same = torch.equal(logits, base_logits)
            difference = 0.0 if same else float((logits.float() - base_logits.float()).abs().max())
            measured |= {"same_logits_as_base": same, "largest_logit_difference": difference}
        return measured


__all__ = ["RetentionSystem", "likelihood", "text_logits"]
