"""
How cost grows: with the length of a recording, the batch, the corpus, the language model and the rank of LoRA.

    python benchmarks/growth.py     # writes benchmarks/results/growth.json and prints slopes

Each sweep measures several sizes and reports the slope of each cost in log-log, over all sizes and over the upper half: 1 is
in proportion, 0 not at all, 2 with the square. Real bases and real speech, except that language models of other sizes are
random: what they say means nothing, what they cost does. A training step is that of `training_step.py` on short clips,
encoder output computed before; memory is what a step or a prefill takes above what was there before it. All in float32.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.answering import ask
from audiollm.corpora.examples import read_examples
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.training.dataset import load_encoded_audio
from audiollm.training.feature_cache import FeatureCache
from first_token import forget_peak_memory, peak_memory_mib
from joined_speech import joined_speech
from tqdm.auto import tqdm
from training_peers import (
    AUDIO_BASE,
    LORA_ALPHA,
    LORA_RANK,
    QUESTION,
    TARGETS,
    TEXT_BASE,
    Shape,
    base_configs,
    training_batch,
)

RESULTS = Path(__file__).parent / "results" / "growth.json"
LEARNING_RATE = 1e-4
BYTES_PER_MB = 1_000_000
LENGTHS_S = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 600.0)
#: From here on a recording is measured once, without warming up.
LONG_S = 60.0
BATCHES = (1, 2, 4, 8, 16)
CORPUS_CLIPS = (16, 64, 256)
#: Clips of a batch that is read from the cache.
READ_CLIPS = 16
JSON_ROWS = (1_000, 10_000, 50_000)
RANKS = (4, 8, 16, 32, 64)
CLIPS = 8
#: Fields of Llama-shaped language models beside the embedded one's: half its width, itself, and that of SmolLM2-360M.
LLAMA_SHAPES: tuple[dict[str, int], ...] = (
    {"hidden_size": 320, "intermediate_size": 864, "num_attention_heads": 5, "num_key_value_heads": 5},
    {},
    {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
)


class Sweep:
    """
    Costs of one thing at several sizes.

    Args:
        title: what grows.
        unit: of the sizes.
    """

    def __init__(self, title: str, unit: str):
        self.title, self.unit = title, unit
        self.sizes: list[float] = []
        self.costs: dict[str, tuple[str, list[float]]] = {}

    def add(self, size: float, **costs: tuple[float | None, str]) -> None:
        """Costs at a size, as (value, unit) by name; None for what cannot be measured here."""
        self.sizes.append(size)
        for name, (value, unit) in costs.items():
            if value is not None:
                self.costs.setdefault(name.replace("_", " "), (unit, []))[1].append(value)

    def report(self) -> dict[str, Any]:
        """Sizes, and every cost with its slopes."""
        half = len(self.sizes) // 2
        curves = {
            name: {
                "unit": unit,
                "values": values,
                "slope": slope(self.sizes, values),
                "slope_of_upper_half": slope(self.sizes[half - 1 :], values[half - 1 :]),
            }
            for name, (unit, values) in self.costs.items()
        }
        return {"title": self.title, "unit": self.unit, "values": self.sizes, "curves": curves}


def slope(sizes: Iterable[float], values: Iterable[float]) -> float:
    """Least squares in log-log."""
    size_logs, value_logs = (np.log(np.asarray(list(each), dtype=float)) for each in (sizes, values))
    return float(np.polyfit(size_logs, value_logs, 1)[0])


def timed(action: Callable[[], Any], repeats: int, warm_up: bool = True) -> tuple[float, float | None]:
    """Median seconds of an action, and MiB that its first run took above what was there; None where unknown."""
    give_back_memory()
    can_tell = forget_peak_memory()
    before = peak_memory_mib()
    seconds = []
    memory = None
    for number in range(repeats + warm_up):
        start = time.perf_counter()
        action()
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
        if number == 0 and can_tell:
            memory = max(peak_memory_mib() - before, 1.0)
    return statistics.median(seconds), memory


def give_back_memory() -> None:
    """What was freed goes back to the system, so that it does not hide what is taken next (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def compose(**fields: Any) -> AudioLlmForConditionalGeneration:
    """The embedded pair with an untrained adapter."""
    settings = {"lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA, "lora_target_modules": TARGETS, **fields}
    return AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        AUDIO_BASE, TEXT_BASE, dtype=torch.float32, **settings
    )


def random_pair(shape: dict[str, int]) -> AudioLlmForConditionalGeneration:
    """The embedded encoder's shape and a Llama of another, both random; what is frozen in the real pair is frozen."""
    whisper, llama = base_configs()
    text = {**llama.to_dict(), **shape}
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    config = AudioLlmConfig(
        audio_config=whisper.to_dict(),
        text_config=text,
        lora_rank=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_target_modules=TARGETS,
    )
    model = AudioLlmForConditionalGeneration(config)
    trainable = set(model.trainable_names())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model


def step_of(model: AudioLlmForConditionalGeneration, batch: dict[str, Any]) -> Callable[[], None]:
    """A training step, to be timed."""
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def with_audio_length(model, processor, lengths: Iterable[float], repeats: int) -> Sweep:
    """Encoding and prefill of one recording."""
    sweep = Sweep("length of the recording", "s")
    for seconds in tqdm(lengths, desc="audio length"):
        question = ask(QUESTION, joined_speech(seconds, processor))
        inputs = dict(processor.apply_chat_template(question, tokenize=True, add_generation_prompt=True))
        features, mask = inputs.pop("input_features"), inputs.pop("input_features_mask")
        is_long = seconds >= LONG_S
        times: dict[str, Any] = {"repeats": 1 if is_long else repeats, "warm_up": not is_long}
        encode, _ = timed(partial(model.model.encode_audio, features, mask), **times)
        frames, counts = model.model.encode_audio(features, mask)
        encoded = {"encoded_audio": frames, "encoded_audio_lengths": counts}
        prefill, memory = timed(partial(model, **inputs, **encoded, use_cache=True, logits_to_keep=1), **times)
        sweep.add(
            seconds,
            encoding=(encode, "s"),
            prefill=(prefill, "s"),
            memory_of_prefill=(memory, "MiB"),
            prompt_tokens=(inputs["input_ids"].shape[1], "tokens"),
        )
    return sweep


def with_batch(model, batches: Iterable[int], repeats: int) -> Sweep:
    """A training step on so many short clips."""
    sweep = Sweep("clips of a batch", "clips")
    for clips in tqdm(batches, desc="batch"):
        seconds, memory = timed(step_of(model, training_batch(model, Shape(clips, None))), repeats)
        sweep.add(clips, training_step=(seconds, "s"), memory_of_a_step=(memory, "MiB"))
    return sweep


def with_corpus(model, processor, sizes: Iterable[int], repeats: int) -> Sweep:
    """Filling the feature cache with so many clips, its bytes, and reading a batch out of it."""
    sweep = Sweep("clips of a corpus", "clips")
    prompts = load_studio_prompts("train")["audio"]
    model.eval()
    for clips in tqdm(sizes, desc="corpus"):
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(model, processor, folder)
            start = time.perf_counter()
            keys = cache.add(prompts[:clips], progress=False)
            filling = time.perf_counter() - start
            reading, _ = timed(partial(load_encoded_audio, cache, keys[:READ_CLIPS]), repeats)
            sweep.add(
                clips,
                filling_the_cache=(filling, "s"),
                bytes_of_the_cache=(cache.size_bytes(keys) / BYTES_PER_MB, "MB"),
                reading_a_batch=(reading, "s"),
            )
    return sweep


def with_rows(sizes: Iterable[int], repeats: int) -> Sweep:
    """Reading and checking a JSON file of so many examples."""
    sweep = Sweep("rows of a JSON file", "rows")
    audio = load_studio_prompts("train")[0]["audio"]["bytes"]
    for count in tqdm(sizes, desc="rows"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "clip.ogg").write_bytes(audio)
            rows = [
                {"text": f"Describe clip {index}: <audio>", "audio_paths": "clip.ogg", "response": f"Clip {index}."}
                for index in range(count)
            ]
            path = Path(folder) / "rows.json"
            path.write_text(json.dumps(rows))
            seconds, _ = timed(partial(read_examples, path), repeats)
            sweep.add(count, reading_and_checking=(seconds, "s"))
    return sweep


def with_language_model(shapes: Iterable[dict[str, int]], repeats: int) -> Sweep:
    """A training step with random language models of several sizes."""
    sweep = Sweep("parameters of the language model", "parameters")
    for shape in tqdm(shapes, desc="language model"):
        model = random_pair(shape)
        parameters = sum(each.numel() for each in model.model.language_model.parameters() if not each.requires_grad)
        seconds, memory = timed(step_of(model, training_batch(model, Shape(CLIPS, None))), repeats)
        trainable = sum(each.numel() for each in model.parameters() if each.requires_grad)
        sweep.add(
            parameters,
            training_step=(seconds, "s"),
            memory_of_a_step=(memory, "MiB"),
            trainable_parameters=(trainable, "parameters"),
        )
    return sweep


def with_rank(ranks: Iterable[int], repeats: int) -> Sweep:
    """A training step, and the adapter's bytes, with LoRA of several ranks."""
    sweep = Sweep("rank of LoRA", "")
    for rank in tqdm(ranks, desc="rank"):
        model = compose(lora_rank=rank)
        seconds, memory = timed(step_of(model, training_batch(model, Shape(CLIPS, None))), repeats)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            size = (Path(folder) / "model.safetensors").stat().st_size
        sweep.add(
            rank,
            training_step=(seconds, "s"),
            memory_of_a_step=(memory, "MiB"),
            bytes_of_the_adapter=(size / BYTES_PER_MB, "MB"),
        )
    return sweep


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All sweeps asked for."""
    torch.manual_seed(0)
    processor, model = AudioLlmProcessor.from_audio_text_pretrained(AUDIO_BASE, TEXT_BASE), compose()
    repeats = options.repeats
    lengths = [seconds for seconds in LENGTHS_S if seconds <= options.longest]
    sweeps: dict[str, Callable[[], Sweep]] = {
        "audio": lambda: with_audio_length(model.eval(), processor, lengths, repeats),
        "batch": lambda: with_batch(model, BATCHES, repeats),
        "corpus": lambda: with_corpus(model, processor, CORPUS_CLIPS, repeats),
        "rows": lambda: with_rows(JSON_ROWS, repeats),
        "language_model": lambda: with_language_model(LLAMA_SHAPES, repeats),
        "rank": lambda: with_rank(RANKS, repeats),
    }
    return {
        "what": "costs at several sizes, and the slope of each in log-log; medians",
        "bases": [AUDIO_BASE, TEXT_BASE],
        "repeats": repeats,
        "sweeps": [{"name": name, **sweeps[name]().report()} for name in options.sweeps],
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "load_at_end": os.getloadavg(),
        },
        "torch": torch.__version__,
    }


def print_table(sweeps: Iterable[dict[str, Any]]) -> None:
    """One line per cost."""
    print(f"\n{'grows with':34}{'cost':24}{'smallest':>12}{'largest':>12}{'unit':>12}{'slope':>8}{'upper':>8}")
    for sweep in sweeps:
        for name, curve in sweep["curves"].items():
            first, last = curve["values"][0], curve["values"][-1]
            line = f"{sweep['title']:34}{name:24}{first:12.4g}{last:12.4g}{curve['unit']:>12}"
            print(f"{line}{curve['slope']:8.2f}{curve['slope_of_upper_half']:8.2f}")


SWEEPS = ("audio", "batch", "corpus", "rows", "language_model", "rank")


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=SWEEPS, help="which; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median; default: %(default)s")
    parser.add_argument(
        "--longest", type=float, default=LENGTHS_S[-1], help="recordings up to here, in seconds; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON to write; default: %(default)s")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; expected at least 1.")
    if options.longest < LENGTHS_S[1]:
        parser.error(f"--longest is {options.longest}; expected at least {LENGTHS_S[1]:g}: a slope needs two lengths.")
    return options


def main() -> None:
    """Measures, writes and prints."""
    options = read_options()
    results = run(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results["sweeps"])


if __name__ == "__main__":
    main()
