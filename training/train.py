"""
`audiollm train`: gives a language model ears, in stages that go on from each other's checkpoints.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.corpora.examples import ExamplesError, read_examples
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, fetch
from audiollm.processing.audio_io import AudioError
from audiollm.processing.conversations import ConversationError
from transformers import TrainerCallback, set_seed

from . import distill, prefer
from .align import Alignment, align
from .align_stage import AlignArguments, transcribed_clips
from .answer_arguments import DistillArguments, PreferArguments
from .arguments import (
    CACHE_OFF,
    LORA_DROPOUT,
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
    base_dtype,
    check_arguments,
)
from .augment import FeatureAugmentation
from .checkpointing import StoppedBySignalError, check_disk_space, claim_folder, last_complete_checkpoint
from .command_line import parse_arguments
from .dataset import AudioLlmCollator, BatchAugmentation
from .encoding import ExampleEncoder
from .errors import TrainingError
from .evaluating import EvaluationError, early_stopping, listening_evaluation
from .feature_cache import FeatureCache
from .instruct_data import InstructData, open_held_out_data, open_training_data
from .packing import BatchPacking, check_packing, uses_flash
from .quantised import quantisation
from .sharding import asks_for_fsdp
from .text_drift import describe_drift, drift, text_logits
from .trainable import set_trainable, trains
from .trainer import AudioLlmTrainer
from .variants import WaveformVariants
from .waveform_arguments import DEFAULT_VARIANTS

#: What a shell reports of a program that SIGTERM ended.
EXIT_CODE_OF_SIGTERM = 128 + signal.SIGTERM


@dataclass
class Prepared:
    """
    What every stage begins with.

    Attributes:
        model, processor: the pair to train, on its device, frozen but for what trains.
        cache: of the encoder's output; None where every batch is encoded anew.
    """

    model: AudioLlmForConditionalGeneration
    processor: AudioLlmProcessor
    cache: FeatureCache | None


def load_model(
    arguments: ModelArguments, dtype: torch.dtype
) -> tuple[AudioLlmForConditionalGeneration, AudioLlmProcessor]:
    """
    The model and processor to train: composed of two bases, or an earlier checkpoint.

    Raises:
        TrainingError: bases are named for a checkpoint that holds its own.
    """
    common: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": arguments.attn_implementation,
        "quantization_config": quantisation(arguments.load_in_8bit, arguments.load_in_4bit, dtype),
    }
    if arguments.model_path is not None:
        holds = AudioLlmConfig.from_pretrained(arguments.model_path).weight_format
        given = [f"--{name}" for name in ("llama_path", "whisper_path") if getattr(arguments, name) is not None]
        if holds != "adapter" and given:
            raise TrainingError(
                f"{' and '.join(given)} cannot go with --model_path {arguments.model_path}: its checkpoint is "
                f"{holds!r}, with its bases in it."
            )
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
    shape = {"lora_dropout": LORA_DROPOUT, **arguments.config_fields()}
    if trains(arguments.trainable, "llm"):
        shape.setdefault("lora_rank", 0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(audio_base, text_base, **shape, **common)
    processor = AudioLlmProcessor.from_audio_text_pretrained(
        audio_base, text_base, stack_factor=model.config.stack_factor
    )
    return model, processor


def prepare(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    stage: str,
    num_examples: int | None,
) -> Prepared:
    """
    Loads what a stage trains, and makes sure of the output folder before anything is computed.

    Args:
        model_arguments, data_arguments, training_arguments: the command's.
        stage: its name.
        num_examples: rows to train on; None when they cannot be counted.

    Raises:
        OSError: the checkpoints do not fit on the disk.
        TrainingError: the folder holds checkpoints of another stage.
    """
    set_seed(training_arguments.seed)
    model, processor = load_model(model_arguments, base_dtype(model_arguments, training_arguments))
    if getattr(model, "hf_device_map", None) is None and not asks_for_fsdp(training_arguments):
        model.to(training_arguments.device)  # where it also encodes what the cache lacks
    trainable = "projector" if stage == "align" else model_arguments.trainable
    set_trainable(model, trainable)
    if training_arguments.should_save:
        model.print_trainable_parameters()
        check_disk_space(model, training_arguments, num_examples)
        claim_folder(training_arguments.output_dir, {"stage": stage, "trainable": trainable})
    cache = None
    if trains(trainable, "audio"):
        print("The audio encoder trains: there is no feature cache, and every batch is encoded anew.")
    elif data_arguments.feature_cache != CACHE_OFF:
        cache = FeatureCache(model, processor, data_arguments.feature_cache)
    return Prepared(model, processor, cache)


def batch_augmentation(processor: AudioLlmProcessor) -> BatchAugmentation:
    """The default variation of training batches."""
    return BatchAugmentation(
        FeatureAugmentation(), processor.audio_token_id, processor.stack_factor, processor.tokenizer.pad_token_id
    )


def waveform_variants(
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    prepared: Prepared,
    examples: Sequence[Any] | InstructData,
) -> WaveformVariants | None:
    """The variants that --speed, --noise_snr_db and --gain_db ask for, in the cache, if they do."""
    augmentation = data_arguments.waveform_augmentation()
    if augmentation is None or prepared.cache is None:
        return None
    variants = WaveformVariants(prepared.cache, augmentation, data_arguments.waveform_variants or DEFAULT_VARIANTS)
    sources = examples.sources if isinstance(examples, InstructData) else [examples]
    variants.add(sources, progress=not training_arguments.disable_tqdm, announce=training_arguments.should_save)
    return variants


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    stage_arguments: StageArguments | None = None,
    own_arguments: Any = None,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> AudioLlmTrainer:
    """
    Trains, resuming where an earlier run into the same folder was cut off, and saves what was trained.

    Args:
        model_arguments, data_arguments, training_arguments: what the command line says, or its defaults.
        stage_arguments: instruct when not given, or another of the stages that run the language model.
        own_arguments: the stage's own options, such as `DistillArguments`; their defaults when not given.
        callbacks: the Trainer's.

    Returns:
        The trainer, with the trained model in `trainer.model`.

    Raises:
        ValueError: options contradict each other.
        ExamplesError: examples are malformed; all are listed, before anything is loaded.
        FileNotFoundError: a file or folder is not there.
        AudioError: a recording cannot be used.
        StoppedBySignalError: SIGTERM came; a checkpoint was written.
    """
    stage = (stage_arguments or StageArguments()).stage
    check_arguments(model_arguments, data_arguments, training_arguments, stage)
    read, build = LANGUAGE_MODEL_STAGES[stage]
    examples, held_out = read(data_arguments, own_arguments)

    prepared = prepare(
        model_arguments,
        data_arguments,
        training_arguments,
        stage,
        None if data_arguments.streaming else len(examples),
    )
    augmentation = batch_augmentation(prepared.processor) if data_arguments.augment else None
    trainer = build(
        prepared,
        examples,
        held_out,
        training_arguments,
        own_arguments,
        callbacks=[*callbacks, *early_stopping(training_arguments)],
    )
    trainer.augmentation = augmentation
    if training_arguments.packing:
        check_packing(trainer.model)
        trainer.augmentation = BatchPacking(augmentation, uses_flash(trainer.model))
    variants = waveform_variants(data_arguments, training_arguments, prepared, examples)
    if variants is not None:
        trainer.train_dataset, choice = variants.dataset(trainer.train_dataset, training_arguments.seed)
        trainer.add_callback(choice)
    if prepared.cache is not None and training_arguments.should_save:
        print(prepared.cache.describe())
    if stage != "prefer":  # whose rows have no one answer to score
        trainer.more_metrics = listening_evaluation(
            training_arguments, trainer.eval_dataset, prepared.processor, prepared.cache
        )
    # Under FSDP the model is in pieces afterwards.
    before = None if trainer.is_fsdp_enabled else text_logits(prepared.model, prepared.processor.tokenizer)
    resume = training_arguments.resume_from_checkpoint or last_complete_checkpoint(training_arguments.output_dir)
    if resume:
        print(f"Resuming from {resume}.")
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    finish(prepared, training_arguments, before)
    return trainer


def run_align(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    stage_arguments: StageArguments | None = None,
    own_arguments: AlignArguments | None = None,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> Alignment:
    """
    Trains the projector alone, by CTC on rows of one recording whose response is what is said in it.

    Saves a checkpoint that every other stage can go on from, LoRA untrained.

    Args, Raises: as of `train`.

    Returns:
        What was learned, and the course of the loss.
    """
    own_arguments = own_arguments or AlignArguments()
    check_arguments(model_arguments, data_arguments, training_arguments, "align")
    examples = read_examples(data_arguments.data_path[0], data_arguments.audio_dir)
    paths, transcripts = transcribed_clips(examples, own_arguments.transcript_normaliser)
    prepared = prepare(model_arguments, data_arguments, training_arguments, "align", len(paths))
    assert prepared.cache is not None  # check_arguments has seen to it
    before = text_logits(prepared.model, prepared.processor.tokenizer)
    keys = prepared.cache.add(paths, progress=not training_arguments.disable_tqdm)
    clips = [example for example in examples if set(example.audio_paths) <= set(paths)]
    variants = waveform_variants(data_arguments, training_arguments, prepared, clips)
    if training_arguments.should_save:
        print(prepared.cache.describe())
    alignment = align(
        prepared.model,
        prepared.cache,
        keys,
        transcripts,
        training_arguments,
        FeatureAugmentation() if data_arguments.augment else None,
        callbacks=callbacks,
        variants=variants,
    )
    if training_arguments.should_save:
        prepared.model.save_pretrained(training_arguments.output_dir)
        prepared.processor.save_pretrained(training_arguments.output_dir)
    finish(prepared, training_arguments, before)
    return alignment


def finish(prepared: Prepared, arguments: AudioLlmTrainingArguments, before: list[torch.Tensor] | None) -> None:
    """Says what became of answers to text, and where the result is."""
    if not arguments.should_save:
        return
    if before is not None:
        print(describe_drift(drift(before, text_logits(prepared.model, prepared.processor.tokenizer))))
    print(f"Saved to {arguments.output_dir}.")


def read_instruct(data_arguments: DataArguments, own_arguments: None) -> tuple[InstructData, InstructData | None]:
    """Examples of prompt, audio and response, and held-out ones."""
    return open_training_data(data_arguments), open_held_out_data(data_arguments)


def build_instruct(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
    """The Trainer of projector and LoRA, by cross-entropy on the responses."""
    processor, cache = prepared.processor, prepared.cache
    budget = training_arguments.batch_budget(packed=training_arguments.packing)
    seed = training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed
    progress = not training_arguments.disable_tqdm
    processes = training_arguments.process_index, training_arguments.world_size
    return AudioLlmTrainer(
        model=prepared.model,
        args=training_arguments,
        train_dataset=examples.dataset(ExampleEncoder(processor, cache, budget), seed, progress, *processes),
        eval_dataset=None if held_out is None else held_out.dataset(ExampleEncoder(processor, cache), seed, progress),
        data_collator=AudioLlmCollator(processor, cache),
        processing_class=processor,
        budget=budget,
        **common,
    )


def read_distill(data_arguments: DataArguments, own_arguments: DistillArguments | None):
    """Examples of prompt, audio and transcript, and held-out ones."""
    own = own_arguments or DistillArguments()
    return read_both(data_arguments, distill.read_distill_examples, own.response_is_transcript)


def build_distill(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
    """The Trainer of projector and LoRA, towards what the base says of the transcript."""
    return distill.build_trainer(
        prepared.model,
        prepared.processor,
        examples,
        prepared.cache,
        training_arguments,
        own_arguments or DistillArguments(),
        eval_examples=held_out,
        **common,
    )


def read_prefer(data_arguments: DataArguments, own_arguments: PreferArguments | None):
    """Examples of prompt, audio, and two answers, and held-out ones."""
    return read_both(data_arguments, prefer.read_preference_examples)


def read_both(data_arguments: DataArguments, read: Callable[..., Sequence[Any]], *options: Any):
    """Examples of the one file to train on, and those of the held-out one, if there is one."""
    held_out = data_arguments.eval_data_path
    paths = [data_arguments.data_path[0], *([] if held_out is None else [held_out])]
    examples = [read(path, data_arguments.audio_dir, *options) for path in paths]
    return examples[0], examples[1] if len(examples) > 1 else None


def build_prefer(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
    """The Trainer of LoRA alone, by preferences; the model as it is becomes the reference."""
    return prefer.build_trainer(
        prepared.model,
        prepared.processor,
        examples,
        prepared.cache,
        training_arguments,
        own_arguments or PreferArguments(),
        eval_examples=held_out,
        **common,
    )


#: How each stage reads its rows and builds its Trainer.
LANGUAGE_MODEL_STAGES: dict[str, tuple[Any, Any]] = {
    "instruct": (read_instruct, build_instruct),
    "distill": (read_distill, build_distill),
    "prefer": (read_prefer, build_prefer),
}


def run_stage(
    model_arguments, data_arguments, training_arguments, stage_arguments, own_arguments=None, *, callbacks=()
) -> AudioLlmTrainer | Alignment:
    """Runs what `parse_arguments` gave."""
    run = run_align if stage_arguments.stage == "align" else train
    return run(
        model_arguments, data_arguments, training_arguments, stage_arguments, own_arguments, callbacks=callbacks
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm train` and `python -m audiollm.training.train`."""
    try:
        parsed = parse_arguments(arguments)
        check_arguments(parsed[0], parsed[1], parsed[2], parsed[3].stage)
    except (ValueError, OSError) as error:
        sys.exit(f"audiollm train: {error}")
    try:
        run_stage(*parsed)
    except StoppedBySignalError as stopped:
        print(f"audiollm train: {stopped}", file=sys.stderr)
        sys.exit(EXIT_CODE_OF_SIGTERM)
    except (TrainingError, ExamplesError, ConversationError, AudioError, EvaluationError, OSError) as error:
        sys.exit(f"audiollm train: {error}")


if __name__ == "__main__":
    main()
