"""Memory that runs out, told apart from other errors."""

import errno

import torch

#: What PyTorch's allocator for CPUs, Python's errors of other devices, and Python where a thread has no stack, say.
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
