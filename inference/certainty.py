"""How sure a model was of what it wrote: mean log-probability of its tokens, noted while it writes greedily."""

import torch
from transformers import LogitsProcessor


class Certainty(LogitsProcessor):
    """
    Notes the log-probability of the likeliest token at each step, which greedy decoding takes; changes nothing.

    One number a row and step is kept, where `output_scores` would keep one for each token of the vocabulary.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Takes scores `(batch, vocab_size)`, and returns them."""
        self._steps.append(scores.float().log_softmax(dim=-1).amax(dim=-1))
        return scores

    def mean_logprob(self, row: int, tokens: int) -> float:
        """The mean over a row's first so many tokens."""
        return float(torch.stack(self._steps[:tokens])[:, row].mean())


__all__ = ["Certainty"]
