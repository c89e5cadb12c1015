"""The options that say what to train on and how batches are made of it, and what of them contradicts what."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from .batching import BatchBudget
from .streaming import SHUFFLE_ROWS

STAGE_OF_MIXTURES = "instruct"
#: Stages that read every form of data, and several sources.
STAGES_OF_ALL_FORMS = ("align", "read", STAGE_OF_MIXTURES)
#: Stages whose batches may be bounded by what they hold.
STAGES_OF_BUDGETS = ("read", STAGE_OF_MIXTURES)


@dataclass
class SourceArguments:
    """Where examples come from."""

    data_path: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One or several of: a JSON list, *.jsonl or *.parquet of {text with <audio>, audio_paths or audio, "
            "response} or {messages}; a folder of Parquet files, or that save_to_disk wrote; hub:org/name?config=C&split=S&revision=R."
        },
    )
    data_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "One number per data_path: the share of the rows of an epoch that it gives. An epoch is then as "
            "long as it takes for every example to come at least once. Without it, each comes exactly once."
        },
    )
    audio_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that relative audio paths start from; that of the data file by default."},
    )
    on_bad_example: Literal["error", "skip"] = field(
        default="error",
        metadata={
            "help": "error: list all bad examples and stop. skip: count and list them, and train on the others."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read examples as they are needed, without counting or checking them ahead; needs --max_steps."
        },
    )
    shuffle_rows: int | None = field(
        default=None,
        metadata={
            "help": f"With --streaming: rows that are held to draw from; {SHUFFLE_ROWS} by default, 0 for none."
        },
    )
    eval_data_path: str | None = field(
        default=None,
        metadata={"help": "Held-out examples, in one of the forms of data_path, for --eval_strategy."},
    )

    def __post_init__(self):
        if isinstance(self.data_path, str):
            self.data_path = [self.data_path]

    def check_sources(self, training: "BudgetArguments", stage: str = STAGE_OF_MIXTURES) -> None:
        """
        Raises:
            ValueError: options contradict each other.
        """
        if self.data_weights is not None:
            if len(self.data_weights) != len(self.data_path):
                raise ValueError(
                    f"--data_weights has {len(self.data_weights)} numbers for {len(self.data_path)} of --data_path; "
                    "give one for each."
                )
            if min(self.data_weights) <= 0:
                raise ValueError(f"--data_weights are {self.data_weights}; expected positive numbers.")
        if self.shuffle_rows is not None and not self.streaming:
            raise ValueError("--shuffle_rows is of --streaming; without it, all rows are shuffled.")
        if self.shuffle_rows is not None and self.shuffle_rows < 0:
            raise ValueError(f"--shuffle_rows is {self.shuffle_rows}; expected a number of rows, or 0.")
        if self.streaming:
            self._check_streaming(training)
        if stage != STAGE_OF_MIXTURES:
            reads_one = stage not in STAGES_OF_ALL_FORMS
            counts_rows = stage not in STAGES_OF_BUDGETS
            given = {
                "several of --data_path": reads_one and len(self.data_path) > 1,
                "--data_weights": self.data_weights is not None,
                "--on_bad_example skip": reads_one and self.on_bad_example == "skip",
                "--streaming": self.streaming,
                "--max_tokens_per_batch": counts_rows and training.max_tokens_per_batch is not None,
                "--max_audio_seconds_per_batch": counts_rows and training.max_audio_seconds_per_batch is not None,
            }
            for option in (option for option, is_given in given.items() if is_given):
                files = "one data file" if reads_one else "data of any form, each row once,"
                raise ValueError(f"--stage {stage} takes {files} in batches of rows; leave out {option}.")

    def _check_streaming(self, training: "BudgetArguments") -> None:
        if training.max_steps <= 0:
            raise ValueError("--streaming cannot count its examples: say how long to train with --max_steps.")
        if training.dataloader_num_workers:
            raise ValueError("--streaming reads in the training process itself; leave out --dataloader_num_workers.")
        if training.batch_budget() is not None:
            raise ValueError(
                "--streaming cannot sort examples by length; give --batch_size instead of --max_tokens_per_batch and "
                "--max_audio_seconds_per_batch."
            )


@dataclass
class BudgetArguments(TrainingArguments):
    """transformers' `TrainingArguments`, with batches bounded by what they hold."""

    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Instead of --batch_size: tokens per device and batch, padding included, in batches of like length."
        },
    )
    max_audio_seconds_per_batch: float | None = field(
        default=None, metadata={"help": "Instead of --batch_size: seconds of audio per device and batch."}
    )

    def batch_budget(self, packed: bool = False) -> BatchBudget | None:
        """What a batch may hold, its rows packed or padded; None where it is a number of rows."""
        if self.max_tokens_per_batch is None and self.max_audio_seconds_per_batch is None:
            return None
        return BatchBudget(self.max_tokens_per_batch, self.max_audio_seconds_per_batch, packed)

    def check_budget(self, batch_size: int | None) -> None:
        """
        Args:
            batch_size: as it was given, under any of its names.

        Raises:
            ValueError: a budget is no size, or contradicts another option.
        """
        for name in ("max_tokens_per_batch", "max_audio_seconds_per_batch"):
            value = getattr(self, name)
            if value is None:
                continue
            if value <= 0:
                raise ValueError(f"--{name} is {value}; expected a positive number.")
            conflicts = {
                f"--batch_size {batch_size}": batch_size is not None,
                "--auto_find_batch_size": self.auto_find_batch_size,
                "--dataloader_drop_last": self.dataloader_drop_last,
                f"--train_sampling_strategy {self.train_sampling_strategy}": self.train_sampling_strategy
                != "group_by_length",
            }
            for option in (option for option, is_given in conflicts.items() if is_given):
                raise ValueError(f"--{name} makes batches of like length itself; it contradicts {option}.")
