"""
Time to the first token of an answer, and tokens per second after it: AudioLLM beside transformers' own Voxtral and
Qwen2-Audio classes, from the same bases, about recordings of 4 s, 30 s and 10 minutes.

    python benchmarks/first_token.py    # writes benchmarks/results/first_token.json

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
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from audiollm.publishing.record import peak_memory_mib as peak_since_start_mib
from common import joined_speech, own_process, parser_of, write_result
from inference_peers import OURS, PEERS, Side
from training_peers import AUDIO_BASE, QUESTION, TEXT_BASE, audiollm_processor
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

PRECISIONS = ("float32", "bfloat16")
LENGTHS_S = (4.0, 30.0, 600.0)
#: From here on a round takes a minute per side, and varies little; it has rounds of its own number.
LONG_S = 120.0
WARM_UP_S = 4.0
#: A recording's last frame may be cut.
HEARD_TOLERANCE_S = 0.1
KIB_PER_MIB = 1 << 10
#: Linux: a process' peak of resident memory, and what makes it begin anew (proc(5)).
PROCESS_STATUS, PEAK_FIELD = Path("/proc/self/status"), "VmHWM:"
PROCESS_PEAK, RESET_PEAK = Path("/proc/self/clear_refs"), "5"


class Stopwatch(BaseStreamer):
    """Notes when each new token arrives; what arrives first is the prompt."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to hand out."""


class Asked:
    """The one side of a process: loaded, warmed up, and measured by [`measure`]."""

    side: Side
    loading: dict[str, Any]


def load(name: str, precision: str) -> None:
    """Load a side in its process."""
    logging.disable_progress_bar()
    Asked.side = {**OURS, **PEERS}[name](precision)
    loading = {"peak_memory_of_loading_mib": peak_memory_mib(), "peak_memory_is_without_loading": forget_peak_memory()}
    Asked.loading = {**loading, "warm_up_first_token_s": measure(WARM_UP_S, 2)["first_token_s"]}


def measure(seconds: float, new_tokens: int) -> dict[str, Any]:
    """Ask once; return seconds of the processor and to the first token, tokens per second after it, and what was heard."""
    side, waveform, stopwatch = Asked.side, joined_speech(seconds, audiollm_processor()), Stopwatch()
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
        **getattr(Asked, "loading", {}),
        "processor_s": prepared - start,
        "first_token_s": first - start,
        "tokens_per_s": (new_tokens - 1) / (last - first),
        "prompt_tokens": prompt_tokens,
        "heard_s": side.heard_s(waveform, inputs),
        "encoded_s": side.encoded_s(inputs),
        "peak_memory_mib": peak_memory_mib(),
    }


def peak_memory_mib() -> float:
    """Return the peak of this process since [`forget_peak_memory`] where that is possible, else since its start."""
    try:
        status = PROCESS_STATUS.read_text()
    except OSError:
        return peak_since_start_mib()
    return int(status.split(PEAK_FIELD)[1].split()[0]) / KIB_PER_MIB


def forget_peak_memory() -> bool:
    """Make what is in memory now the peak (Linux only): what loading took is not what answering takes."""
    gc.collect()
    try:
        PROCESS_PEAK.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all measurements, in the order they were made: recordings from short to long, so that peaks are their own."""
    runs = []
    for precision in options.precisions:
        with ExitStack() as stack:
            sides = [
                (name, stack.enter_context(own_process(load, name, precision)))
                for name in [*options.ours, *options.peers]
            ]
            for seconds in sorted(options.lengths):
                for number in range(options.rounds if seconds < LONG_S else options.long_rounds):
                    for name, process in sides if number % 2 == 0 else reversed(sides):
                        seen = process.submit(measure, seconds, options.new_tokens).result()
                        runs.append(
                            {"recording_s": seconds, "precision": precision, "side": name, "round": number, **seen}
                        )
                        print(
                            f"{precision:9} {seconds:5g} s, round {number}, {name:17} first token after "
                            f"{seen['first_token_s']:7.3f} s, {seen['tokens_per_s']:5.1f} tokens/s",
                            flush=True,
                        )
    return runs


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians of each side, length and precision; and ratios to the peers that heard as much."""
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


def main() -> None:
    """Ask all sides in turn and write what was seen."""
    parser = parser_of("first_token", __doc__, model=False)
    parser.add_argument("--lengths", nargs="+", type=float, default=list(LENGTHS_S), help="recordings, in seconds")
    parser.add_argument("--ours", nargs="+", default=list(OURS), choices=OURS, help="forms of AudioLLM")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="classes to compare with")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=7, help="questions to each side; default: %(default)s")
    parser.add_argument("--long_rounds", type=int, default=1, help=f"of recordings from {LONG_S:g} s on")
    parser.add_argument("--new_tokens", type=int, default=32, help="length of each answer; default: %(default)s")
    options = parser.parse_args()
    runs = run(options)
    result = {
        "what": "seconds to the first token, processor included, and tokens per second after it; medians over rounds",
        "bases": [AUDIO_BASE, TEXT_BASE],
        "question": QUESTION,
        "new_tokens": options.new_tokens,
        "summary": summarize(runs),
        "runs": runs,
    }
    write_result(options.output, result)


if __name__ == "__main__":
    main()
