"""The Hugging Face Trainer with what an adapter on frozen bases needs, and nothing copied from it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from audiollm.checkpoints import is_adapter_key

#: Written last by the Trainer, so that a checkpoint that has it is complete.
TRAINER_STATE_FILE = "trainer_state.json"
PROJECTOR_KEYS = ("multi_modal_projector.", "audio_boundary_embeds")


@dataclass
class AudioLlmTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, with short names for the common ones and a rate for the projector."""

    output_dir: str = field(default="runs/train", metadata={"help": "Folder for checkpoints and the trained adapter."})
    batch_size: int | None = field(
        default=None, metadata={"help": "Examples per device and step; short for --per_device_train_batch_size."}
    )
    num_epochs: float | None = field(
        default=None, metadata={"help": "Passes over the data; short for --num_train_epochs."}
    )
    use_wandb: bool = field(default=False, metadata={"help": "Log to Weights & Biases; short for --report_to wandb."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of LoRA."})
    projector_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of projector and boundary vectors; that of LoRA when not given."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator reads columns that the model does not."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Batches of like length, so that little is padded."}
    )
    length_column_name: str = field(default="length", metadata={"help": "Column that holds the tokens per example."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Course of the learning rates."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps of warm-up, or their share when below 1."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    report_to: str | list[str] = field(default="none", metadata={"help": "Trackers to log to."})

    def __post_init__(self):
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns must stay off: the collator needs the audio column.")
        if self.use_wandb:
            if self.report_to not in ("none", ["none"], "wandb", ["wandb"]):
                raise ValueError(f"--use_wandb contradicts --report_to {self.report_to}; give one of them.")
            self.report_to = ["wandb"]
        defaults = TrainingArguments.__dataclass_fields__
        for short, full in (("batch_size", "per_device_train_batch_size"), ("num_epochs", "num_train_epochs")):
            value = getattr(self, short)
            if value is None:
                continue
            if getattr(self, full) not in (defaults[full].default, value):
                raise ValueError(f"--{short} {value} contradicts --{full} {getattr(self, full)}; give one of them.")
            if value <= 0:
                raise ValueError(f"--{short} is {value}; expected a positive number.")
            setattr(self, full, value)
        super().__post_init__()


class AudioLlmTrainer(Trainer):
    """
    Trains projector and LoRA with their own learning rates, and resumes from what was trained alone.

    Checkpoints hold the adapter only (a few MB), besides optimizer, schedule and random states.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The frozen bases are not in a checkpoint; the Trainer need not warn of each of their weights on resuming.
        self.model._keys_to_ignore_on_save = [
            name for name in self.model.state_dict() if not is_adapter_key(name) and not self._trains(name)
        ]

    def _trains(self, name: str) -> bool:
        try:
            return self.model.get_parameter(name).requires_grad
        except AttributeError:
            return False

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with projector and boundary vectors in groups of their own rate."""
        optimizer = super().create_optimizer(model)
        rate = self.args.projector_learning_rate
        if rate is None or any("is_projector" in group for group in optimizer.param_groups):
            return optimizer
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups, optimizer.param_groups = optimizer.param_groups, []
        for group in groups:
            for is_projector in (True, False):
                chosen = [p for p in group["params"] if any(k in names[id(p)] for k in PROJECTOR_KEYS) == is_projector]
                if chosen:
                    settings = {**group, "params": chosen, "is_projector": is_projector}
                    optimizer.add_param_group({**settings, "lr": rate} if is_projector else settings)
        return optimizer


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint of a run that was written to its end, or None.

    A run killed while it wrote one leaves a folder without a readable `trainer_state.json`; that one is passed over.
    """
    checkpoints = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            step = json.loads((folder / TRAINER_STATE_FILE).read_text())["global_step"]
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
            continue
        checkpoints.append((step, str(folder)))
    return max(checkpoints)[1] if checkpoints else None
