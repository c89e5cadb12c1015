"""
Preferences on the real pair: a handful of studio prompts, the right transcript chosen and another clip's rejected.

Starts from what `make demo` leaves, trains a few dozen steps, and reports how far chosen answers moved ahead of rejected
ones, on the pairs trained on and on held-out ones, with the word error before and after, and whether the reference,
the answers to text and the saved adapter are what they should be.

    python benchmarks/preference.py --model runs/demo/adapter
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation.listening import TRANSCRIBE_PROMPT, transcribe
from audiollm.evaluation.word_error import score_word_error
from audiollm.training.answer_arguments import PreferArguments
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.prefer import (
    PreferenceExample,
    build_trainer,
    read_preference_examples,
    reference_hash,
    reference_weights,
)
from transformers import set_seed

RESULTS = Path(__file__).parent / "results" / "preference.json"
DEFAULT_MODEL = Path("runs/demo/adapter")
TEXT_PROBE = "The capital of France is"
SEED = 0
#: Pairs to train on and to hold out: clips as short as these keep a step to seconds on one core.
NUM_PAIRS, NUM_HELD_OUT = 24, 12
SHORTEST_S = 1.0
BATCH_PAIRS = 2
LEARNING_RATE = 1e-4
BETA = 0.1


def short_clips(split: str, count: int) -> list[dict[str, Any]]:
    """The shortest clips of a split in which something is said, by length and name."""
    rows = [row for row in load_studio_prompts(split) if row["duration_s"] >= SHORTEST_S]
    return sorted(rows, key=lambda row: (row["duration_s"], row["id"]))[:count]


def pairs(clips: list[dict[str, Any]], folder: Path) -> list[PreferenceExample]:
    """One pair per clip: its own transcript, and that of the clip half the list away."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, clip in enumerate(clips):
        path = folder / f"{index}.ogg"
        path.write_bytes(clip["audio"]["bytes"])
        other = clips[(index + len(clips) // 2) % len(clips)]
        rows.append(
            {"text": TRANSCRIBE_PROMPT, "audio_paths": path.name, "chosen": clip["text"], "rejected": other["text"]}
        )
    return read_preference_examples(rows, folder)


def word_error(model, processor, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Word error of greedy transcripts, and its counts."""
    heard = transcribe(model, processor, [clip["audio"] for clip in clips], progress=False)
    score = score_word_error([clip["text"] for clip in clips], heard)
    return score.to_dict()


def rewards(figures: dict[str, float], prefix: str) -> dict[str, float]:
    """The figures of preference among what the Trainer logs, without their prefix."""
    return {
        name.removeprefix(prefix): round(value, 4)
        for name, value in figures.items()
        if name.startswith((f"{prefix}rewards/", f"{prefix}logps/")) or name == f"{prefix}loss"
    }


def run(model_path: Path, steps: int, folder: Path) -> dict[str, Any]:
    """Trains and measures; returns what the report says."""
    set_seed(SEED)
    model = AudioLlmForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32)
    processor = AudioLlmProcessor.from_pretrained(model_path)
    held_out_clips = short_clips("test", NUM_HELD_OUT)
    training = pairs(short_clips("train", NUM_PAIRS), folder / "train")
    held_out = pairs(held_out_clips, folder / "test")
    arguments = AudioLlmTrainingArguments(
        output_dir=str(folder / "run"),
        batch_size=BATCH_PAIRS,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=SEED,
    )
    text = processor(text=TEXT_PROBE)
    with torch.no_grad():
        text_before = model.eval()(**text).logits
    error_before = word_error(model, processor, held_out_clips)
    trainer = build_trainer(
        model,
        processor,
        training,
        FeatureCache(model, processor, folder / "features"),
        arguments,
        PreferArguments(beta=BETA),
        eval_examples=held_out,
    )
    reference, digest = (
        {name: value.clone() for name, value in reference_weights(model).items()},
        reference_hash(model),
    )
    before = trainer.evaluate()
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    after = trainer.evaluate()
    unchanged = all(torch.equal(value, reference[name]) for name, value in reference_weights(model).items())
    with torch.no_grad():
        text_after = model.eval()(**text).logits
    trainer.save_model()
    loaded = AudioLlmForConditionalGeneration.from_pretrained(arguments.output_dir, dtype=torch.float32)
    return {
        "pairs": {"train": len(training), "held_out": len(held_out)},
        "steps": steps,
        "batch_pairs": BATCH_PAIRS,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "cpu_seconds_per_step": round(seconds / steps, 2),
        "held_out_before": rewards(before, "eval_"),
        "held_out_after": rewards(after, "eval_"),
        "course": [
            {"step": entry["step"], **rewards(entry, "")} for entry in trainer.state.log_history if "loss" in entry
        ],
        "held_out_word_error": {
            "before": error_before,
            "after": word_error(loaded, processor, held_out_clips),
        },
        "reference_unchanged_bit_for_bit": unchanged and reference_hash(model) == digest,
        "text_logits_unchanged_bit_for_bit": torch.equal(text_before, text_after),
        "adapters_in_the_saved_checkpoint": list(loaded.config.lora_adapters),
    }


def main() -> None:
    """Runs it once and writes what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="adapter to start from; the demo's")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(options.model, options.steps, Path(folder))
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine, "torch": torch.__version__, **report}, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "course"}, indent=1))


if __name__ == "__main__":
    main()
