"""
`audiollm train`: projector and LoRA on your own (prompt, audio, response) examples.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.corpora.examples import ExamplesError, read_examples
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, fetch
from audiollm.processing.audio_io import AudioError
from audiollm.processing.conversations import ConversationError
from transformers import TrainerCallback, set_seed

from .arguments import (
    CACHE_OFF,
    LORA_DROPOUT,
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    base_dtype,
    check_arguments,
    parse_arguments,
)
from .augment import FeatureAugmentation
from .dataset import AudioLlmCollator, BatchAugmentation, build_dataset
from .feature_cache import FeatureCache
from .trainer import AudioLlmTrainer, last_complete_checkpoint


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
