"""
Measure what a busy neighbour costs: encoding clips, alone and beside a program that multiplies matrices on one core.

    python benchmarks/busy_neighbour.py                # as the commands choose processes and waiting
    python benchmarks/busy_neighbour.py --clips 80 --rounds 3

Rounds alternate between the two ways of encoding: the feature cache as it is (a process of one thread for each core), and
one process with all threads, which spin where they wait. Results are medians; they go to `benchmarks/results/`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from audiollm.command_line.machine import WAIT_POLICY
from common import parser_of, write_result

#: One busy neighbour may cost no more than this, in times the seconds of a quiet machine.
TARGET = 1.5
NEIGHBOUR = "import torch\ntorch.set_num_threads(1)\na = torch.randn(1024, 1024)\nwhile True:\n    a @ a"
#: Encodes clips in a process of its own, since how threads wait is decided when torch is loaded. Prints seconds.
ENCODE = """
import sys, time, torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor, shipped_adapter
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.inference.loading import fetch_bases
from audiollm.training.feature_cache import FeatureCache
folder, clips, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
path = str(shipped_adapter.FOLDER)
fetch_bases(path)
model = AudioLlmForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
cache = FeatureCache(model, AudioLlmProcessor.from_pretrained(path), folder, processes=processes)
recordings = list(load_studio_prompts("train")["audio"])[:clips]
start = time.perf_counter()
cache.add(recordings, progress=False)
print(time.perf_counter() - start)
"""
#: By name: how threads wait, and the processes of the cache (0: as many as it chooses).
WAYS = {"as shipped": ("PASSIVE", 0), "one process, spinning": ("ACTIVE", 1)}


def encode(policy: str, processes: int, clips: int) -> float:
    """Return the seconds of encoding so many clips into an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", ENCODE, folder, str(clips), str(processes)],
            env={**os.environ, WAIT_POLICY: policy},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return float(done.stdout.split()[-1])


def measure(clips: int, rounds: int) -> dict[str, Any]:
    """Return the medians of each way, alone and beside the neighbour, and their ratio."""
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds):
        for is_busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if is_busy else None
            try:
                for name, (policy, processes) in WAYS.items():
                    seconds.setdefault((name, is_busy), []).append(encode(policy, processes, clips))
            finally:
                if neighbour is not None:
                    neighbour.kill()
                    neighbour.wait()
    rows = []
    for name in WAYS:
        alone, beside = (statistics.median(seconds[name, is_busy]) for is_busy in (False, True))
        rows.append({"way": name, "alone_s": alone, "beside_s": beside, "times": beside / alone})
    return {"clips": clips, "rounds": rounds, "target": TARGET, "summary": rows}


def main() -> None:
    """Measure, print and write the result."""
    parser = parser_of("busy_neighbour", __doc__, model=False)
    parser.add_argument("--clips", type=int, default=120, help="studio prompts, of 2.8 s on average; %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; default: %(default)s")
    options = parser.parse_args()
    result = measure(options.clips, options.rounds)
    for row in result["summary"]:
        print(
            f"{row['way']:22} alone {row['alone_s']:6.1f} s, beside {row['beside_s']:6.1f} s: {row['times']:.2f} times"
        )
    write_result(options.output, result)


if __name__ == "__main__":
    main()
