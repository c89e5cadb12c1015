"""
Time to the first token of an answer, and tokens per second after it: AudioLLM beside transformers' own Voxtral and
Qwen2-Audio classes, from the same bases, about recordings of 4 s, 30 s and 10 minutes.

    python benchmarks/first_token.py --model runs/demo/adapter
    # writes benchmarks/results/first_token.json

The clock starts with a waveform at 16 kHz in memory and a question: features, chat template and tokenizer count, with
each side's own processor. It stops where `generate`, with a streamer, hands out the first token. All sides answer
greedily and with equally many tokens, the end of the answer being forbidden.

Each side lives in a process of its own, so that its peak memory is its own; they are asked in turn, question by
question, so that a machine that slows down slows all. What differs is each design: Voxtral's class pads recordings to
whole windows of 30 s, all of which become tokens; Qwen2-Audio's drops what comes after 30 s. Where a side did not hear
all, that is said, and no ratio to it is given.
"""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmProcessor
from inference_peers import OURS, PEERS, Side
from joined_speech import joined_speech
from training_peers import AUDIO_BASE, QUESTION, TEXT_BASE
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

RESULTS = Path(__file__).parent / "results" / "first_token.json"
PRECISIONS = ("float32", "bfloat16")
LENGTHS_S = (4.0, 30.0, 600.0)
#: From here on a round takes a minute per side, and varies little; it has rounds of its own number.
LONG_S = 120.0
WARM_UP_S = 4.0
#: A recording's last frame may be cut.
HEARD_TOLERANCE_S = 0.1
BYTES_PER_MIB, KIB_PER_MIB = 1 << 20, 1 << 10
#: Linux: a process' peak of resident memory, and what makes it begin anew (proc(5)).
PROCESS_STATUS, PEAK_FIELD = Path("/proc/self/status"), "VmHWM:"
PROCESS_PEAK, RESET_PEAK = Path("/proc/self/clear_refs"), "5"


class Stopwatch(BaseStreamer):
    """Notes when each new token arrives; what arrives first is the prompt."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, and then each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to hand out."""


def measure(side: Side, waveform, new_tokens: int) -> dict[str, Any]:
    """Asks once; seconds of the processor and to the first token, tokens per second after it, and what was heard."""
    stopwatch = Stopwatch()
    start = time.perf_counter()
    inputs = side.prepare(waveform)
    prepared = time.perf_counter()
    with torch.inference_mode():
        output = side.model.generate(  # type: ignore[operator]  # typed as a module's attribute
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, streamer=stopwatch
        )
    first, last = stopwatch.times[1], stopwatch.times[-1]
    prompt_tokens = inputs["input_ids"].shape[1]
    if output.shape[1] != prompt_tokens + new_tokens:
        raise RuntimeError(f"There are {output.shape[1] - prompt_tokens} new tokens; expected {new_tokens}.")
    return {
        "processor_s": prepared - start,
        "first_token_s": first - start,
        "tokens_per_s": (new_tokens - 1) / (last - first),
        "prompt_tokens": prompt_tokens,
        "heard_s": side.heard_s(waveform, inputs),
        "encoded_s": side.encoded_s(inputs),
        "peak_memory_mib": peak_memory_mib(),
    }


def peak_memory_mib() -> float:
    """Of this process, since [`forget_peak_memory`] where that is possible, else since its start."""
    try:
        status = PROCESS_STATUS.read_text()
    except OSError:
        unit = BYTES_PER_MIB if sys.platform == "darwin" else KIB_PER_MIB  # Linux reports KiB, macOS bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return int(status.split(PEAK_FIELD)[1].split()[0]) / KIB_PER_MIB


def forget_peak_memory() -> bool:
    """Makes what is in memory now the peak (Linux only): what loading took is not what answering takes."""
    gc.collect()
    try:
        PROCESS_PEAK.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def serve(name: str, precision: str, checkpoint: str | None) -> None:
    """A side's process: loads it, warms it up, and answers each line `[seconds, new tokens]` with a measurement."""
    logging.disable_progress_bar()
    decoder = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
    side = {**OURS, **PEERS}[name](checkpoint, precision)
    loading = {"peak_memory_of_loading_mib": peak_memory_mib(), "peak_memory_is_without_loading": forget_peak_memory()}
    warm_up = measure(side, joined_speech(WARM_UP_S, decoder), 2)
    print(json.dumps({**loading, "warm_up_first_token_s": warm_up["first_token_s"]}), flush=True)
    for line in sys.stdin:
        seconds, new_tokens = json.loads(line)
        print(json.dumps(measure(side, joined_speech(seconds, decoder), new_tokens)), flush=True)


