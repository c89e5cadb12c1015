"""
Training steps side by side: AudioLLM, transformers' own Voxtral and Qwen2-Audio classes and the recipe of Ultravox, from the
same bases.

    python benchmarks/training_step.py     # writes benchmarks/results/training_step.json

Three batches: 8 short studio prompts (1.4 s), 8 clips of 10 s, 4 full windows of 30 s. AudioLLM and transformers' classes
train the same things (projector and LoRA of the same rank on the same layers, fused AdamW), the recipe its projector alone,
all on frozen bases of the same precision, on the same clips and the same question and answer. Each side runs in a process of
its own, so that its peak memory is its own; the processes take turns, so that a machine that slows down slows all.

The sides differ by each design's defaults. The peers' classes pad every clip to 30 s for the encoder, encode it in every step,
and run the head on every position; Voxtral's makes tokens of the padding too. AudioLLM encodes each clip without padding, once;
it runs the head where there are labels, and the beginning that all prompts share once for the batch.
"""

import math
import statistics
import time
from typing import Any

import torch
from audiollm.publishing.record import peak_memory_mib
from common import grouped, own_process, parser_of, write_result
from training_peers import SHAPES, SIDES

PRECISIONS = ("float32", "bfloat16")
LEARNING_RATE = 1e-4


def run_side(side: str, shape: str, precision: str, steps: int, step_seconds: float) -> dict[str, Any]:
    """Time up to `steps` training steps after a warm-up one; none begins once they have taken `step_seconds` in all."""
    torch.manual_seed(0)
    model, batch = SIDES[side](getattr(torch, precision), SHAPES[shape])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) <= steps and sum(seconds[1:]) < step_seconds):
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "side": side,
        "shape": shape,
        "precision": precision,
        "seconds": seconds[1:],
        "peak_memory_mib": peak_memory_mib(),
    }


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians over rounds and steps of every side, batch and precision."""
    table = []
    for row, chosen in grouped(runs, "shape", "precision", "side"):
        row["median_seconds"] = statistics.median(second for run in chosen for second in run["seconds"])
        row["peak_memory_mib"] = statistics.median(run["peak_memory_mib"] for run in chosen)
        table.append(row)
    return table


def main() -> None:
    """Run all sides in turn and write the measurements."""
    parser = parser_of("training_step", __doc__, model=False)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="batches to compare on")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="to compare")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=3, help="processes per side, batch and precision")
    parser.add_argument("--steps", type=int, default=2, help="timed steps per process, after one to warm up")
    told = "after timed steps of so many seconds no further one begins; default: all of --steps"
    parser.add_argument("--step_seconds", type=float, default=math.inf, help=told)
    options = parser.parse_args()
    runs = []
    for number in range(options.rounds):
        for shape in options.shapes:
            for precision in options.precisions:
                for side in options.sides:
                    with own_process() as process:
                        started = process.submit(run_side, side, shape, precision, options.steps, options.step_seconds)
                        run = started.result()
                    runs.append({"round": number, **run})
                    median = statistics.median(run["seconds"])
                    print(f"round {number} {shape:6} {precision:9} {side:19} {median:7.2f} s", flush=True)
    write_result(options.output, {"rounds": options.rounds, "summary": summarize(runs), "runs": runs})


if __name__ == "__main__":
    main()
