"""
`audiollm train`: gives a language model ears, in stages that go on from each other's checkpoints.

    audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
"""

import signal
import sys
import time
from collections.abc import Sequence
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
from transformers import TrainerCallback

from . import align, distill, instruct, prefer, read
from .arguments import (
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
    TrainingError,
    check_arguments,
)
from .augmentation import BatchAugmentation, WaveformVariants
from .checkpointing import StoppedBySignalError, last_complete_checkpoint, step_of
from .collator import pack_batch, uses_flash
from .command_line import STAGE_OPTIONS, parse_arguments
from .evaluating import PatienceCallback, listening_evaluation
from .preparing import prepare
from .run_record import describe_drift, drift, record_run, text_logits
from .trainer import AudioLlmTrainer, write_card_if_mine

#: Each stage's module reads its rows (`open_data`) and builds its Trainer (`build`).
STAGES: dict[str, Any] = {"align": align, "read": read, "instruct": instruct, "distill": distill, "prefer": prefer}
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

    The stage is instruct when not given; `own_arguments` are its own options, such as `DistillArguments`.

    Returns the trainer, with the trained model in `trainer.model`; of stage align, with its projector there. Raises
    ValueError for options that contradict each other, ExamplesError for malformed examples, FileNotFoundError, AudioError,
    and StoppedBySignalError when SIGTERM came and a checkpoint was written.
    """
    name, started = (stage_arguments or StageArguments()).stage, time.monotonic()
    check_arguments(model_arguments, data_arguments, training_arguments, name)
    stage, own_options = STAGES[name], STAGE_OPTIONS[name]
    own = own_options() if own_arguments is None and own_options is not None else own_arguments
    examples, held_out = stage.open_data(data_arguments, own)

    prepared = prepare(model_arguments, data_arguments, training_arguments, name)
    trainer = stage.build(prepared, examples, held_out, own)
    patience = training_arguments.early_stopping_patience
    for callback in [*callbacks, *([] if patience is None else [PatienceCallback(patience)])]:
        trainer.add_callback(callback)
    if data_arguments.augment:
        trainer.augmentation = BatchAugmentation(prepared.processor)
    if training_arguments.packing:
        trainer.pack = partial(pack_batch, flash=uses_flash(trainer.model))
    if data_arguments.waveform_options() and prepared.cache is not None:
        variants = WaveformVariants(prepared.cache, data_arguments, data_arguments.waveform_variants)
        sources = getattr(examples, "sources", [examples])
        variants.add(sources, prepared.progress, announce=training_arguments.should_save)
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
    resumed_from = step_of(resume) if resume else None  # before it is rotated away
    if resume:
        print(f"Resuming from {resume}.")
    trainer.train(resume_from_checkpoint=resume)
    if training_arguments.should_save:  # before it is saved, which pushes it as well
        outcome = {
            "rows": None if data_arguments.streaming else len(examples),
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "final_loss": next((entry["loss"] for entry in trainer.state.log_history[::-1] if "loss" in entry), None),
            "resumed_from": resumed_from,
        }
        arguments = (model_arguments, data_arguments, training_arguments, own)
        record_run(prepared, name, arguments, started, outcome)
    trainer.save_model()
    trainer.save_state()
    if training_arguments.should_save:
        if before is not None:
            after = text_logits(prepared.model, prepared.processor.tokenizer)
            print(describe_drift(drift(before, after), prepared.text_reference))
        write_card_if_mine(training_arguments.output_dir, training_arguments.hub_model_id)
        print(f"Saved to {training_arguments.output_dir}.")
    return trainer


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
            train(*parsed)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Together, and before the interpreter ends: threads of the group that outlive it abort their process, and
            # with it the others, which may still be writing.
            processes = PartialState()
            processes.wait_for_everyone()
            processes.destroy_process_group()
    except StoppedBySignalError as stopped:
        print(f"audiollm train: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_status)
    except KeyboardInterrupt as interrupt:
        kept = last_complete_checkpoint(output)
        goes_on = f"goes on from {kept}" if kept else "begins again: there is no checkpoint yet"
        print(f"\naudiollm train: interrupted; the same command {goes_on}.", file=sys.stderr)
        sys.exit(exit_status(interrupt))
    except REFUSALS as error:
        sys.exit(f"audiollm train: {error}")


if __name__ == "__main__":
    main()
