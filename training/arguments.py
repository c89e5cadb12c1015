"""The options of `audiollm train`: which models, what data, how to train; and what of them contradicts what."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from audiollm.corpora.normalisers import NORMALISERS
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE
from audiollm.evaluation.listening import MAX_NEW_TOKENS
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_bitsandbytes_available

from .batching import BatchBudget
from .sharding import asks_for_fsdp, check_distributed
from .streaming import SHUFFLE_ROWS
from .waveform_arguments import WaveformArguments

CACHE_OFF = "off"
#: Options that shape a new model; a checkpoint has its own.
CONFIG_FIELDS = (
    "stack_factor",
    "projector_type",
    "projector_hidden_size",
    "projector_context_layers",
    "projector_readout",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
)
BASE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Trackers with an extra of their own in setup.cfg.
TRACKER_EXTRAS = ("wandb", "tensorboard", "trackio")
Stage = Literal["align", "read", "instruct", "distill", "prefer"]
DEFAULT_STAGE: Stage = "instruct"
SHORT_NAMES = {"batch_size": "per_device_train_batch_size", "num_epochs": "num_train_epochs"}
#: What `--trainable` may be, and the parts it lets train.
TRAINABLE = {
    "adapter": ("projector", "lora"),
    "projector": ("projector",),
    "lora": ("lora",),
    "adapter+audio": ("projector", "lora", "audio"),
    "adapter+llm": ("projector", "lora", "llm"),
    "all": ("projector", "lora", "audio", "llm"),
}
DEFAULT_TRAINABLE = "adapter"
#: Whisper's sinusoids: fixed, also when Whisper itself was trained.
NEVER_TRAINED = "audio_tower.embed_positions."
STAGE_OF_MIXTURES = "instruct"
#: Stages that read every form of data, and several sources.
STAGES_OF_ALL_FORMS = ("align", "read", STAGE_OF_MIXTURES)
#: Stages whose batches may be bounded by what they hold.
STAGES_OF_BUDGETS = ("read", STAGE_OF_MIXTURES)
WORD_ERROR = "word_error"
#: What a checkpoint can be the best by, without `eval_`; the control is not among them, as it should be high.
METRICS = ("loss", WORD_ERROR)
#: Options that do nothing unless there is evaluation, and what they are when not given.
EVALUATION_DEFAULTS = {
    "eval_max_samples": 100,
    "eval_samples_shown": 5,
    "eval_max_new_tokens": MAX_NEW_TOKENS,
    "eval_normaliser": "english",
}
SMALLEST = {"eval_max_samples": 1, "eval_samples_shown": 0, "eval_max_new_tokens": 1, "early_stopping_patience": 1}


class TrainingError(ValueError):
    """Model, data and folder do not go together as asked; the message says what to do."""


@dataclass
class StageArguments:
    """Which stage of training to run."""

    _argument_group_name = "stage"

    stage: Stage = field(
        default=DEFAULT_STAGE,
        metadata={
            "help": "align: the projector alone, by CTC on transcripts. read: LoRA, on text alone, which is heard as the "
            "aligned projector would hear it. instruct: projector and LoRA, on responses. "
            "distill: to answer speech as the base answers its transcript. prefer: to prefer one response to another."
        },
    )
    config: str | None = field(
        default=None,
        metadata={
            "help": "Recipe: a YAML file of options, or the name of a shipped one; the command line overrides it. By "
            "default the shipped recipe of the stage."
        },
    )


@dataclass
class ModelArguments:
    """Which models to join, what to put between them, and what of it trains."""

    _argument_group_name = "model"

    llama_path: str | None = field(
        default=None,
        metadata={
            "help": "Language model: a Hub id, a folder, or one of the embedded bases; "
            f"{DEFAULT_TEXT_BASE} when not given. With --model_path: where the checkpoint's own lies now."
        },
    )
    whisper_path: str | None = field(
        default=None,
        metadata={
            "help": "Whisper (or Wav2Vec2-BERT) checkpoint: a Hub id, a folder, or one of the embedded bases; "
            f"{DEFAULT_AUDIO_BASE} when not given. With --model_path: where the checkpoint's own lies now."
        },
    )
    model_path: str | None = field(
        default=None, metadata={"help": "AudioLLM checkpoint to go on from, instead of starting from two bases."}
    )
    base_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the frozen bases: float32, bfloat16 or float16. By default that of --bf16 or --fp16, "
            "else float32. What trains is always float32."
        },
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Hold the frozen language model's layers in 8 bits, through bitsandbytes."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Hold the frozen language model's layers in 4 bits (QLoRA's nf4)."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernels: sdpa, eager or flash_attention_2."}
    )
    stack_factor: int | None = field(
        default=None, metadata={"help": "20 ms frames per audio token: 2 is 40 ms; 4 (80 ms) when not given."}
    )
    projector_type: str | None = field(
        default=None, metadata={"help": "swiglu, mlp or linear; swiglu when not given."}
    )
    projector_hidden_size: int | None = field(
        default=None, metadata={"help": "Width inside the projector; four times the language model's when not given."}
    )
    projector_context_layers: int | None = field(
        default=None,
        metadata={"help": "Blocks that let an audio token see its neighbours (gated convolutions); 0 when not given."},
    )
    projector_readout: str | None = field(
        default=None,
        metadata={
            "help": "What an audio token is. direct: the projector's own vector, as in Ultravox. pieces: a mixture of "
            "the language model's embeddings, which it reads far sooner. direct when not given."
        },
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Rank of LoRA; 0 trains the projector alone; 16 when not given."}
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Scale of LoRA: its update counts alpha / rank; 32 when not given."}
    )
    lora_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout on LoRA's input; none when not given. It keeps a mask and a masked copy per layer."
        },
    )
    trainable: str = field(
        default=DEFAULT_TRAINABLE,
        metadata={
            "help": f"What trains: {', '.join(TRAINABLE)}. 'adapter' is projector and LoRA. With the language model "
            "itself (llm, all), a new model gets no LoRA unless --lora_rank is given, its answers to text change, and "
            "checkpoints are whole."
        },
    )

    def config_fields(self) -> dict[str, Any]:
        """What was given of the new model's configuration."""
        given = {name: getattr(self, name) for name in CONFIG_FIELDS}
        return {name: value for name, value in given.items() if value is not None}


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
class DataArguments(WaveformArguments, SourceArguments):
    """What to train on."""

    _argument_group_name = "data"

    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder for encoder output, shared by runs; 'off' encodes every batch anew."},
    )
    augment: bool = field(
        default=False, metadata={"help": "Vary the cached features anew in every batch: masks and tempo."}
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


@dataclass
class EvaluationArguments(TrainingArguments):
    """What evaluation by generation adds to transformers' `TrainingArguments`."""

    # None until they are checked, so that options that would do nothing are known from their defaults.
    eval_max_samples: int | None = field(
        default=None,
        metadata={
            "help": "Held-out rows that word error is scored on, evenly spaced over the file; "
            f"{EVALUATION_DEFAULTS['eval_max_samples']} when not given. The loss is that of all rows."
        },
    )
    eval_samples_shown: int | None = field(
        default=None,
        metadata={
            "help": "How many of them are printed and sent to trackers, reference beside what was heard; "
            f"{EVALUATION_DEFAULTS['eval_samples_shown']} when not given. eval_samples.jsonl has all."
        },
    )
    eval_max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Longest answer in tokens; {EVALUATION_DEFAULTS['eval_max_new_tokens']} when not given."},
    )
    eval_normaliser: str | None = field(
        default=None,
        metadata={
            "help": "What makes texts alike before words are compared: english (Whisper's normaliser), basic (any "
            "language with spaces: lower case, no punctuation) or none; english when not given."
        },
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": "What the best checkpoint is best by, for --load_best_model_at_end: loss or word_error."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in a row without a better --metric_for_best_model; never when not "
            "given. Needs --load_best_model_at_end."
        },
    )

    def infer_direction(self) -> None:
        """Makes less of a word error the better; transformers takes every metric but a loss for one to raise."""
        name = (self.metric_for_best_model or "").removeprefix("eval_")
        if name == WORD_ERROR and self.greater_is_better is None:
            self.greater_is_better = False

    def check_evaluation(self) -> None:
        """
        Refuses options of evaluation that contradict each other or would do nothing, and sets those not given.

        Raises:
            ValueError: they do.
        """
        for name, least in SMALLEST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; expected {least} or more.")
        if self.eval_normaliser not in (None, *NORMALISERS):
            raise ValueError(f"--eval_normaliser is {self.eval_normaliser!r}; expected one of {sorted(NORMALISERS)}.")
        metric = self.metric_for_best_model
        if metric is not None and metric.removeprefix("eval_") not in METRICS:
            raise ValueError(f"--metric_for_best_model is {metric!r}; expected one of {', '.join(METRICS)}.")
        if metric is not None and self.greater_is_better:
            raise ValueError(
                f"--greater_is_better contradicts --metric_for_best_model {metric}: less of it is better."
            )
        if self.eval_strategy == IntervalStrategy.NO:
            needing = [*EVALUATION_DEFAULTS, "metric_for_best_model", "early_stopping_patience"]
            given = [f"--{name}" for name in needing if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{', '.join(given)} need evaluation: give --eval_data_path and --eval_strategy.")
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "--early_stopping_patience needs --load_best_model_at_end: the run would end with the weights that "
                "had stopped getting better."
            )
        if self.eval_strategy != IntervalStrategy.NO:
            for name, default in EVALUATION_DEFAULTS.items():
                if getattr(self, name) is None:
                    setattr(self, name, default)


