"""
How close AudioLLM comes to what this machine can multiply: training steps, encoding and prefill against its matrix rate.

    python benchmarks/limit.py     # writes benchmarks/results/limit.json and prints a table

For each case: floating-point operations that the mathematics needs (counted by `limit_counting.py`; padding and what is
computed twice are left out), divided by the seconds taken and by the rate of large square products, which is measured right
before and right after each round, by the faster of torch's two libraries for them; a round is half a second of repeats, as
those of the rate are. Batches are those of `training_step.py`, with cached features; encoding goes clip by clip, as the
feature cache's; a prefill is one question about one recording. The JSON also holds what each case spends its time on,
operation by operation, the bytes that its operations read and write, log-mel extraction beside the encoder, and the rate at
the shapes that occur.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.cpu_speed import fast_product, is_worth_sharing, use_cpu_speed
from limit_counting import count, encoder_flops, language_model_flops, positions_of, shared_text
from torch import nn
from training_peers import AUDIO_BASE, SHAPES, TEXT_BASE, audiollm_side, make_clips, training_batch

RESULTS = Path(__file__).parent / "results" / "limit.json"
PRECISIONS = ("float32", "bfloat16")
TARGET_FRACTION = 0.5
LEARNING_RATE = 1e-4
#: Square products tried for the matrix rate; the fastest is the yardstick.
SQUARES = (768, 1024, 1536, 2048)
LIBRARIES = ("torch's choice", "oneDNN")
RATE_SECONDS, CHOICE_SECONDS, SHAPE_SECONDS = 0.12, 0.25, 0.02
#: What is short is repeated for so long in each round, as it is in use: thousands of clips are encoded one after the other.
ROUND_SECONDS = 0.5
COPIED_BYTES = 1 << 28
OPERATIONS_LISTED = 15
#: Counted and formula may differ by the keys that padded queries look at.
COUNT_TOLERANCE = 0.03
#: Rows of the products that occur: of a clip's frames, of a short and of a long batch.
ROWS_THAT_OCCUR = (70, 256, 1024)
MICROSECONDS_PER_SECOND = 1e6


@dataclass(frozen=True)
class Case:
    """
    Something to time.

    Attributes:
        run: does it once.
        flops: that the mathematics needs.
        counted_flops: that were counted while it ran.
        bytes: that its operations read and write.
        beside: further seconds, to report beside it, by name.
    """

    name: str
    run: Callable[[], Any]
    flops: int
    counted_flops: int
    bytes: int
    beside: dict[str, float]


def square_product(size: int, dtype: torch.dtype, library: str) -> Callable[[], Any]:
    """A product of two square matrices by one of the two libraries."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    if library == LIBRARIES[1]:
        left, right = left.to_mkldnn(), right.to_mkldnn()
    return lambda: nn.functional.linear(left, right)


def seconds_of(run: Callable[[], Any], at_least: float) -> float:
    """Median seconds of `run`, repeated for `at_least` seconds."""
    taken: list[float] = []
    while sum(taken) < at_least:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


class MatrixRate:
    """The machine's matrix rate at one precision, in FLOP/s; of all libraries and sizes, the fastest found at first."""

    @torch.inference_mode()
    def __init__(self, dtype: torch.dtype):
        self.tried: list[dict[str, Any]] = []
        self.best, self.flops, fastest = square_product(SQUARES[0], dtype, LIBRARIES[0]), 0, 0.0
        for library in LIBRARIES:
            for size in SQUARES:
                product, flops = square_product(size, dtype, library), 2 * size**3
                product()
                rate = flops / seconds_of(product, CHOICE_SECONDS)
                self.tried.append({"library": library, "size": size, "flops_per_s": rate})
                if rate > fastest:
                    self.best, self.flops, fastest = product, flops, rate

    @torch.inference_mode()
    def measure(self) -> float:
        """The rate now."""
        return self.flops / seconds_of(self.best, RATE_SECONDS)


@torch.inference_mode()
def copy_rate() -> float:
    """Bytes per second that are read and written by a copy too large for the caches."""
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * COPIED_BYTES / seconds_of(lambda: target.copy_(source), RATE_SECONDS)


