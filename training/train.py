"""
`audiollm train`: gives a language model ears, in stages that go on from each other's checkpoints.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from audiollm import AudioLlmProcessor
from audiollm.base_conversion import EmbeddedBaseError
from audiollm.corpora.examples import ExamplesError
from audiollm.disks import naming_the_disk
from audiollm.interruption import ended_by_signals, exit_status
from audiollm.processing.audio import AudioError
from audiollm.processing.conversations import ConversationError
from audiollm.publishing.card import CardError
from torch.utils.data import ConcatDataset
from transformers import TrainerCallback

from . import distill, prefer
from .align import Alignment, align
from .align_stage import AlignArguments, TranscribedClips
from .arguments import (
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
    TrainingError,
    check_arguments,
)
from .augment import FeatureAugmentation
from .checkpointing import StoppedBySignalError, last_complete_checkpoint, resumed_step
from .command_line import parse_arguments
from .dataset import BatchAugmentation
from .distill import DistillArguments
from .encoding import ExampleEncoder
from .evaluating import EvaluationError, early_stopping, listening_evaluation
from .instruct import InstructData, build_instruct, open_training_data, read_instruct
from .packing import pack_batch, uses_flash
from .prefer import PreferArguments
from .preparing import Prepared, prepare
from .read import build_read, read_read, save_bank
from .run_record import RunClock, describe_drift, drift, record_run, text_logits
from .trainer import AudioLlmTrainer, write_card_if_mine
from .variants import WaveformVariants

#: What a shell reports of a program that SIGTERM ended.
EXIT_CODE_OF_SIGTERM = 128 + signal.SIGTERM

DISK_ADVICE = "checkpoints that are whole stay: make room, and the same command goes on from the last one"


def read_distill(data_arguments: DataArguments, own_arguments: DistillArguments | None):
    """Return examples of prompt, audio and transcript, and held-out ones."""
    own = own_arguments or DistillArguments()
    return read_both(data_arguments, distill.read_distill_examples, own.response_is_transcript)


def read_prefer(data_arguments: DataArguments, own_arguments: PreferArguments | None):
    """Return examples of prompt, audio, and two answers, and held-out ones."""
    return read_both(data_arguments, prefer.read_preference_examples)


def read_both(data_arguments: DataArguments, read: Callable[..., Sequence[Any]], *options: Any):
    """Return examples of the one file to train on, and of the held-out one, if there is one."""
    held_out = data_arguments.eval_data_path
    paths = [data_arguments.data_path[0], *([] if held_out is None else [held_out])]
    examples = [read(path, data_arguments.audio_dir, *options) for path in paths]
    return examples[0], examples[1] if len(examples) > 1 else None


def build_with(build_trainer: Callable[..., Any], arguments_type: type) -> Callable[..., Any]:
    """Return the builder of a stage whose examples are rows of a file."""

    def build(prepared: Prepared, examples, held_out, training_arguments, own_arguments, **common):
        return build_trainer(
            prepared.model,
            prepared.processor,
            examples,
            prepared.cache,
            training_arguments,
            own_arguments or arguments_type(),
            eval_examples=held_out,
            **common,
        )

    return build


#: How each stage reads its rows and builds its Trainer.
LANGUAGE_MODEL_STAGES: dict[str, tuple[Any, Any]] = {
    "instruct": (read_instruct, build_instruct),
    "read": (read_read, build_read),
    "distill": (read_distill, build_with(distill.build_trainer, DistillArguments)),
    "prefer": (read_prefer, build_with(prefer.build_trainer, PreferArguments)),
}


def batch_augmentation(processor: AudioLlmProcessor) -> BatchAugmentation:
    """Return the default augmentation of training batches."""
    return BatchAugmentation(
        FeatureAugmentation(), processor.audio_token_id, processor.stack_factor, processor.tokenizer.pad_token_id
    )


def waveform_variants(
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    prepared: Prepared,
    examples: Sequence[Any] | InstructData,
) -> WaveformVariants | None:
    """Return the variants that --speed and the like ask for, stored in the cache."""
    augmentation = data_arguments.waveform_augmentation()
    if augmentation is None or prepared.cache is None:
        return None
    variants = WaveformVariants(prepared.cache, augmentation, data_arguments.waveform_variants)
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
    Train, resuming where an earlier run into the same folder was cut off, and save what was trained.

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
    clock = RunClock()
    check_arguments(model_arguments, data_arguments, training_arguments, stage)
    if stage not in LANGUAGE_MODEL_STAGES:
        raise ValueError(f"Stage {stage!r} does not run the language model; run_align runs it.")
    read, build = LANGUAGE_MODEL_STAGES[stage]
    examples, held_out = read(data_arguments, own_arguments)

    prepared = prepare(model_arguments, data_arguments, training_arguments, stage)
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
        trainer.pack = partial(pack_batch, flash=uses_flash(trainer.model))
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
    outcome = {
        "rows": None if data_arguments.streaming else len(examples),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "final_loss": next((entry["loss"] for entry in trainer.state.log_history[::-1] if "loss" in entry), None),
        "resumed_from": resumed_step(resume),
    }
    arguments = (model_arguments, data_arguments, training_arguments, own_arguments)
    record_run(prepared, stage, *arguments, clock, outcome)  # before it is saved, which pushes it as well
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
    Train the projector alone, by CTC on rows of one recording whose response is its transcript.

    Every other stage can go on from the checkpoint.

    Args, Raises: as of `train`.

    Returns:
        The aligner, and the course of the loss.
    """
    clock = RunClock()
    own_arguments = own_arguments or AlignArguments()
    check_arguments(model_arguments, data_arguments, training_arguments, "align")
    sources = open_training_data(data_arguments).sources
    clips = TranscribedClips(sources, own_arguments.transcript_normaliser)
    prepared = prepare(model_arguments, data_arguments, training_arguments, "align")
    assert prepared.cache is not None  # check_arguments has seen to it
    before = text_logits(prepared.model, prepared.processor.tokenizer)
    encoder = ExampleEncoder(prepared.processor, prepared.cache)
    clips.leave_out_undecodable(encoder, data_arguments.on_bad_example == "skip", not training_arguments.disable_tqdm)
    without = own_arguments.without_speech()
    parts: list[Any] = [clips, without]
    rows: Any = ConcatDataset(parts) if without else clips
    encoder.add_features(rows, progress=not training_arguments.disable_tqdm)
    keys = [encoder.measure(rows[index].recordings[0])[0] for index in range(len(rows))]
    variants = waveform_variants(data_arguments, training_arguments, prepared, rows)
    if training_arguments.should_save:
        print(prepared.cache.describe())
    alignment = align(
        prepared.model,
        prepared.cache,
        keys,
        [*clips.transcripts, *[None] * len(without)],
        training_arguments,
        FeatureAugmentation() if data_arguments.augment else None,
        callbacks=callbacks,
        variants=variants,
    )
    if training_arguments.should_save and prepared.model.config.projector_readout == "pieces":
        save_bank(prepared, keys[: len(clips)], clips.transcripts, training_arguments)
    outcome = {
        "rows": len(rows),
        "steps": alignment.losses[-1][0] if alignment.losses else None,
        "final_loss": alignment.losses[-1][1] if alignment.losses else None,
    }
    record_run(prepared, "align", model_arguments, data_arguments, training_arguments, own_arguments, clock, outcome)
    if training_arguments.should_save:
        prepared.model.save_pretrained(training_arguments.output_dir)
        prepared.processor.save_pretrained(training_arguments.output_dir)
    finish(prepared, training_arguments, before)
    return alignment


