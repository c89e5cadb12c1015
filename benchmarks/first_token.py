"""
Time to the first token of an answer, and tokens per second after it: AudioLLM beside transformers' own Voxtral and
Qwen2-Audio classes, from the same bases, about recordings of 4 s, 30 s and 10 minutes.

    python benchmarks/first_token.py    # writes benchmarks/results/first_token.json

The clock starts with a waveform at 16 kHz in memory and a question: features, chat template and tokenizer count, with
each side's own processor. It stops where `generate`, with a streamer, hands out the first token. All sides answer
greedily and with equally many tokens, the end of the answer being forbidden.

Each side lives in a process of its own, so that its peak memory is its own; they are asked in turn, question by
question, so that a machine that slows down slows all. The peers have no LoRA, as after merging one, and all have a random
projector: their words mean nothing, their cost does. Voxtral's class pads recordings to whole windows of 30 s, all of which
become tokens; Qwen2-Audio's drops what comes after 30 s.
"""

import argparse
import gc
import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.inference.answering import ask
from audiollm.publishing.record import peak_memory_mib as peak_since_start_mib
from common import grouped, joined_speech, own_process, parser_of, write_result
from training_peers import (
    AUDIO_BASE,
    PEER_SLOT,
    QUESTION,
    SAMPLE_RATE_HZ,
    TEXT_BASE,
    VOXTRAL_STACK,
    audiollm_model,
    audiollm_processor,
    base_tokenizer,
    feature_extractor,
    peer_model,
)
from transformers import (
    PreTrainedModel,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

PRECISIONS = ("float32", "bfloat16")
LENGTHS_S = (4.0, 30.0, 600.0)
#: From here on a round takes a minute per side, and varies little; it has rounds of its own number.
LONG_S = 120.0
WARM_UP_S = 4.0
#: A recording's last frame may be cut.
HEARD_TOLERANCE_S = 0.1
MEL_FRAMES_PER_S = 100
KIB_PER_MIB = 1 << 10
#: Linux: the file with a process' peak of resident memory, and the one that resets it (proc(5)).
PROCESS_STATUS, PROCESS_PEAK, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs"), "5"
#: ChatML, which the text base speaks, for contents of typed parts; Qwen2-Audio's processor has no template for others.
TYPED_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}" + PEER_SLOT + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Inputs = dict[str, torch.Tensor]
#: A model, and the function that turns a float32 waveform `(samples,)` at 16 kHz into the inputs of its `generate`.
Side = tuple[PreTrainedModel, Callable[[np.ndarray], Inputs]]


def audiollm(dtype: torch.dtype) -> Side:
    """Return our model, as the commands load it."""
    processor = audiollm_processor()

    def prepare(waveform: np.ndarray) -> Inputs:
        conversation = ask(QUESTION, waveform)
        return dict(processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True))

    return audiollm_model(dtype), prepare


def audiollm_merged(dtype: torch.dtype) -> Side:
    """Return our model with LoRA merged, as for a deployment without routing, and as the peers'."""
    model, prepare = audiollm(dtype)
    return model.merge_adapters(), prepare  # type: ignore[operator]  # typed as a module's attribute


def voxtral(dtype: torch.dtype) -> Side:
    """
    Return transformers' Voxtral class, with its processor's steps, since that needs Mistral's own tokenizers: features of
    windows that are padded to 30 s, and a slot for every 80 ms of those, padding included.
    """
    tokenizer, extractor = base_tokenizer(), feature_extractor()
    audio_kwargs: dict[str, Any] = dict(VoxtralProcessor.audio_kwargs)
    window_frames = audio_kwargs.pop("max_source_positions")
    slots_per_window = extractor.nb_max_frames // 2 // VOXTRAL_STACK

    def prepare(waveform: np.ndarray) -> Inputs:
        features = extractor(waveform, **audio_kwargs)["input_features"]
        windows = features.reshape(extractor.feature_size, -1, window_frames).transpose(0, 1)
        content = PEER_SLOT * slots_per_window * len(windows) + QUESTION
        turn = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return {**ids, "input_features": windows.to(dtype)}

    return peer_model(VoxtralForConditionalGeneration, dtype), prepare


