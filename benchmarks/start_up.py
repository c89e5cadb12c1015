"""
What it takes to begin: seconds to import and to load, memory of loading, and bytes of checkpoints.

    python benchmarks/start_up.py     # writes benchmarks/results/start_up.json and prints a table

Each start is a process of its own, timed from its beginning to its end by the one that starts it, with its peak memory; all
take turns. AudioLLM is loaded from the adapter alone (which reads the two bases too), from the adapter that comes with the
package, and from everything merged into one file; transformers' Voxtral and Qwen2-Audio classes from a checkpoint of the
same two bases in the same precision, float32, with a head of their own, since those classes do not tie it. Every weight is
read once, as a first answer would: what safetensors maps is not in memory before. Files have been read before, so that the disk counts for nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, shipped_adapter
from training_peers import AUDIO_BASE, LORA_ALPHA, LORA_RANK, TARGETS, TEXT_BASE, qwen2_audio_model, voxtral_model

RESULTS = Path(__file__).parent / "results" / "start_up.json"
LIBRARIES = "import of the libraries"
LOAD_OURS = """
import sys, audiollm
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], dtype="float32").eval()
for weight in model.parameters():
    weight.sum()
"""
LOAD_PEER = """
import sys, transformers
model = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], dtype="float32").eval()
for weight in model.parameters():
    weight.sum()
"""
#: Starts a process from one that is small itself: Linux counts as a process' peak also that of the one it was forked from.
LAUNCHER = """
import json, os, sys, time
begin = time.perf_counter()
process = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - begin
measured = [os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]
print("\\n" + json.dumps(measured))
"""
#: What the command needs in any case: nothing of ours.
IMPORT_LIBRARIES = "import torch, peft; from transformers import AutoModel, AutoProcessor, PreTrainedModel"
BYTES_PER_MB, BYTES_PER_MIB, KIB_PER_MIB = 1_000_000, 1 << 20, 1 << 10
WEIGHTS = ("*.safetensors",)


def save_checkpoints(folder: Path) -> dict[str, tuple[list[str], Path]]:
    """
    Saves what is to be loaded; the command of each side, after the interpreter, and its checkpoint's folder.

    The adapter is untrained: what it weighs and how long it takes does not depend on what it has learned.
    """
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        AUDIO_BASE,
        TEXT_BASE,
        dtype=torch.float32,
        lora_rank=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_target_modules=TARGETS,
    )
    model.save_pretrained(folder / "adapter")
    model.save_pretrained(folder / "merged", weights="merged")
    ours = {
        "audiollm, the adapter": folder / "adapter",
        "audiollm, the shipped adapter": Path(shipped_adapter.FOLDER),
        "audiollm, everything merged": folder / "merged",
    }
    commands = {name: (["-c", LOAD_OURS, str(path)], path) for name, path in ours.items()}
    for name, make in (("voxtral", voxtral_model), ("qwen2_audio", qwen2_audio_model)):
        peer = make(torch.float32)
        peer.save_pretrained(folder / name)
        commands[name] = (["-c", LOAD_PEER, str(folder / name), type(peer).__name__], folder / name)
    return commands


def start(arguments: list[str]) -> tuple[float, float, float]:
    """
    Seconds, CPU seconds and peak memory in MiB of a Python process from its beginning to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:]
    returncode, seconds, cpu_seconds, peak = json.loads(last[0]) if last and not done.returncode else (1, 0.0, 0.0, 0)
    if returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {returncode}:\n{done.stderr[-2000:]}")
    unit = BYTES_PER_MIB if sys.platform == "darwin" else KIB_PER_MIB  # Linux reports KiB, macOS bytes
    return seconds, cpu_seconds, peak / unit


def weight_bytes(folder: Path) -> int:
    """Of all files with weights in a checkpoint's folder."""
    return sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern))


def measure(sides: dict[str, list[str]], rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """[`start`] of every side, in turn, after one round that puts files into memory."""
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, arguments in sides.items():
            one = start(arguments)
            if number:
                seen[name].append(one)
                print(f"round {number} {name:34} {one[0]:6.2f} s {one[2]:6.0f} MiB", flush=True)
    return seen


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = save_checkpoints(Path(folder))
        sides = {
            LIBRARIES: ["-c", IMPORT_LIBRARIES],
            "import audiollm": ["-c", "import audiollm"],
            "audiollm --help": ["-m", "audiollm.cli", "--help"],
        }
        sides |= {name: command for name, (command, _) in checkpoints.items()}
        seen = measure(sides, options.rounds)
        weights = {name: weight_bytes(path) for name, (_, path) in checkpoints.items()}
    rows = []
    for name, starts in seen.items():
        row: dict[str, Any] = {"side": name, "all_seconds": [each[0] for each in starts]}
        for index, measured in enumerate(("seconds", "cpu_seconds", "peak_memory_mib")):
            row[measured] = statistics.median(each[index] for each in starts)
        if name in weights:
            row |= {"checkpoint_bytes": weights[name], "checkpoint_mb": weights[name] / BYTES_PER_MB}
        rows.append(row)
    return {
        "what": "a process that does this and ends: seconds, CPU seconds, peak memory; bytes of weights on disk",
        "rounds": options.rounds,
        "bases": [AUDIO_BASE, TEXT_BASE],
        "summary": rows,
        "machine": {"processor": platform.processor() or platform.machine(), "load_at_end": os.getloadavg()},
        "torch": torch.__version__,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per side."""
    print(f"\n{'side':34}{'s':>8}{'CPU s':>8}{'peak MiB':>10}{'weights, MB':>13}")
    for row in rows:
        size = f"{row['checkpoint_mb']:13.1f}" if "checkpoint_mb" in row else ""
        print(f"{row['side']:34}{row['seconds']:8.2f}{row['cpu_seconds']:8.2f}{row['peak_memory_mib']:10.0f}{size}")


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; expected at least 1.")
    return options


def main() -> None:
    """Measures, writes and prints."""
    options = read_options()
    results = run(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results["summary"])


if __name__ == "__main__":
    main()
