"""How words are chosen: OpenAI's names for it as options of `generate`."""

import secrets
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from .chat_request import ChatRequest

SEED_BITS = 63


class AdditivePenalty(LogitsProcessor):
    """
    OpenAI's penalties: a token's score is lowered by `presence` once it has been written in this answer, and by
    `frequency` for each time that it has.
    """

    def __init__(self, frequency: float, presence: float):
        self.frequency, self.presence = frequency, presence
        self._prompt_tokens: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """See transformers; the first call is with the prompt alone."""
        if self._prompt_tokens is None:
            self._prompt_tokens = input_ids.shape[1]
        written = input_ids[:, self._prompt_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, written, torch.ones_like(written, dtype=scores.dtype))
        lowered = scores - self.frequency * counts - self.presence * (counts > 0)
        return lowered  # type: ignore[return-value]  # of the scores' own kind


def generate_options(request: ChatRequest) -> dict[str, Any]:
    """What `generate` is to be given, but for the bound on new tokens."""
    temperature, top_p = request.sampling_temperature, request.top_p or 1.0
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if request.repetition_penalty is not None:
        options["repetition_penalty"] = request.repetition_penalty
    drawing = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    if request.frequency_penalty or request.presence_penalty:
        steps: list[LogitsProcessor] = [AdditivePenalty(request.frequency_penalty, request.presence_penalty)]
        if drawing:  # after the penalties, where transformers would have it before
            steps += [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]
            drawing = {"temperature": 1.0, "top_p": 1.0}
        options["logits_processor"] = LogitsProcessorList(steps)
    if drawing:  # top_k: transformers' own default would cut the choice to 50 tokens
        options.update(drawing, top_k=0)
    return options


def seed_draws(seed: int | None) -> None:
    """Makes the next draws repeatable, or, without a seed, independent of anybody's before."""
    torch.manual_seed(secrets.randbits(SEED_BITS) if seed is None else seed)


__all__ = ["AdditivePenalty", "generate_options", "seed_draws"]
