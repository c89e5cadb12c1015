"""Checkpoints to resume from: SIGTERM and Ctrl-C leave one behind, half-written ones are skipped, and a folder records its stage."""

import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .arguments import TrainingError

#: One for each rank, written beside optimizer and schedule.
RANDOM_STATE_FILES = "rng_state*.pth"
#: Says whose checkpoints a folder holds.
STAGE_FILE = "stage.json"


class StoppedBySignalError(Exception):
    """A run that SIGTERM or Ctrl-C ended, after it wrote a checkpoint."""

    def __init__(self, number: int, step: int, max_steps: int, checkpoint: str):
        self.exit_status, self.checkpoint = 128 + number, checkpoint
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after step {step} of {max_steps}; {checkpoint} holds it. The same command goes on from there."
        )


class StopOnSignal(TrainerCallback):
    """
    Ends a run, with a checkpoint, at the end of the step in which SIGTERM or Ctrl-C came; a second Ctrl-C ends it at once.

    transformers' own (`enable_jit_checkpoint`) may save within a step, where a resumed run would draw other numbers.
    """

    def __init__(self):
        self.requested = 0  # the signal's number
        self._stopping = 0
        self._previous: dict[int, Any] = {}
        self._process = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start listening; signals reach the main thread only."""
        self.requested = self._stopping = 0
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            listened = [signal.SIGTERM]
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # not of a job in the background
                listened.append(signal.SIGINT)
            self._previous = {number: signal.signal(number, self._request) for number in listened}

    def _request(self, number, frame) -> None:
        if os.getpid() == self._process:
            if number == signal.SIGINT and self.requested:
                raise KeyboardInterrupt
            if number == signal.SIGINT:  # and print may be at work
                os.write(2, b"\nA checkpoint is written after this step. Ctrl-C again ends at once.\n")
            self.requested = number
        else:  # a worker of the data loader, which inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint if the signal came."""
        self._stopping = self.requested
        if args.world_size > 1:  # whichever process got it, all stop at the same step
            requested = torch.tensor(self.requested, device=args.device)
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
            self._stopping = int(requested)
        if self._stopping:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """Stop, now that the checkpoint is written."""
        if self._stopping:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            raise StoppedBySignalError(self._stopping, state.global_step, state.max_steps, str(folder))

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Return a run's newest checkpoint with more than weights and a whole `trainer_state.json`, which comes last; or None."""
    checkpoints = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        # Without it, or cut off, or not what a Trainer writes.
        with suppress(OSError, ValueError, KeyError, TypeError):
            if any(folder.glob(RANDOM_STATE_FILES)):
                checkpoints.append((step_of(folder), str(folder)))
    return max(checkpoints)[1] if checkpoints else None


def step_of(checkpoint: str | Path) -> int:
    """Return the step that a checkpoint was written at."""
    return json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text())["global_step"]


def claim_folder(output_dir: str | Path, identity: dict[str, str]) -> None:
    """Record the options that a folder's checkpoints belong to; raise TrainingError where it holds others'."""
    file = Path(output_dir) / STAGE_FILE
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        found = identity
    if found != identity and last_complete_checkpoint(output_dir) is not None:
        theirs, ours = (", ".join(f"--{name} {value}" for name, value in one.items()) for one in (found, identity))
        held = f"--output_dir {output_dir} holds checkpoints of {theirs}; this run is {ours}"
        raise TrainingError(f"{held}. Give it another folder; --model_path goes on from what the other run learned.")
    file.write_text(json.dumps(identity, indent=1) + "\n")