def qwen2_audio(dtype: torch.dtype) -> Side:
    """Return transformers' Qwen2-Audio class, with its processor, which pads to 30 s and drops what comes after them."""
    processor = Qwen2AudioProcessor(
        feature_extractor(), base_tokenizer(), chat_template=TYPED_CHATML, audio_token=PEER_SLOT
    )

    def prepare(waveform: np.ndarray) -> Inputs:
        text = processor.apply_chat_template(ask(QUESTION, waveform), add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, audio=[waveform], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return {**inputs, "input_features": inputs["input_features"].to(dtype)}

    return peer_model(Qwen2AudioForConditionalGeneration, dtype), prepare


SIDES = {"audiollm": audiollm, "audiollm, merged": audiollm_merged, "voxtral": voxtral, "qwen2_audio": qwen2_audio}


class Stopwatch(BaseStreamer):
    """Notes when each new token arrives; what arrives first is the prompt."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: there is no text that waits."""


@cache
def loaded(name: str, precision: str) -> Side:
    """Load the one side of this process."""
    logging.disable_progress_bar()
    model, prepare = SIDES[name](getattr(torch, precision))
    forget_peak_memory()
    return model.eval(), prepare


def measure(name: str, precision: str, seconds: float, new_tokens: int) -> dict[str, Any]:
    """Ask once; return seconds of the processor and to the first token, tokens per second after it, and what was heard."""
    model, prepare = loaded(name, precision)
    waveform, stopwatch = joined_speech(seconds, audiollm_processor()), Stopwatch()
    start = time.perf_counter()
    inputs = prepare(waveform)
    prepared = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]  # typed as a module's attribute
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, streamer=stopwatch
        )
    first, last = stopwatch.times[1], stopwatch.times[-1]
    prompt_tokens = inputs["input_ids"].shape[1]
    if output.shape[1] != prompt_tokens + new_tokens:
        raise RuntimeError(f"There are {output.shape[1] - prompt_tokens} new tokens; expected {new_tokens}.")
    windows, _, frames = inputs["input_features"].shape
    return {
        "processor_s": prepared - start,
        "first_token_s": first - start,
        "tokens_per_s": (new_tokens - 1) / (last - first),
        "prompt_tokens": prompt_tokens,
        "encoded_s": windows * frames / MEL_FRAMES_PER_S,
        "heard_s": min(seconds, windows * frames / MEL_FRAMES_PER_S),
        "peak_memory_mib": peak_memory_mib(),
    }


def peak_memory_mib() -> float:
    """Return the peak of this process since [`forget_peak_memory`] on Linux, elsewhere since its start."""
    if not PROCESS_STATUS.exists():
        return peak_since_start_mib()
    return int(re.findall(r"VmHWM:\s*(\d+)", PROCESS_STATUS.read_text())[0]) / KIB_PER_MIB


def forget_peak_memory() -> None:
    """Reset the peak to the memory in use (Linux only), so that loading does not count as answering."""
    gc.collect()
    if PROCESS_PEAK.exists():
        PROCESS_PEAK.write_text(RESET_PEAK)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all measurements, in the order they were made: recordings from short to long, so that peaks are their own."""
    runs = []
    for precision in options.precisions:
        with ExitStack() as stack:
            sides = {name: stack.enter_context(own_process()) for name in options.sides}
            for name, process in sides.items():
                process.submit(measure, name, precision, WARM_UP_S, 2).result()
            for seconds in sorted(options.lengths):
                for number in range(options.rounds if seconds < LONG_S else options.long_rounds):
                    for name in sides if number % 2 == 0 else reversed(sides):
                        seen = sides[name].submit(measure, name, precision, seconds, options.new_tokens).result()
                        runs.append({"recording_s": seconds, "precision": precision, "side": name, **seen})
                        told = f"first token after {seen['first_token_s']:.3f} s, {seen['tokens_per_s']:.1f} tokens/s"
                        print(f"{precision:9} {seconds:5g} s, round {number}, {name:17} {told}", flush=True)
    return runs


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians of each side, length and precision."""
    table = []
    for row, chosen in grouped(runs, "precision", "recording_s", "side"):
        row["rounds"] = len(chosen)
        for name in ("first_token_s", "processor_s", "tokens_per_s"):
            row[name] = statistics.median(run[name] for run in chosen)
        row["peak_memory_mib"] = max(run["peak_memory_mib"] for run in chosen)
        row |= {name: chosen[0][name] for name in ("prompt_tokens", "heard_s", "encoded_s")}
        row["hears_all"] = row["heard_s"] >= row["recording_s"] - HEARD_TOLERANCE_S
        table.append(row)
    return table


def main() -> None:
    """Ask all sides in turn and write the measurements."""
    parser = parser_of("first_token", __doc__, model=False)
    parser.add_argument("--lengths", nargs="+", type=float, default=list(LENGTHS_S), help="recordings, in seconds")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="to compare")
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
