"""
`audiollm train`: projector and LoRA on your own (prompt, audio, response) examples.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.corpora.examples import ExamplesError, read_examples
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, fetch
from audiollm.processing.audio_io import AudioError
from audiollm.processing.conversations import ConversationError
from transformers import HfArgumentParser, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from .augment import FeatureAugmentation
from .dataset import AudioLlmCollator, BatchAugmentation, build_dataset
from .feature_cache import FeatureCache
from .trainer import AudioLlmTrainer, AudioLlmTrainingArguments, last_complete_checkpoint

CACHE_OFF = "off"
#: Where the command differs from the configuration's own defaults: minutes of speech are soon known by heart.
LORA_DROPOUT = 0.05
#: Options that shape a new model; a checkpoint has its own.
CONFIG_FIELDS = (
    "stack_factor",
    "projector_type",
    "projector_hidden_size",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
)
BASE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ModelArguments:
    """Which models to join, and what to put between them."""

    llama_path: str | None = field(
        default=None,
        metadata={
            "help": "Language model: a Hub id, a folder, or one of the embedded bases; "
            f"{DEFAULT_TEXT_BASE} when not given. With --model_path: where the checkpoint's own lies now."
        },
    )
    whisper_path: str | None = field(
        default=None,
        metadata={
            "help": "Whisper checkpoint: a Hub id, a folder, or one of the embedded bases; "
            f"{DEFAULT_AUDIO_BASE} when not given. With --model_path: where the checkpoint's own lies now."
        },
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
    stack_factor: int | None = field(
        default=None, metadata={"help": "20 ms frames per audio token: 2 is 40 ms; 4 (80 ms) when not given."}
    )
    projector_type: str | None = field(
        default=None, metadata={"help": "swiglu, mlp or linear; swiglu when not given."}
    )
    projector_hidden_size: int | None = field(
        default=None, metadata={"help": "Width inside the projector; four times the language model's when not given."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Rank of LoRA; 0 trains the projector alone; 16 when not given."}
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Scale of LoRA: its update counts alpha / rank; 32 when not given."}
    )
    lora_dropout: float | None = field(
        default=None, metadata={"help": f"Dropout on LoRA's input; {LORA_DROPOUT} when not given."}
    )

    def config_fields(self) -> dict[str, Any]:
        """What was given of the new model's configuration."""
        given = {name: getattr(self, name) for name in CONFIG_FIELDS}
        return {name: value for name, value in given.items() if value is not None}


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
    augment: bool = field(
        default=False, metadata={"help": "Vary the cached features anew in every batch: masks and tempo."}
    )


def parse_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, AudioLlmTrainingArguments]:
    """
    Reads the command line; unknown options are refused.

    Raises:
        ValueError: options contradict each other, or one has an impossible value.
    """
    parser = HfArgumentParser(
        # transformers types dataclasses as a NewType of its own, which none is.
        [ModelArguments, DataArguments, AudioLlmTrainingArguments],  # type: ignore[list-item]
        prog="audiollm train",
        description="Train projector and LoRA so that a language model listens.",
        allow_abbrev=False,
    )
    model_arguments, data_arguments, training_arguments, unknown = parser.parse_args_into_dataclasses(
        list(sys.argv[1:] if arguments is None else arguments), return_remaining_strings=True
    )
    if unknown:
        raise ValueError(f"there is no option {' '.join(unknown)}; --help lists them all.")
    return model_arguments, data_arguments, training_arguments


def base_dtype(arguments: ModelArguments, training: AudioLlmTrainingArguments) -> torch.dtype:
    """
    Precision of the frozen bases.

    Raises:
        ValueError: it is none of the three.
    """
    if arguments.base_dtype is None:
        return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    if arguments.base_dtype not in BASE_DTYPES:
        raise ValueError(f"--base_dtype is {arguments.base_dtype!r}; expected one of {sorted(BASE_DTYPES)}.")
    return BASE_DTYPES[arguments.base_dtype]


