"""Memory that runs out while a model answers: told apart from other errors, and said in words that help."""

import torch
from audiollm.memory import is_out_of_memory

ADVICE = "Give less audio at a time, a smaller bound on new tokens, --dtype bfloat16, or --load_in_8bit."


class AnswerMemoryError(RuntimeError):
    """There is not enough memory for an answer; the message says for what, and what takes less."""


def free_memory() -> None:
    """Gives a GPU's memory that nothing uses back, for what comes next."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["ADVICE", "AnswerMemoryError", "free_memory", "is_out_of_memory"]