@dataclass
class AudioLlmTrainingArguments(EvaluationArguments, BudgetArguments):
    """transformers' `TrainingArguments`, with short names for the common ones and a rate for the projector."""

    _argument_group_name = "training"

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
    packing: bool = field(
        default=False,
        metadata={
            "help": "Join the examples of a batch into one row without padding, each attending to itself alone. The "
            "loss is the same; it saves time with --attn_implementation flash_attention_2."
        },
    )
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
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every batch reaches every weight that trains
        if self.label_smoothing_factor:
            # The Trainer's own smoothing takes this model's labels for shifted ones: it would learn to repeat tokens.
            raise ValueError("--label_smoothing_factor is not supported.")
        if self.use_wandb:
            if self.report_to not in (None, "wandb", ["wandb"]):
                raise ValueError(f"--use_wandb contradicts --report_to {self.report_to}; give one of them.")
            self.report_to = ["wandb"]
        if self.report_to is None:
            self.report_to = "none"
        check_trackers(self.report_to)
        if self.do_predict:
            raise ValueError("--do_predict does nothing here: `audiollm evaluate` and `audiollm generate` do it.")
        if self.enable_jit_checkpoint:
            raise ValueError("--enable_jit_checkpoint is not needed: SIGTERM always leaves a checkpoint behind.")
        self.check_budget(self.per_device_train_batch_size if self.batch_size is None else self.batch_size)
        for short, full in SHORT_NAMES.items():
            short_value, full_value = getattr(self, short), getattr(self, full)
            if None not in (short_value, full_value) and short_value != full_value:
                raise ValueError(f"--{short} {short_value} contradicts --{full} {full_value}; give one of them.")
            if short_value is not None and short_value <= 0:
                raise ValueError(f"--{short} is {short_value}; expected a positive number.")
            default = TrainingArguments.__dataclass_fields__[full].default
            chosen = (value for value in (short_value, full_value, default) if value is not None)
            setattr(self, full, next(chosen))
        self.infer_direction()
        super().__post_init__()