def check_arguments(model: ModelArguments, data: DataArguments, training: AudioLlmTrainingArguments) -> None:
    """
    Refuses, before anything is read or loaded, what could only fail later or would silently do nothing.

    Raises:
        ValueError: options contradict each other, or this machine cannot do what one asks for.
        OSError: the output folder cannot be made or written.
    """
    base_dtype(model, training)
    if model.model_path is not None and model.config_fields():
        given = ", ".join(f"--{name}" for name in model.config_fields())
        raise ValueError(
            f"{given} shape a new model, but --model_path goes on from one that has its own; leave them out."
        )
    if training.fp16 and training.device.type == "cpu":
        raise ValueError("--fp16 needs a GPU: its loss scaling does not run on a CPU. Use --bf16 here, or neither.")
    has_held_out, evaluates = data.eval_data_path is not None, training.eval_strategy != IntervalStrategy.NO
    if has_held_out != evaluates:
        raise ValueError(
            "--eval_data_path and --eval_strategy (epoch or steps) need each other; give both or neither."
        )
    if data.augment and data.feature_cache == CACHE_OFF:
        raise ValueError("--augment varies cached features; it contradicts --feature_cache off.")
    output_dir = Path(training.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"--output_dir {output_dir} cannot be made: {error}") from error
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise PermissionError(f"--output_dir {output_dir} cannot be written to.")


def load_model(
    arguments: ModelArguments, dtype: torch.dtype
) -> tuple[AudioLlmForConditionalGeneration, AudioLlmProcessor]:
    """The model and processor to train: composed of two bases, or an earlier checkpoint."""
    common: dict[str, Any] = {"dtype": dtype, "attn_implementation": arguments.attn_implementation}
    if arguments.model_path is not None:
        model = AudioLlmForConditionalGeneration.from_pretrained(
            arguments.model_path,
            audio_model_id=arguments.whisper_path,
            text_model_id=arguments.llama_path,
            **common,
        )
        return model, AudioLlmProcessor.from_pretrained(arguments.model_path)
    audio_base = arguments.whisper_path or DEFAULT_AUDIO_BASE
    text_base = arguments.llama_path or DEFAULT_TEXT_BASE
    for base in (audio_base, text_base):
        if base.startswith(EMBEDDED_PREFIX):
            fetch(base)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        audio_base, text_base, **{"lora_dropout": LORA_DROPOUT, **arguments.config_fields()}, **common
    )
    processor = AudioLlmProcessor.from_audio_text_pretrained(
        audio_base, text_base, stack_factor=model.config.stack_factor
    )
    return model, processor


def batch_augmentation(processor: AudioLlmProcessor) -> BatchAugmentation:
    """The default variation of training batches."""
    return BatchAugmentation(
        FeatureAugmentation(), processor.audio_token_id, processor.stack_factor, processor.tokenizer.pad_token_id
    )


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> AudioLlmTrainer:
    """
    Trains, resuming where an earlier run into the same folder was cut off, and saves the adapter.

    Returns:
        The trainer, with the trained model in `trainer.model`.

    Raises:
        ValueError: options contradict each other.
        ExamplesError: examples are malformed; all are listed, before anything is loaded.
        FileNotFoundError: a file or folder is not there.
        AudioError: a recording cannot be used.
    """
    check_arguments(model_arguments, data_arguments, training_arguments)
    examples = read_examples(data_arguments.data_path, data_arguments.audio_dir)
    held_out = None
    if data_arguments.eval_data_path is not None:
        held_out = read_examples(data_arguments.eval_data_path, data_arguments.audio_dir)

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
        callbacks=list(callbacks),
        augmentation=batch_augmentation(processor) if data_arguments.augment else None,
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
    try:
        parsed = parse_arguments(arguments)
        check_arguments(*parsed)
    except (ValueError, OSError) as error:
        sys.exit(f"audiollm train: {error}")
    try:
        train(*parsed)
    except (ExamplesError, ConversationError, AudioError, FileNotFoundError) as error:
        sys.exit(f"audiollm train: {error}")


if __name__ == "__main__":
    main()