class SideProcess:
    """A side in a process of its own; see [`serve`]."""

    def __init__(self, name: str, precision: str, checkpoint: str | None):
        self.name = name
        command = [sys.executable, __file__, "--worker", name, precision]
        self._process = subprocess.Popen(
            command + (["--model", checkpoint] if checkpoint else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start = self._reply()

    def ask(self, seconds: float, new_tokens: int) -> dict[str, Any]:
        """One measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([seconds, new_tokens]) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}; what it said stands above.")
        return json.loads(line)


@contextmanager
def side_process(name: str, precision: str, checkpoint: str | None) -> Iterator[SideProcess]:
    """A side's process, which ends with the block."""
    process = SideProcess(name, precision, checkpoint)
    try:
        yield process
    finally:
        process.close()


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements, in the order they were made: recordings from short to long, so that peaks are their own."""
    runs = []
    for precision in options.precisions:
        with ExitStack() as stack:
            sides = [
                stack.enter_context(side_process(name, precision, options.model))
                for name in [*options.ours, *options.peers]
            ]
            for seconds in sorted(options.lengths):
                rounds = options.rounds if seconds < LONG_S else options.long_rounds
                for number in range(rounds):
                    for side in sides if number % 2 == 0 else reversed(sides):
                        seen = side.ask(seconds, options.new_tokens)
                        key = {"recording_s": seconds, "precision": precision, "side": side.name, "round": number}
                        runs.append({**key, **side.start, **seen})
                        print(
                            f"{precision:9} {seconds:5g} s, round {number}, {side.name:17} first token after "
                            f"{seen['first_token_s']:7.3f} s, {seen['tokens_per_s']:5.1f} tokens/s",
                            flush=True,
                        )
    return runs


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of each side, length and precision; and ratios to the peers that heard as much."""
    table: list[dict[str, Any]] = []
    for key in dict.fromkeys((run["precision"], run["recording_s"], run["side"]) for run in runs):
        chosen = [run for run in runs if (run["precision"], run["recording_s"], run["side"]) == key]
        row: dict[str, Any] = dict(zip(("precision", "recording_s", "side"), key))
        row["rounds"] = len(chosen)
        for name in ("first_token_s", "processor_s", "tokens_per_s"):
            row[name] = statistics.median(run[name] for run in chosen)
        row["peak_memory_mib"] = max(run["peak_memory_mib"] for run in chosen)
        row |= {name: chosen[0][name] for name in ("prompt_tokens", "heard_s", "encoded_s")}
        row["hears_all"] = row["heard_s"] >= row["recording_s"] - HEARD_TOLERANCE_S
        table.append(row)
    for row in table:
        for peer in table:
            like = all(row[name] == peer[name] for name in ("precision", "recording_s"))
            if row["side"] in OURS and peer["side"] in PEERS and like and peer["hears_all"]:
                ratio = peer["first_token_s"] / row["first_token_s"]
                row[f"first_token_times_faster_than_{peer['side']}"] = ratio
                row[f"decode_times_faster_than_{peer['side']}"] = row["tokens_per_s"] / peer["tokens_per_s"]
                row[f"memory_share_of_{peer['side']}"] = row["peak_memory_mib"] / peer["peak_memory_mib"]
    return table


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="AudioLLM checkpoint of the embedded pair; that of make demo when not given")
    parser.add_argument("--lengths", nargs="+", type=float, default=list(LENGTHS_S), help="recordings, in seconds")
    parser.add_argument("--ours", nargs="+", default=list(OURS), choices=OURS, help="forms of AudioLLM")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="classes to compare with")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=7, help="questions to each side; default: %(default)s")
    parser.add_argument(
        "--long_rounds", type=int, default=1, help=f"of recordings from {LONG_S:g} s on; default: %(default)s"
    )
    parser.add_argument("--new_tokens", type=int, default=32, help="length of each answer; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name, least in (("rounds", 1), ("long_rounds", 1), ("new_tokens", 2)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}; expected at least {least}.")
    if min(options.lengths) <= 0:
        parser.error(f"--lengths has {min(options.lengths):g}; expected seconds above 0.")
    return options


def main() -> None:
    """Asks all sides in turn and writes what was seen."""
    options = read_options()
    if options.worker:
        side, precision = options.worker
        serve(side, precision, options.model)
        return
    runs = run(options)
    table = summarize(runs)
    results = {
        "what": "seconds to the first token, processor included, and tokens per second after it; medians over rounds",
        "bases": [AUDIO_BASE, TEXT_BASE],
        "question": QUESTION,
        "new_tokens": options.new_tokens,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load_at_end": os.getloadavg(),
        },
        "torch": torch.__version__,
        "summary": table,
        "runs": runs,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
