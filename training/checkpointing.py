"""
Checkpoints that a run can count on.

Room for them is asked for at the start, a run that is told to stop (SIGTERM) leaves one behind, and a folder says
whose checkpoints it holds.
"""

import errno
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from audiollm.checkpoints import is_adapter_key
from filelock import FileLock, Timeout
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from .arguments import TrainingError

#: Written last by the Trainer, so that a checkpoint that has it is complete.
TRAINER_STATE_FILE = "trainer_state.json"
#: One for each rank, written beside optimizer and schedule.
RANDOM_STATE_FILES = "rng_state*.pth"
#: Says whose checkpoints a folder holds.
STAGE_FILE = "stage.json"
LOCK_FILE = ".train.lock"
#: What Adam keeps for every weight that trains: two moments, in the weight's own precision.
OPTIMIZER_MOMENTS = 2
GIB = 1 << 30


class StoppedBySignalError(Exception):
    """
    A run was told to stop, and did, behind a checkpoint.

    Attributes:
        step, max_steps: steps made, and steps of the whole run.
        checkpoint: folder to go on from.
    """

    def __init__(self, step: int, max_steps: int, checkpoint: str):
        self.step, self.max_steps, self.checkpoint = step, max_steps, checkpoint
        super().__init__(
            f"stopped by SIGTERM after step {step} of {max_steps}; {checkpoint} holds it. The same command goes on "
            "from there."
        )


class StopOnSigterm(TrainerCallback):
    """
    Ends a run at the end of the step in which SIGTERM came, behind a checkpoint.

    Where a cluster takes a machine back, or `timeout` ends a job, nothing is lost but the step's own seconds. With
    several processes all stop at the same step, whichever of them heard of it.
    """

    def __init__(self):
        self.requested = False
        self._stopping = False
        self._previous: Any = None
        self._process = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Listens from here on; signals reach the main thread only."""
        self.requested = self._stopping = False
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._previous = signal.signal(signal.SIGTERM, self._request)

    def _request(self, number, frame) -> None:
        if os.getpid() == self._process:
            self.requested = True
        else:  # a worker of the data loader, which inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for a checkpoint."""
        if self._requested_anywhere(args):
            self._stopping = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """Stops, now that the checkpoint is written: evaluation and the end of the epoch are the next run's."""
        if self._stopping:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            raise StoppedBySignalError(state.global_step, state.max_steps, str(folder))

    def _requested_anywhere(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.requested
        requested = torch.tensor(int(self.requested), device=args.device)
        torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
        return bool(requested)

    def restore(self) -> None:
        """Gives the signal back to who had it before."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint of a run that was written to its end, or None.

    A run killed while it wrote one leaves a folder without a readable `trainer_state.json`; that one is passed over,
    as are those of `--save_only_model`, from which no run can go on.
    """
    checkpoints = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            step = json.loads((folder / TRAINER_STATE_FILE).read_text())["global_step"]
        except (OSError, ValueError, KeyError, TypeError):  # missing, cut off, or not what a Trainer writes
            continue
        if any(folder.glob(RANDOM_STATE_FILES)):
            checkpoints.append((step, str(folder)))
    return max(checkpoints)[1] if checkpoints else None


def resumed_step(checkpoint: str | bool | None) -> int | None:
    """The step that a run went on from, given its `resume_from_checkpoint`; None where it began at the beginning."""
    state = Path(checkpoint) / TRAINER_STATE_FILE if isinstance(checkpoint, str) else None
    return json.loads(state.read_text())["global_step"] if state is not None and state.is_file() else None


def checkpoint_bytes(model: nn.Module, arguments: TrainingArguments) -> int:
    """
    What one checkpoint of a run takes: the weights that are saved and the optimizer's moments of those that train.

    Args:
        model: frozen as it will train.
        arguments: of the run.
    """
    config = getattr(model, "config", None)
    whole = config is not None and not (config.audio_model_id and config.text_model_id)
    weights = moments = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        if whole or parameter.requires_grad or is_adapter_key(name):
            weights += size
        if parameter.requires_grad and not arguments.save_only_model:
            moments += OPTIMIZER_MOMENTS * size
    return weights + moments


def checkpoints_on_disk(arguments: TrainingArguments, num_examples: int | None) -> int:
    """
    How many checkpoints a run has on disk at most: those that are kept, and the one being written.

    Args:
        arguments: of the run.
        num_examples: rows of one epoch; None when they cannot be counted.
    """
    if arguments.save_strategy == SaveStrategy.NO:
        return 1  # the trained weights
    if arguments.save_total_limit is not None and arguments.save_total_limit > 0:
        return arguments.save_total_limit + 1
    steps = arguments.max_steps
    if steps <= 0:
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        steps = math.ceil((num_examples or 0) / batch * arguments.num_train_epochs)
    if arguments.save_strategy == SaveStrategy.EPOCH or arguments.save_steps < 1:
        share = arguments.save_steps if arguments.save_steps < 1 else 1 / max(1, arguments.num_train_epochs)
        return math.ceil(1 / share) + 1
    return math.ceil(steps / arguments.save_steps) + 1


def check_disk_space(model: nn.Module, arguments: TrainingArguments, num_examples: int | None = None) -> None:
    """
    Refuses a run whose checkpoints do not fit on the disk, before anything is computed.

    Raises:
        OSError: of kind ENOSPC; says what is free and what is needed.
    """
    folder = Path(str(arguments.output_dir))
    each, count = checkpoint_bytes(model, arguments), checkpoints_on_disk(arguments, num_examples)
    # Those that an earlier run left will be gone on from, and then rotated away.
    present = sum(file.stat().st_size for file in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/*") if file.is_file())
    needed, free = max(0, each * count - present), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"--output_dir {folder} has {free / GIB:.3g} GiB free, but this run needs {needed / GIB:.3g} GiB: "
            f"{count} checkpoints of {each / GIB:.3g} GiB, of which the oldest is removed when the newest is written. "
            "Make room, choose another folder, or lower --save_total_limit",
        )


def claim_folder(output_dir: str | Path, identity: dict[str, str]) -> None:
    """
    Writes down whose checkpoints a folder will hold.

    Args:
        output_dir: folder of the run.
        identity: what a run that goes on must share with the one that was cut off, such as its stage.

    Raises:
        TrainingError: it holds checkpoints of a run with another identity.
    """
    file = Path(output_dir) / STAGE_FILE
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        found = identity
    if found != identity and last_complete_checkpoint(output_dir) is not None:
        raise TrainingError(
            f"--output_dir {output_dir} holds checkpoints of {_described(found)}; this run is {_described(identity)}. "
            "Give it another folder; --model_path goes on from what the other run learned."
        )
    file.write_text(json.dumps(identity, indent=1) + "\n")


@contextmanager
def held(arguments: TrainingArguments) -> Iterator[None]:
    """
    Keeps other runs out of a run's folder while it lasts; the process that writes checkpoints holds it for all.

    Raises:
        TrainingError: another run is in it.
    """
    if not arguments.should_save:
        yield
        return
    folder = Path(str(arguments.output_dir))
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise TrainingError(
            f"Another run trains into --output_dir {folder}; wait for it to end, or give another folder."
        ) from None


def _described(identity: dict[str, str]) -> str:
    return ", ".join(f"--{name} {value}" for name, value in identity.items())
