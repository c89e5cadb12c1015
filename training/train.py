"""
`audiollm train`: gives a language model ears, in stages that go on from each other's checkpoints.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from audiollm.command_line.downloads import DownloadError
from audiollm.command_line.files import naming_the_disk
from audiollm.command_line.interruption import ended_by_signals, exit_status
from audiollm.corpora.examples import ExamplesError
from audiollm.processing.audio import AudioError
from audiollm.processing.conversations import ConversationError
from audiollm.publishing.card import CardError
from torch.utils.data import ConcatDataset
from transformers import TrainerCallback

from . import distill, instruct, prefer, read
from .align import AlignArguments, Alignment, TranscribedClips, align
from .arguments import (
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
    TrainingError,
    check_arguments,
)
from .checkpointing import StoppedBySignalError, last_complete_checkpoint, resumed_step
from .command_line import parse_arguments
from .dataset import BatchAugmentation, FeatureAugmentation, pack_batch, uses_flash
from .encoding import ExampleEncoder
from .evaluating import early_stopping, listening_evaluation
from .preparing import Prepared, prepare
from .run_record import describe_drift, drift, record_run, text_logits
from .trainer import AudioLlmTrainer, write_card_if_mine
from .variants import WaveformVariants

#: Stages that run the language model. Each module reads its rows (`open_data`) and builds its Trainer (`build`).
LANGUAGE_MODEL_STAGES = {"instruct": instruct, "read": read, "distill": distill, "prefer": prefer}
#: What a shell reports of a program that SIGTERM ended.
EXIT_CODE_OF_SIGTERM = 128 + signal.SIGTERM
#: Errors of which the command shows the message alone.
REFUSALS = (TrainingError, DownloadError, ExamplesError, ConversationError, AudioError, CardError, OSError)
DISK_ADVICE = "checkpoints that are whole stay: make room, and the same command goes on from the last one"


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
    name, started = (stage_arguments or StageArguments()).stage, datetime.now(timezone.utc)
    check_arguments(model_arguments, data_arguments, training_arguments, name)
    if name not in LANGUAGE_MODEL_STAGES:
        raise ValueError(f"Stage {name!r} does not run the language model; run_align runs it.")
    stage: Any = LANGUAGE_MODEL_STAGES[name]
    examples, held_out = stage.open_data(data_arguments, own_arguments)

    prepared = prepare(model_arguments, data_arguments, training_arguments, name)
    callbacks = [*callbacks, *early_stopping(training_arguments)]
    trainer = stage.build(prepared, examples, held_out, training_arguments, own_arguments, callbacks)
    if data_arguments.augment:
        trainer.augmentation = BatchAugmentation.of(prepared.processor)
    if training_arguments.packing:
        trainer.pack = partial(pack_batch, flash=uses_flash(trainer.model))
    sources = examples.sources if isinstance(examples, instruct.InstructData) else [examples]
    variants = waveform_variants(data_arguments, training_arguments, prepared, sources)
    if variants is not None:
        trainer.train_dataset, choice = variants.dataset(trainer.train_dataset, training_arguments.seed)
        trainer.add_callback(choice)
    if prepared.cache is not None and training_arguments.should_save:
        print(prepared.cache.describe())
    if name != "prefer":  # whose rows have no one answer to score
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

    def save() -> None:
        trainer.save_model()
        trainer.save_state()

    arguments = (model_arguments, data_arguments, training_arguments, own_arguments)
    finish(prepared, name, arguments, started, outcome, save, before)
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

    Every other stage can go on from the checkpoint. Arguments and errors are those of [`train`].

    Returns:
        The aligner, and the course of the loss.
    """
    started, progress = datetime.now(timezone.utc), not training_arguments.disable_tqdm
    own_arguments = own_arguments or AlignArguments()
    check_arguments(model_arguments, data_arguments, training_arguments, "align")
    sources = instruct.open_training_data(data_arguments).sources
    clips = TranscribedClips(sources, own_arguments.transcript_normaliser)
    prepared = prepare(model_arguments, data_arguments, training_arguments, "align")
    model, processor, cache = prepared.model, prepared.processor, prepared.cache
    assert cache is not None  # check_arguments has seen to it
    before = text_logits(model, processor.tokenizer)
    encoder = ExampleEncoder(processor, cache)
    clips.leave_out_undecodable(encoder, data_arguments.on_bad_example == "skip", progress)
    without = own_arguments.without_speech()
    parts: list[Any] = [clips, without]
    rows: Any = ConcatDataset(parts) if without else clips
    encoder.add_features(rows, progress)
    keys = [encoder.measure(rows[index].recordings[0])[0] for index in range(len(rows))]
    variants = waveform_variants(data_arguments, training_arguments, prepared, [rows])
    if training_arguments.should_save:
        print(cache.describe())
    augmentation = FeatureAugmentation() if data_arguments.augment else None
    transcripts = [*clips.transcripts, *[None] * len(without)]
    alignment = align(model, cache, keys, transcripts, training_arguments, augmentation, callbacks, variants)
    if training_arguments.should_save and model.config.projector_readout == "pieces":
        read.save_bank(prepared, keys[: len(clips)], clips.transcripts, training_arguments)
    step, loss = alignment.losses[-1] if alignment.losses else (None, None)
    outcome = {"rows": len(rows), "steps": step, "final_loss": loss}

    def save() -> None:
        if training_arguments.should_save:
            model.save_pretrained(training_arguments.output_dir)
            processor.save_pretrained(training_arguments.output_dir)

    arguments = (model_arguments, data_arguments, training_arguments, own_arguments)
    finish(prepared, "align", arguments, started, outcome, save, before)
    return alignment


def waveform_variants(
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    prepared: Prepared,
    sources: Sequence[Sequence[Any]],
) -> WaveformVariants | None:
    """Return the variants that --speed and the like ask for, stored in the cache."""
    augmentation = data_arguments.waveform_augmentation()
    if augmentation is None or prepared.cache is None:
        return None
    variants = WaveformVariants(prepared.cache, augmentation, data_arguments.waveform_variants)
    variants.add(sources, progress=not training_arguments.disable_tqdm, announce=training_arguments.should_save)
    return variants


def finish(
    prepared: Prepared,
    stage: str,
    arguments: tuple[Any, ...],
    started: datetime,
    outcome: dict[str, Any],
    save: Callable[[], None],
    before: list[torch.Tensor] | None,
) -> None:
    """Record the run, save it, print how far answers to text have moved, and write the card."""
    training_arguments = arguments[2]
    if training_arguments.should_save:  # before it is saved, which pushes it as well
        record_run(prepared, stage, arguments, started, outcome)
    save()
    if not training_arguments.should_save:
        return
    if before is not None:
        after = text_logits(prepared.model, prepared.processor.tokenizer)
        print(describe_drift(drift(before, after), prepared.text_reference))
    write_card_if_mine(training_arguments.output_dir, training_arguments.hub_model_id)
    print(f"Saved to {training_arguments.output_dir}.")


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
    except REFUSALS as error:
        sys.exit(f"audiollm train: {error}")


if __name__ == "__main__":
    main()
