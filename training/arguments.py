"""The options of `audiollm train`: which models, what data, how to train; and what of them contradicts what."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from audiollm.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE
from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy

from .evaluation_arguments import EvaluationArguments
from .quantised import check_quantisation
from .sharding import check_distributed
from .source_arguments import BudgetArguments, SourceArguments
from .trainable import DEFAULT_TRAINABLE, TRAINABLE, trains
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
