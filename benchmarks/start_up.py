"""
CPU seconds and peak memory of a process that imports, shows help or loads a model, and ends.

    python benchmarks/start_up.py     # writes benchmarks/results/start_up.json

Beside AudioLLM stand `import transformers`, an import of the libraries that any such model needs, and OpenAI's `whisper`
command where it is installed. CPU seconds count, so that a busy machine changes little.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "start_up.json"
LOAD = "import audiollm; from transformers import AutoModel; AutoModel.from_pretrained('shipped_adapter')"
COMMANDS = ("transcribe", "train", "prepare", "evaluate", "serve")
KIB_PER_MIB, BYTES_PER_MIB = 1 << 10, 1 << 20


def sides() -> dict[str, list[str]]:
    """Command lines by name."""
    python = sys.executable
    found = {
        "import transformers": [python, "-c", "import transformers"],
        "import torch, peft, AutoModel": [python, "-c", "import torch, peft; from transformers import AutoModel"],
        "import audiollm": [python, "-c", "import audiollm"],
        "audiollm --help": [python, "-m", "audiollm.cli", "--help"],
    }
    found |= {f"audiollm {name} --help": [python, "-m", "audiollm.cli", name, "--help"] for name in COMMANDS}
    found["loading the shipped adapter"] = [python, "-c", LOAD]
    if whisper := shutil.which("whisper"):
        found["whisper --help"] = [whisper, "--help"]
    return found


def measure(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of a process and its children."""
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}.")
    unit = BYTES_PER_MIB if sys.platform == "darwin" else KIB_PER_MIB  # Linux reports KiB, macOS bytes
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


def main() -> None:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median, after one that reads the files")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    rows = []
    for name, command in sides().items():
        measure(command)
        seconds, memory = zip(*(measure(command) for _ in range(options.rounds)))
        rows.append(
            {"side": name, "cpu_seconds": statistics.median(seconds), "peak_memory_mib": statistics.median(memory)}
        )
        print(f"{name:32}{rows[-1]['cpu_seconds']:8.2f} s{rows[-1]['peak_memory_mib']:8.0f} MiB", flush=True)
    report = {"rounds": options.rounds, "python": platform.python_version(), "summary": rows}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
