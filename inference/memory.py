"""Memory that runs out while a model answers: told apart from other errors, and said in words that help."""

import torch

#: What PyTorch's allocator for CPUs, and Python's errors of other devices, say.
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")
ADVICE = "Give less audio at a time, a smaller bound on new tokens, --dtype bfloat16, or --load_in_8bit."


class AnswerMemoryError(RuntimeError):
    """There is not enough memory for an answer; the message says for what, and what takes less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def free_memory() -> None:
    """Gives a GPU's memory that nothing uses back, for what comes next."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["ADVICE", "AnswerMemoryError", "free_memory", "is_out_of_memory"]
