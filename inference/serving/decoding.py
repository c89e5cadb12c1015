"""OpenAI's options of decoding as options of `generate`, and stop strings."""

import secrets
from collections.abc import Sequence
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
    OpenAI's penalties: lower a token's score by `presence` if it occurs in this answer, and by `frequency` for each time.
    """

    def __init__(self, frequency: float, presence: float):
        self.frequency, self.presence = frequency, presence
        self._prompt_tokens: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return lowered scores `(batch, vocab_size)`; the first call is with the prompt alone."""
        if self._prompt_tokens is None:
            self._prompt_tokens = input_ids.shape[1]
        written = input_ids[:, self._prompt_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, written, torch.ones_like(written, dtype=scores.dtype))
        lowered = scores - self.frequency * counts - self.presence * (counts > 0)
        return lowered  # type: ignore[return-value]  # of the scores' own kind


def generate_options(request: ChatRequest) -> dict[str, Any]:
    """Return options of `generate`, without the bound on new tokens."""
    temperature, top_p = request.sampling_temperature, request.top_p or 1.0
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if request.repetition_penalty is not None:
        options["repetition_penalty"] = request.repetition_penalty
    sampling = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    if request.frequency_penalty or request.presence_penalty:
        steps: list[LogitsProcessor] = [AdditivePenalty(request.frequency_penalty, request.presence_penalty)]
        if sampling:  # after the penalties, where transformers would have it before
            steps += [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]
            sampling = {"temperature": 1.0, "top_p": 1.0}
        options["logits_processor"] = LogitsProcessorList(steps)
    if sampling:  # top_k: transformers' own default would cut the choice to 50 tokens
        options.update(sampling, top_k=0)
    return options


def seed_sampling(seed: int | None) -> None:
    """Seed the random numbers, without a seed by chance, so that no request depends on another."""
    torch.manual_seed(secrets.randbits(SEED_BITS) if seed is None else seed)


class StopStrings:
    """
    Text that ends before the first stop string; the possible beginning of one is held back.

    Args:
        strings: the stop strings, none of them empty.
    """

    def __init__(self, strings: Sequence[str]):
        self.strings = strings
        self.is_hit = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take more text, and return the text that cannot belong to a stop string; none after a hit."""
        if self.is_hit:
            return ""
        self._held += piece
        found = [at for at in map(self._held.find, self.strings) if at >= 0]
        if found:
            self.is_hit = True
            text, self._held = self._held[: min(found)], ""
            return text
        kept = max((_overlap(self._held, string) for string in self.strings), default=0)
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` with which `string` begins."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if string.startswith(text[-length:])), 0)


__all__ = ["AdditivePenalty", "StopStrings", "generate_options", "seed_sampling"]