def training_case(model, processor, shape: str) -> Case:
    """A step of `training_step.py`: forward, backward, AdamW."""
    use_cpu_speed(model)
    batch = training_batch(model.train(), SHAPES[shape])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    shared = shared_text(model, batch)
    rows, positions = batch["input_ids"].shape
    shared = shared if is_worth_sharing(rows, positions, shared) else 0
    executed = language_model_flops(model, positions_of(model, batch, shared, padded=True), trains=True)
    flops = language_model_flops(model, positions_of(model, batch, shared, padded=False), trains=True)
    return checked(f"training step {shape}", step, flops, executed)


def encoding_case(model, processor, shape: str) -> Case:
    """The encoder over a batch's clips, one by one as the feature cache runs it."""
    waveforms = [clip.waveform for clip in make_clips(SHAPES[shape])]
    windows = [processor.batch_features([waveform])["input_features"] for waveform in waveforms]
    model.eval()

    @torch.no_grad()
    def encode() -> None:
        for window in windows:
            model.model.encode_audio(window)

    flops = encoder_flops(model.config.audio_config, [window.shape[2] for window in windows])
    log_mel = seconds_of(lambda: [processor.batch_features([waveform]) for waveform in waveforms], RATE_SECONDS)
    return checked(f"encoding {shape}", encode, flops, flops, {"log_mel_seconds": log_mel})


def prefill_case(model, processor, shape: str) -> Case:
    """A question about one recording up to the first token's scores, adapter awake, the recording encoded before."""
    batch = training_batch(model, SHAPES[shape])
    labels = batch.pop("labels")
    # The answer is not part of the question.
    length = int((labels[0] >= 0).nonzero()[0])
    windows = len(batch["encoded_audio"]) // len(labels)
    one = {
        name: value[:windows] if name.startswith("encoded") else value[:1, :length] for name, value in batch.items()
    }
    model.eval()

    @torch.no_grad()
    def prefill() -> None:
        model(**one, logits_to_keep=1, use_cache=True)

    flops = language_model_flops(model, positions_of(model, one, 0, padded=False, supervised=1), trains=False)
    return checked(f"prefill {shape}", prefill, flops, flops)


CASES = {"encoding": encoding_case, "prefill": prefill_case, "training step": training_case}


def checked(name: str, run: Callable[[], Any], flops: int, executed: int, beside: dict | None = None) -> Case:
    """
    A case whose formula agrees with what is counted.

    Raises:
        AssertionError: it does not.
    """
    counted, traffic = count(run)
    if abs(counted - executed) > COUNT_TOLERANCE * executed:
        raise AssertionError(f"{name}: {counted} floating-point operations were counted; the formula says {executed}.")
    return Case(name, run, flops, counted, traffic, beside or {})