def finish(prepared: Prepared, arguments: AudioLlmTrainingArguments, before: list[torch.Tensor] | None) -> None:
    """Print how far answers to text have moved, write the card, and print where the result is."""
    if not arguments.should_save:
        return
    if before is not None:
        after = text_logits(prepared.model, prepared.processor.tokenizer)
        print(describe_drift(drift(before, after), prepared.text_reference))
    write_card_if_mine(arguments.output_dir, getattr(arguments, "hub_model_id", None))
    print(f"Saved to {arguments.output_dir}.")


def run_stage(
    model_arguments, data_arguments, training_arguments, stage_arguments, own_arguments=None, *, callbacks=()
) -> AudioLlmTrainer | Alignment:
    """Run the stage that `parse_arguments` has read."""
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
        output = str(parsed[2].output_dir)
        with ended_by_signals((signal.SIGINT,)), naming_the_disk(output, DISK_ADVICE):
            run_stage(*parsed)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Together, and before the interpreter ends: threads of the group that outlive it abort their process, and
            # with it the others, which may still be writing.
            processes = PartialState()
            processes.wait_for_everyone()
            processes.destroy_process_group()
    except StoppedBySignalError as stopped:
        print(f"audiollm train: {stopped}", file=sys.stderr)
        sys.exit(EXIT_CODE_OF_SIGTERM)
    except KeyboardInterrupt as interrupt:
        print("\naudiollm train: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(exit_status(interrupt))
    except (
        TrainingError,
        EmbeddedBaseError,
        ExamplesError,
        ConversationError,
        AudioError,
        EvaluationError,
        CardError,
        OSError,
    ) as error:
        sys.exit(f"audiollm train: {error}")


if __name__ == "__main__":
    main()
