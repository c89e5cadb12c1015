"""Facts about the machine: its precision, its threads, and how they wait for each other."""

import os
import sys
import time
from functools import cache

#: libgomp reads it when torch is loaded: threads that wait sleep instead of spinning.
WAIT_POLICY = "OMP_WAIT_POLICY"
#: Size of the product by which precisions are compared, (rows, in, out), and how often it is timed.
PROBE_SHAPE, PROBE_REPEATS = (512, 576, 1536), 5


def wait_passively() -> None:
    """
    Let OpenMP's threads sleep where they wait, unless the user has said how they should; call it before torch is imported.

    A spinning thread takes its core from the one that it waits for, as soon as anything else runs on the machine.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


@cache
def bfloat16_is_faster() -> bool:
    """
    Return whether this CPU multiplies matrices faster in bfloat16 than in float32: measured, in a moment, once.

    The fastest of a few repeats counts, so that other programs on the machine do not decide. Processors without AVX-512
    or AMX for bfloat16 compute it some 25 times slower.
    """
    import torch

    rows, width, height = PROBE_SHAPE
    fastest = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(rows, width).to(dtype), torch.randn(width, height).to(dtype)
        times = []
        for _ in range(PROBE_REPEATS):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        fastest[dtype] = min(times)
    return fastest[torch.bfloat16] < fastest[torch.float32]


def worker_processes() -> int:
    """
    Return how many processes of one thread each this machine is to be given: as many as torch has threads and cores here.

    Threads of one process do not scale with small products, and wait for the slowest. 1 on systems other than Linux, where
    a process cannot be copied with its model in it.
    """
    import torch

    if sys.platform != "linux":
        return 1
    return min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