def operations(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """What `run` spends its time on: operations by their own seconds, most first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "operation": event.key,
            "calls": event.count,
            "seconds": event.self_cpu_time_total / MICROSECONDS_PER_SECOND,
            "share": event.self_cpu_time_total / total,
        }
        for event in events[:OPERATIONS_LISTED]
    ]


def measure(case: Case, rate: MatrixRate, rounds: int) -> dict[str, Any]:
    """Fraction of the matrix rate in each round, the rate being that before and after it; median and range."""
    fractions, seconds, rates = [], [], []
    before = rate.measure()
    for _ in range(rounds):
        start, runs = time.perf_counter(), 0
        while not runs or time.perf_counter() - start < ROUND_SECONDS:
            case.run()
            runs += 1
        seconds.append((time.perf_counter() - start) / runs)
        after = rate.measure()
        rates.append((before + after) / 2)
        fractions.append(case.flops / seconds[-1] / rates[-1])
        before = after
    return {
        "fraction": statistics.median(fractions),
        "range": [min(fractions), max(fractions)],
        "flops": case.flops,
        "counted_flops": case.counted_flops,
        "bytes": case.bytes,
        "flops_per_byte": case.flops / case.bytes,
        "seconds": statistics.median(seconds),
        "matrix_rate_flops_per_s": statistics.median(rates),
        "matrix_rate_range": [min(rates), max(rates)],
        **case.beside,
        "operations": operations(case.run),
    }


@torch.inference_mode()
def rates_of_shapes(model, dtype: torch.dtype) -> list[dict[str, Any]]:
    """FLOP/s of the products that occur: the language model's and the encoder's layers, forward and backward."""
    text, audio = model.config.text_config, model.config.audio_config
    layers = {
        (text.hidden_size, text.intermediate_size),
        (text.intermediate_size, text.hidden_size),
        (text.hidden_size, text.hidden_size),
        (audio.d_model, audio.d_model),
        (audio.d_model, audio.encoder_ffn_dim),
    }
    table = []
    for rows in ROWS_THAT_OCCUR:
        for inputs, outputs in sorted(layers):
            x, grad = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
            weight = torch.randn(outputs, inputs).to(dtype)
            ways = {
                "forward_flops_per_s": partial(fast_product, x, weight),
                "backward_flops_per_s": partial(fast_product, grad, weight.T),
                "torchs_choice_flops_per_s": partial(nn.functional.linear, x, weight),
            }
            flops = 2 * rows * inputs * outputs
            rates = {name: flops / seconds_of(way, SHAPE_SECONDS) for name, way in ways.items()}
            table.append({"rows": rows, "in": inputs, "out": outputs, **rates})
    return table


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, each written to the output as soon as it is there."""
    results: dict[str, Any] = {
        "what": "floating-point operations needed / seconds / matrix rate measured before and after each run",
        "target_fraction": TARGET_FRACTION,
        "fractions": {},
        "matrix_rates": {},
        "rates_of_shapes": {},
        "rounds": options.rounds,
        "torch": torch.__version__,
    }
    processor = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE)
    for precision in options.precisions:
        dtype = getattr(torch, precision)
        torch.manual_seed(0)
        model, _ = audiollm_side(dtype, SHAPES["short"])
        assert isinstance(model, AudioLlmForConditionalGeneration)
        rate = MatrixRate(dtype)
        for kind in options.cases:
            for shape in options.shapes:
                case = CASES[kind](model, processor, shape)
                rounds = options.rounds * (1 if kind == "training step" else options.repeats)
                found = measure(case, rate, rounds)
                results["fractions"].setdefault(case.name, {})[precision] = found
                write(results, options.output)
                print(f"{case.name:22}{precision:10}{found['fraction']:6.2f}", flush=True)
        results["matrix_rates"][precision] = rate.tried
        results["rates_of_shapes"][precision] = rates_of_shapes(model, dtype)
    results["copy_bytes_per_s"] = copy_rate()
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_at_end": os.getloadavg(),
    }
    write(results, options.output)
    return results


def write(results: dict[str, Any], path: Path) -> None:
    """What has been measured so far, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def print_table(fractions: dict[str, dict[str, Any]]) -> None:
    """One line per case and precision."""
    print(
        f"\n{'case':22}{'precision':10}{'GFLOP':>8}{'FLOP/B':>8}{'s':>9}{'GFLOP/s':>9}{'rate':>7}{'fraction':>10}  range"
    )
    for name, by_precision in fractions.items():
        for precision, found in by_precision.items():
            low, high = found["range"]
            line = f"{name:22}{precision:10}{found['flops'] / 1e9:8.1f}{found['flops_per_byte']:8.1f}"
            line += f"{found['seconds']:9.3f}{found['flops'] / found['seconds'] / 1e9:9.0f}"
            line += f"{found['matrix_rate_flops_per_s'] / 1e9:7.0f}{found['fraction']:10.2f}  {low:.2f} to {high:.2f}"
            print(line)


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="what to measure")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="batches to measure on")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=3, help="timed training steps of each; default: %(default)s")
    parser.add_argument(
        "--repeats", type=int, default=5, help="times as many rounds of what is shorter; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args(argv)
    for name in ("rounds", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; expected at least 1.")
    return options


def main() -> None:
    """Measures, writes and prints."""
    options = read_options()
    results = run(options)
    print_table(results["fractions"])


if __name__ == "__main__":
    main()
