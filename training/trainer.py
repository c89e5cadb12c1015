"""The Hugging Face Trainer with what an adapter on frozen bases needs, and nothing copied from it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from audiollm.checkpoints import is_adapter_key
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import is_wandb_available
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

#: Written last by the Trainer, so that a checkpoint that has it is complete.
TRAINER_STATE_FILE = "trainer_state.json"
#: One for each rank, written beside optimizer and schedule.
RANDOM_STATE_FILES = "rng_state*.pth"
SHORT_NAMES = {"batch_size": "per_device_train_batch_size", "num_epochs": "num_train_epochs"}
PROJECTOR_KEYS = ("multi_modal_projector.", "audio_boundary_embeds")


@dataclass
class AudioLlmTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, with short names for the common ones and a rate for the projector."""

    output_dir: str = field(default="runs/train", metadata={"help": "Folder for checkpoints and the trained adapter."})
    # None until __post_init__, which knows by it whether the short name alone was given.
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Examples per device and step; 8 when not given."}
    )
    num_train_epochs: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Passes over the data; 3 when not given."}
    )
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
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the order that HfArgumentParser can read
        default=None, metadata={"help": "Tracker to log to, such as tensorboard; none when not given."}
    )

    def __post_init__(self):
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns must stay off: the collator needs the audio column.")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, --bf16 is refused
            self.dataloader_pin_memory = False
        if self.label_smoothing_factor:
            # The Trainer's own smoothing takes this model's labels for shifted ones: it would learn to repeat tokens.
            raise ValueError("--label_smoothing_factor is not supported.")
        if self.use_wandb:
            if self.report_to not in (None, "wandb", ["wandb"]):
                raise ValueError(f"--use_wandb contradicts --report_to {self.report_to}; give one of them.")
            self.report_to = ["wandb"]
        if self.report_to is None:
            self.report_to = "none"
        if "wandb" in self.report_to and not is_wandb_available():
            raise ValueError("Logging to Weights & Biases needs its package: pip install 'audiollm[wandb]'.")
        for short, full in SHORT_NAMES.items():
            short_value, full_value = getattr(self, short), getattr(self, full)
            if None not in (short_value, full_value) and short_value != full_value:
                raise ValueError(f"--{short} {short_value} contradicts --{full} {full_value}; give one of them.")
            if short_value is not None and short_value <= 0:
                raise ValueError(f"--{short} is {short_value}; expected a positive number.")
            default = TrainingArguments.__dataclass_fields__[full].default
            chosen = (value for value in (short_value, full_value, default) if value is not None)
            setattr(self, full, next(chosen))
        super().__post_init__()


class EpochLengthSampler(LengthGroupedSampler):
    """
    Like lengths together, in an order that depends on seed and epoch alone.

    transformers' own draws from the global generator, which a run that resumes within an epoch has in another state:
    it would see some examples of the epoch twice and others not at all.

    Args:
        batch_size, lengths: as of `LengthGroupedSampler`.
        seed: of the run.
        current_epoch: tells which epoch begins.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, current_epoch: Callable[[], int]):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.current_epoch = current_epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.current_epoch())
        return super().__iter__()


class ResumableTrainer(Trainer):
    """
    The Trainer, with everything random in it the same in a run that was cut off and resumed.

    Args:
        augmentation: varies each training batch anew, at its own step: batches are made ahead of theirs, where a run
            that resumes does not yet have the random state of the one that was cut off. Evaluation sees the
            recordings as they are.
        args, kwargs: the Trainer's.
    """

    def __init__(self, *args, augmentation: Callable[[dict], dict] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return EpochLengthSampler(
            sampler.batch_size,
            lengths=sampler.lengths,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            current_epoch=lambda: int(self.state.epoch or 0),
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The Trainer's; none for a run that had made all its steps when it was cut off, which would make one more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """The Trainer's, on the batch as the augmentation leaves it."""
        if self.augmentation is not None:
            inputs = self.augmentation(inputs)
        return super().training_step(model, inputs, num_items_in_batch)


class AudioLlmTrainer(ResumableTrainer):
    """
    Trains projector and LoRA with their own learning rates, and resumes from what was trained alone.

    Checkpoints hold the adapter only (a few MB), besides optimizer, schedule and random states.
    """

    args: AudioLlmTrainingArguments
    model: PreTrainedModel

    def _issue_warnings_after_load(self, load_result) -> None:
        """The Trainer's, for what should be in a checkpoint: the frozen bases should not."""
        missing = [name for name in load_result.missing_keys if is_adapter_key(name) or self._trains(name)]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _trains(self, name: str) -> bool:
        try:
            return self.model.get_parameter(name).requires_grad
        except AttributeError:
            return False

    def get_decay_parameter_names(self, model) -> list[str]:
        """The Trainer's, without the gains of the projector's norms, which its list of names misses."""
        return [name for name in super().get_decay_parameter_names(model) if model.get_parameter(name).dim() > 1]

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
