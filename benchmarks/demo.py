"""
The whole story on a laptop: `make demo`.

Fetches the two small real bases, encodes 24 minutes of real speech once, teaches the projector by CTC, trains projector
and LoRA with the Trainer, scores held-out clips beside the wrong-audio control and Whisper's own decoder, answers a
question about a recording, and writes `runs/demo/report.json` and `runs/demo/report.png`.

Run again, it reuses what is done and goes on where it was cut off; `--output_dir` starts another run.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import torch
from transformers import Trainer, TrainingArguments, set_seed

from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.answering import answer, ask
from audiollm.corpora.prompts import load_studio_prompts, write_prompt_examples
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, fetch
from audiollm.evaluation.listening import evaluate_listening
from audiollm.evaluation.word_error import normalize_english, score_word_error
from audiollm.training.align import (
    align,
    greedy_transcripts,
)
from audiollm.training.augment import FeatureAugmentation
from audiollm.training.dataset import load_encoded_audio
from audiollm.training.feature_cache import FeatureCache
from audiollm.training.train import DataArguments, ModelArguments, train
from audiollm.training.trainer import AudioLlmTrainingArguments, last_complete_checkpoint

matplotlib.use("Agg")

SEED = 0
ALIGN_EPOCHS = 12
ALIGN_RATE = 2e-3
INSTRUCT_EPOCHS = 6
LORA_RANK = 16
LORA_RATE = 2e-4
PROJECTOR_RATE = 2e-4
QUESTION_CLIP = "vm-goodbye"
TRANSCRIBE_TASKS = ("transcribe",)


class Stages:
    """Minutes that each stage took, kept on disk so that a second run can tell what the first one spent."""

    def __init__(self, file: Path):
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def done(self, name: str) -> bool:
        """Whether a stage ended in this or an earlier run."""
        return name in self.seconds

    def record(self, name: str, seconds: float) -> None:
        """Notes a finished stage."""
        self.seconds[name] = seconds
        self.file.write_text(json.dumps(self.seconds, indent=1))


def faster_precision() -> torch.dtype:
    """bfloat16 where this machine multiplies matrices faster in it, else float32; measured, in a moment."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(512, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)
        a @ b
        start = time.perf_counter()
        for _ in range(20):
            a @ b
        times[dtype] = time.perf_counter() - start
    return min(times, key=lambda dtype: times[dtype])


def instruction_data(folder: Path) -> Path:
    """The training split in the instruction format: every clip transcribed, and the other tasks over them."""
    return write_prompt_examples(folder, "train")


def run(output_dir: Path, instruct_epochs: float) -> dict[str, Any]:
    """All stages; what is done already is reused."""
    output_dir.mkdir(parents=True, exist_ok=True)
    stages = Stages(output_dir / "stages.json")
    started = time.perf_counter()

    def finish(name: str) -> None:
        nonlocal started
        if not stages.done(name):
            stages.record(name, time.perf_counter() - started)
        print(f"-- {name}: {stages.seconds[name]:.0f} s\n")
        started = time.perf_counter()

    for base in (DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE):
        fetch(base)
    finish("bases")

    dtype = faster_precision()
    splits = {split: load_studio_prompts(split) for split in ("train", "validation", "test")}
    references = splits["test"]["text"]
    recordings = {split: list(rows["audio"]) for split, rows in splits.items()}
    processor = AudioLlmProcessor.from_audio_text_pretrained(DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE)
    aligned = output_dir / "aligned"
    set_seed(SEED)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, lora_rank=LORA_RANK, dtype=dtype
    )
    model.print_trainable_parameters()
    cache = FeatureCache(model, processor)
    keys = {split: cache.add(rows) for split, rows in recordings.items()}
    print(f"Feature cache: {cache.size_bytes() / 2**20:.0f} MiB in {cache.folder}")
    finish("features")

    if not stages.done("align"):
        arguments = TrainingArguments(
            output_dir=str(output_dir / "align"),
            num_train_epochs=ALIGN_EPOCHS,
            learning_rate=ALIGN_RATE,
            per_device_train_batch_size=16,
            weight_decay=0.05,
            warmup_steps=0.05,
            lr_scheduler_type="cosine",
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_steps=10,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            bf16=dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            seed=SEED,
        )
        transcripts = [normalize_english(text) for text in splits["train"]["text"]]
        aligner, vocabulary = align(model, cache, keys["train"], transcripts, arguments, FeatureAugmentation())
        projector_error = score_word_error(references, greedy_transcripts(aligner, vocabulary, cache, keys["test"]))
        print(f"Held-out word error of the projector alone: {projector_error.word_error:.3f}")
        model.save_pretrained(aligned)
        processor.save_pretrained(aligned)
    finish("align")

    adapter = output_dir / "adapter"
    if not stages.done("instruct"):
        data_path = instruction_data(output_dir / "data")
        trainer = train(
            ModelArguments(model_path=str(aligned), base_dtype=str(dtype).removeprefix("torch.")),
            DataArguments(data_path=str(data_path), augment=True),
            AudioLlmTrainingArguments(
                output_dir=str(adapter),
                batch_size=8,
                num_epochs=instruct_epochs,
                learning_rate=LORA_RATE,
                projector_learning_rate=PROJECTOR_RATE,
                weight_decay=0.01,
                save_steps=100,
                bf16=dtype == torch.bfloat16,
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
                seed=SEED,
            ),
        )
        model = trainer.model
    else:
        model = AudioLlmForConditionalGeneration.from_pretrained(adapter, dtype=dtype)
    finish("instruct")

    def from_cache(clips: list[Any]) -> dict[str, torch.Tensor]:
        return load_encoded_audio(cache, cache.add(clips, progress=False))

    scores = evaluate_listening(
        model, processor, references, recordings["test"], encoded_audio=from_cache, with_decoder=not stages.done("x")
    )
    finish("evaluate")
    print(scores.to_dict())
    for r, h in list(zip(references, scores.hypotheses))[:40]:
        print(f"{r} | {h}")
    return {}
