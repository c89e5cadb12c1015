"""
`audiollm train`: projector and LoRA on your own (prompt, audio, response) examples.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, set_seed

from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.checkpoints import EMBEDDED_PREFIX, resolve_base
from audiollm.corpora.examples import read_examples
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, fetch

from .dataset import AudioLlmCollator, build_dataset
from .feature_cache import FeatureCache
from .trainer import AudioLlmTrainer, AudioLlmTrainingArguments, last_complete_checkpoint

CACHE_OFF = "off"


@dataclass
class ModelArguments:
    """Which models to join, and what to put between them."""

    llama_path: str = field(
        default=DEFAULT_TEXT_BASE,
        metadata={"help": "Language model: a Hub id, a folder, or one of the embedded bases."},
    )
    whisper_path: str = field(
        default=DEFAULT_AUDIO_BASE,
        metadata={"help": "Whisper checkpoint: a Hub id, a folder, or one of the embedded bases."},
    )
    model_path: str | None = field(
        default=None, metadata={"help": "AudioLLM checkpoint to go on from, instead of starting from two bases."}
    )
    base_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the frozen bases: float32, bfloat16 or float16. By default that of --bf16 or --fp16, "
            "else float32. What trains is always float32."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernels: sdpa, eager or flash_attention_2."}
    )
    stack_factor: int = field(default=4, metadata={"help": "20 ms frames per audio token: 2 is 40 ms, 4 is 80 ms."})
    projector_type: str = field(default="swiglu", metadata={"help": "swiglu, mlp or linear."})
    projector_hidden_size: int | None = field(default=None, metadata={"help": "Width inside the projector."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of LoRA; 0 trains the projector alone."})
    lora_alpha: float = field(default=32, metadata={"help": "Scale of LoRA: its update counts alpha / rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on LoRA's input."})


@dataclass
class DataArguments:
    """What to train on."""

    data_path: str = field(
        metadata={"help": "JSON list (or JSON lines) of {text with <audio>, audio_paths, response}."}
    )
    audio_dir: str | None = field(
        default=None, metadata={"help": "Folder that audio_paths are relative to; that of the JSON by default."}
    )
    eval_data_path: str | None = field(
        default=None, metadata={"help": "Held-out examples in the same format, for --eval_strategy."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder for encoder output, shared by runs; 'off' encodes every batch anew."},
    )


def parse_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, AudioLlmTrainingArguments]:
    """Reads the command line; unknown options are refused."""
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, AudioLlmTrainingArguments],
        prog="audiollm train",
        description="Train projector and LoRA so that a language model listens.",
        allow_abbrev=False,
    )
    model_arguments, data_arguments, training_arguments = parser.parse_args_into_dataclasses(
        list(sys.argv[1:] if arguments is None else arguments)
    )
    return model_arguments, data_arguments, training_arguments


def base_dtype(arguments: ModelArguments, training: AudioLlmTrainingArguments) -> torch.dtype:
    """
    Precision of the frozen bases.

    Raises:
        ValueError: it is none of the three.
    """
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if arguments.base_dtype is None:
        return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    if arguments.base_dtype not in allowed:
        raise ValueError(f"--base_dtype is {arguments.base_dtype!r}; expected one of {sorted(allowed)}.")
    return allowed[arguments.base_dtype]


def load_model(
    arguments: ModelArguments, dtype: torch.dtype
) -> tuple[AudioLlmForConditionalGeneration, AudioLlmProcessor]:
    """The model and processor to train: composed of two bases, or an earlier checkpoint."""
    common: dict[str, Any] = {"dtype": dtype, "attn_implementation": arguments.attn_implementation}
    if arguments.model_path is not None:
        model = AudioLlmForConditionalGeneration.from_pretrained(arguments.model_path, **common)
        return model, AudioLlmProcessor.from_pretrained(arguments.model_path)
    for base in (arguments.whisper_path, arguments.llama_path):
        if base.startswith(EMBEDDED_PREFIX):
            fetch(base)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        arguments.whisper_path,
        arguments.llama_path,
        stack_factor=arguments.stack_factor,
        projector_type=arguments.projector_type,
        projector_hidden_size=arguments.projector_hidden_size,
        lora_rank=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        **common,
    )
    processor = AudioLlmProcessor.from_audio_text_pretrained(
        resolve_base(arguments.whisper_path, "audio"),
        resolve_base(arguments.llama_path, "text"),
        stack_factor=arguments.stack_factor,
    )
    return model, processor


def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: AudioLlmTrainingArguments
) -> AudioLlmTrainer:
    """
    Trains, resuming where an earlier run into the same folder was cut off, and saves the adapter.

    Returns:
        The trainer, with the trained model in `trainer.model`.

    Raises:
        ExamplesError: examples are malformed; all are listed, before anything is loaded.
    """
    examples = read_examples(data_arguments.data_path, data_arguments.audio_dir)
    held_out = None
    if data_arguments.eval_data_path is not None:
        held_out = read_examples(data_arguments.eval_data_path, data_arguments.audio_dir)
    Path(training_arguments.output_dir).mkdir(parents=True, exist_ok=True)

    set_seed(training_arguments.seed)
    model, processor = load_model(model_arguments, base_dtype(model_arguments, training_arguments))
    model.print_trainable_parameters()
    cache = None
    if data_arguments.feature_cache != CACHE_OFF:
        cache = FeatureCache(model, processor, data_arguments.feature_cache)
    trainer = AudioLlmTrainer(
        model=model,
        args=training_arguments,
        train_dataset=build_dataset(examples, processor, cache),
        eval_dataset=None if held_out is None else build_dataset(held_out, processor, cache),
        data_collator=AudioLlmCollator(processor, cache),
        processing_class=processor,
    )
    resume = training_arguments.resume_from_checkpoint or last_complete_checkpoint(training_arguments.output_dir)
    if resume:
        print(f"Resuming from {resume}.")
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    print(f"Saved to {training_arguments.output_dir}.")
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm train` and `python -m audiollm.training.train`."""
    train(*parse_arguments(arguments))


if __name__ == "__main__":
    main()
