"""
Training steps side by side: AudioLLM against transformers' own Voxtral and Qwen2-Audio classes and the recipes of Ultravox
and SLAM, from the same bases.

    python benchmarks/training_step.py     # writes benchmarks/results/training_step.json

Three batches: 8 short studio prompts (1.4 s), 8 clips of 10 s, 4 full windows of 30 s. AudioLLM and transformers' classes
train the same things (projector and LoRA of the same rank on the same layers, fused AdamW), the two recipes their projector
alone (`recipe_peers.py`), all on frozen bases of the same precision, on the same clips and the same question and answer. Each
side runs in a process of its own, so that its peak memory is its own; the
processes take turns, so that a machine that slows down slows all.

What differs is what each design does by default. The peers' classes pad every clip to 30 s for the encoder, encode it
in every step, and run the head on every position; Voxtral's makes tokens of the padding too. AudioLLM encodes what is
there, once; it runs the head where there are labels, and the beginning that all prompts share once for the batch. The
row "no cache" encodes in every step too.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from recipe_peers import RECIPES
from training_peers import OURS, PEERS, SHAPES

RESULTS = Path(__file__).parent / "results" / "training_step.json"
ALL_PEERS = {**PEERS, **RECIPES}
PRECISIONS = ("float32", "bfloat16")
LEARNING_RATE = 1e-4
BYTES_PER_MIB = 1 << 20
KIB_PER_MIB = 1 << 10


def run_side(side: str, shape: str, precision: str, steps: int, step_seconds: float) -> dict[str, Any]:
    """
    Times training steps after a warm-up one; seconds each, and the process' peak memory.

    Args:
        steps: at most so many.
        step_seconds: no further step begins once they have taken so long in all.
    """
    torch.manual_seed(0)
    model, batch = {**OURS, **ALL_PEERS}[side](getattr(torch, precision), SHAPES[shape])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)
    seconds: list[float] = []
    losses: list[float] = []
    while len(seconds) < 2 or (len(seconds) <= steps and sum(seconds[1:]) < step_seconds):
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    # Linux reports KiB, macOS bytes.
    unit = BYTES_PER_MIB if sys.platform == "darwin" else KIB_PER_MIB
    return {
        "side": side,
        "shape": shape,
        "precision": precision,
        "warm_up_seconds": seconds[0],
        "seconds": seconds[1:],
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "rows": len(batch["input_ids"]),
        "tokens_per_row": int(batch["input_ids"].shape[1]),
        "supervised_tokens": int((batch["labels"] >= 0).sum()),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "losses": losses,
    }


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds and steps of every side, and ratios to each peer on the same batch at the same precision."""
    medians: dict[tuple[str, str, str], tuple[float, float]] = {}
    for key in dict.fromkeys((run["shape"], run["precision"], run["side"]) for run in runs):
        chosen = [run for run in runs if (run["shape"], run["precision"], run["side"]) == key]
        seconds = statistics.median(second for run in chosen for second in run["seconds"])
        medians[key] = seconds, statistics.median(run["peak_memory_mib"] for run in chosen)
    table = []
    for (shape, precision, side), (seconds, memory) in medians.items():
        row: dict[str, Any] = {"shape": shape, "precision": precision, "side": side}
        row |= {"median_seconds": seconds, "peak_memory_mib": memory}
        for peer in ALL_PEERS:
            if (shape, precision, peer) in medians:
                peer_seconds, peer_memory = medians[shape, precision, peer]
                row[f"times_faster_than_{peer}"] = peer_seconds / seconds
                row[f"memory_share_of_{peer}"] = memory / peer_memory
        table.append(row)
    return table


def run_in_process(side: str, shape: str, precision: str, steps: int, step_seconds: float) -> dict[str, Any]:
    """
    `run_side` in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, __file__, "--steps", str(steps), "--step_seconds", str(step_seconds)]
    command += ["--worker", side, shape, precision]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} on {shape} in {precision} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="batches to compare on")
    parser.add_argument("--ours", nargs="+", default=list(OURS), choices=OURS, help="forms of AudioLLM")
    parser.add_argument(
        "--peers", nargs="*", default=list(ALL_PEERS), choices=ALL_PEERS, help="classes to compare with"
    )
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=3, help="processes per side, batch and precision")
    parser.add_argument("--steps", type=int, default=2, help="timed steps per process, after one to warm up")
    parser.add_argument(
        "--step_seconds",
        type=float,
        default=math.inf,
        help="after timed steps of so many seconds no further one begins; default: all of --steps",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "SHAPE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.steps < 1:
        parser.error(f"--rounds is {options.rounds} and --steps {options.steps}; both must be 1 or more.")
    if not options.step_seconds > 0:
        parser.error(f"--step_seconds is {options.step_seconds}; expected more than 0.")
    return options


def main() -> None:
    """Runs all sides in turn and writes what was seen."""
    options = read_options()
    if options.worker:
        side, shape, precision = options.worker
        print(json.dumps(run_side(side, shape, precision, options.steps, options.step_seconds)))
        return
    runs = []
    for round_index in range(options.rounds):
        for shape in options.shapes:
            for precision in options.precisions:
                for side in [*options.ours, *options.peers]:
                    run = run_in_process(side, shape, precision, options.steps, options.step_seconds)
                    runs.append({"round": round_index, **run})
                    median = statistics.median(run["seconds"])
                    print(f"round {round_index} {shape:6} {precision:9} {side:19} {median:7.2f} s", flush=True)
    table = summarize(runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_at_end": os.getloadavg(),
    }
    results = {
        "machine": machine,
        "torch": torch.__version__,
        "rounds": options.rounds,
        "summary": table,
        "runs": runs,
    }
    options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
