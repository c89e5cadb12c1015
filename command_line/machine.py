"""Facts about the machine: its precision, its threads, its memory."""

import ctypes
import errno
import os
import sys
import timeit
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

#: Size of the product by which precisions are compared, (rows, in, out), and how often it is timed.
PROBE_SHAPE, PROBE_REPEATS = (512, 576, 1536), 5
#: Messages of PyTorch's allocators, and of Python where a thread has no stack.
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "can't start new thread")


def give_back_freed_memory() -> None:
    """
    Give memory that was freed back to the system, where the C library keeps it: some milliseconds.

    glibc keeps what lies between blocks that are in use, hundreds of megabytes after batches of many shapes.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # not with another C library
        library.malloc_trim(0)


@cache
def bfloat16_is_faster() -> bool:
    """
    Measure, once, and return True where this CPU multiplies matrices faster in bfloat16 than in float32.

    Processors without AVX-512 or AMX for bfloat16 compute it some 25 times slower.
    """
    import torch

    rows, width, height = PROBE_SHAPE
    fastest = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(rows, width, dtype=dtype), torch.randn(width, height, dtype=dtype)
        fastest.append(min(timeit.repeat(lambda: left @ right, number=1, repeat=PROBE_REPEATS)))  # noqa: B023
    return fastest[1] < fastest[0]


def worker_processes() -> int:
    """
    Return the number of processes of one thread each to run here: torch's threads, as far as there are cores.

    Threads of one process do not scale with small products. 1 on systems other than Linux, where a process cannot be
    copied with its model in it.
    """
    import torch

    if sys.platform != "linux":
        return 1
    return min(torch.get_num_threads(), len(os.sched_getaffinity(0)))


def is_out_of_memory(error: BaseException) -> bool:
    """Return True where an error says that memory has run out, on any device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def quantisation(load_in_8bit: bool, load_in_4bit: bool, dtype: "torch.dtype") -> "BitsAndBytesConfig | None":
    """Return the quantisation that the commands' options ask for, with products in `dtype`; None is none."""
    from transformers import BitsAndBytesConfig

    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            # As in QLoRA (Dettmers et al. 2023, arXiv:2305.14314).
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return None