def trains(trainable: str, part: str) -> bool:
    """
    Whether a part trains: "projector", "lora", "audio" or "llm".

    Raises:
        ValueError: there is no such choice.
    """
    if trainable not in TRAINABLE:
        raise ValueError(f"--trainable is {trainable!r}; expected one of {', '.join(TRAINABLE)}.")
    return part in TRAINABLE[trainable]


def part_of(name: str) -> str:
    """The part that a weight belongs to, by its name in the model."""
    if "multi_modal_projector." in name or "audio_boundary_embeds" in name:
        return "projector"
    if ".lora_" in name:
        return "lora"
    return "audio" if "audio_tower." in name else "llm"


def set_trainable(model: PreTrainedModel, trainable: str) -> None:
    """
    Lets the weights of a choice require gradients, and no others.

    A base that trains is no longer the one its id names. The configuration forgets the id, so that from here on the
    model saves itself whole instead of as an adapter that would be put on the untrained base.

    Args:
        model: the [`AudioLlmForConditionalGeneration`], in place; what trains must be in float32.
        trainable: one of `TRAINABLE`.

    Raises:
        ValueError: there is no such choice, or nothing would train.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(trainable, part_of(name)) and NEVER_TRAINED not in name)
    for part, role in (("audio", "audio"), ("llm", "text")):
        if trains(trainable, part):
            setattr(model.config, f"{role}_model_id", None)
            setattr(model.config, f"{role}_model_revision", None)
            model.config.base_fingerprint.pop(role, None)
    model.train(model.training)  # the audio tower's mode follows whether it is frozen


def check_quantisation(load_in_8bit: bool, load_in_4bit: bool, llm_trains: bool, arguments: TrainingArguments) -> None:
    """
    Refuses what quantised layers cannot do.

    Raises:
        ValueError: both widths are asked for, the language model itself is to train, training is sharded, or
            bitsandbytes is not installed.
    """
    given = [name for name, asked in (("8bit", load_in_8bit), ("4bit", load_in_4bit)) if asked]
    if not given:
        return
    option = f"--load_in_{given[0]}"
    if len(given) > 1:
        raise ValueError("--load_in_8bit contradicts --load_in_4bit; give one of them.")
    if llm_trains:
        raise ValueError(f"{option} freezes the language model in few bits; --trainable cannot include it.")
    if asks_for_fsdp(arguments):
        raise ValueError(
            f"{option} cannot be sharded by FSDP. A quantised base is small: train it under DDP "
            "(training/distributed/ddp.yaml), or shard it without quantising."
        )
    if not is_bitsandbytes_available():
        raise ValueError(f"{option} needs bitsandbytes, which is not installed: pip install 'audiollm[quantised]'.")


def check_trackers(report_to: str | list[str]) -> None:
    """
    Raises:
        ValueError: a tracker is unknown, or its package is not installed.
    """
    available = get_available_reporting_integrations()
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"--report_to is {name!r}; expected none, all or some of {known}.")
        if name not in available:
            package = f"'audiollm[{name}]'" if name in TRACKER_EXTRAS else name
            raise ValueError(f"Logging to {name} needs its package, which is not installed: pip install {package}.")


def base_dtype(arguments: ModelArguments, training: AudioLlmTrainingArguments) -> torch.dtype:
    """
    Precision of the frozen bases.

    Raises:
        ValueError: it is none of the three, or a base trains, which only float32 is fine enough for.
    """
    if trains(arguments.trainable, "audio") or trains(arguments.trainable, "llm"):
        if arguments.base_dtype not in (None, "float32"):
            raise ValueError(
                f"--base_dtype {arguments.base_dtype} contradicts --trainable {arguments.trainable}: what trains is "
                "float32. Leave --base_dtype out; --bf16 computes in bfloat16 all the same."
            )
        return torch.float32
    if arguments.base_dtype is None:
        return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    if arguments.base_dtype not in BASE_DTYPES:
        raise ValueError(f"--base_dtype is {arguments.base_dtype!r}; expected one of {sorted(BASE_DTYPES)}.")
    return BASE_DTYPES[arguments.base_dtype]


def check_arguments(
    model: ModelArguments, data: DataArguments, training: AudioLlmTrainingArguments, stage: str = DEFAULT_STAGE
) -> None:
    """
    Refuses, before anything is read or loaded, what could only fail later or would silently do nothing.

    Raises:
        ValueError: options contradict each other, or this machine cannot do what one asks for.
        OSError: the output folder cannot be made or written.
    """
    base_dtype(model, training)
    check_distributed(training, stage)
    check_quantisation(model.load_in_8bit, model.load_in_4bit, trains(model.trainable, "llm"), training)
    _check_stage(stage, model, data, training)
    if model.model_path is not None and model.config_fields():
        given = ", ".join(f"--{name}" for name in model.config_fields())
        raise ValueError(
            f"{given} shape a new model, but --model_path goes on from one that has its own; leave them out."
        )
    if training.fp16 and training.device.type == "cpu":
        raise ValueError("--fp16 needs a GPU: its loss scaling does not run on a CPU. Use --bf16 here, or neither.")
    has_held_out, evaluates = data.eval_data_path is not None, training.eval_strategy != IntervalStrategy.NO
    if has_held_out != evaluates:
        raise ValueError(
            "--eval_data_path and --eval_strategy (epoch or steps) need each other; give both or neither."
        )
    if not data.data_path and stage != "read":
        raise ValueError("--data_path is needed: what to train on.")
    training.check_evaluation()
    data.check_sources(training, stage)
    if data.augment and data.feature_cache == CACHE_OFF:
        raise ValueError("--augment varies cached features; it contradicts --feature_cache off.")
    data.check_waveforms()
    if data.varied() and data.feature_cache == CACHE_OFF:
        raise ValueError(f"{data.varied()[0]} makes variants for the cache; it contradicts --feature_cache off.")
    if data.varied() and data.streaming:
        raise ValueError(f"{data.varied()[0]} makes variants ahead, of all recordings; it contradicts --streaming.")
    if trains(model.trainable, "audio"):
        _check_without_cache(model, data)
    if training.packing and stage != DEFAULT_STAGE:
        raise ValueError(f"--packing joins the examples of stage {DEFAULT_STAGE}; --stage {stage} needs them apart.")
    resume = training.resume_from_checkpoint
    if resume is not None and not Path(resume).is_dir():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {resume} is not a folder. Leave it out to go on from the newest checkpoint of "
            "--output_dir."
        )
    output_dir = Path(training.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"--output_dir {output_dir} cannot be made: {error}") from error
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise PermissionError(f"--output_dir {output_dir} cannot be written to.")


def _check_without_cache(model: ModelArguments, data: DataArguments) -> None:
    if data.feature_cache not in (None, CACHE_OFF):
        raise ValueError(
            f"--feature_cache {data.feature_cache} contradicts --trainable {model.trainable}: an encoder that trains "
            "gives other features after every step. Leave it out."
        )
    if data.augment:
        raise ValueError(f"--augment varies cached features; --trainable {model.trainable} cannot have any.")
    if data.varied():
        raise ValueError(
            f"{data.varied()[0]} makes variants for the feature cache; --trainable {model.trainable} cannot have one."
        )


def _check_stage(stage: str, model: ModelArguments, data: DataArguments, training: AudioLlmTrainingArguments) -> None:
    """What makes no sense in one of the stages, and why."""
    recomputes = training.gradient_checkpointing or getattr(training, "activation_checkpointing", False)
    trainable, rate = f"--trainable {model.trainable}", "--projector_learning_rate"
    if stage == "align":
        problems = {
            trainable: model.trainable != DEFAULT_TRAINABLE and "it trains the projector, always",
            "--feature_cache off": data.feature_cache == CACHE_OFF and "it trains on cached features",
            "--eval_data_path": data.eval_data_path is not None and "it does not evaluate; score what comes after it",
            "--push_to_hub": training.push_to_hub and "its checkpoints are no models; upload what it saves at its end",
            "--activation_checkpointing": recomputes and "it runs no layers that could be run again",
            rate: training.projector_learning_rate is not None and "--learning_rate is that rate",
        }
    elif stage == "read":
        other = trains(model.trainable, "llm") or trains(model.trainable, "audio")
        problems = {
            trainable: other
            and "posteriors are those of the projector and encoder as they are; lora or adapter trains",
            ", ".join(data.varied()): data.varied() and "--augment varies its recordings",
        }
    elif stage == "distill":
        problems = {trainable: trains(model.trainable, "llm") and "the language model is its teacher, and stays"}
    elif stage == "prefer":
        problems = {
            trainable: model.trainable != DEFAULT_TRAINABLE and "LoRA alone trains, the reference stays",
            rate: training.projector_learning_rate is not None and "the projector stays as it is",
            "--augment": data.augment and "both answers are about the recording as it is",
            ", ".join(data.varied()): data.varied() and "both answers are about the recording as it is",
        }
    else:
        problems = {}
    for option, reason in problems.items():
        if reason:
            raise ValueError(f"{option} contradicts --stage {stage}: {reason}.")
