"""The options of `audiollm train`: which models, what data, how to train; and what of them contradicts what."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from audiollm.checkpoints import LETTERS
from audiollm.command_line.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE
from audiollm.command_line.files import check_writable
from audiollm.command_line.option_parser import POSITIVE, CheckedOptions, one_of, option
from audiollm.corpora.normalisers import NORMALISERS
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_bitsandbytes_available

from .augmentation import WaveformAugmentation
from .batching import BatchBudget
from .rows import SHUFFLE_ROWS

CACHE_OFF = "off"
#: Beginnings of the names of options that shape a new model; a checkpoint has its own.
SHAPES = ("stack_factor", "projector_", "lora_")
BASE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Stage = Literal["align", "read", "instruct", "distill", "prefer"]
DEFAULT_STAGE: Stage = "instruct"
#: Values of `--trainable`, and the parts that train.
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
WORD_ERROR = "word_error"
#: Align reads the projector outside of any forward; prefer runs the model before it is sharded.
UNSHARDED_STAGES = ("align", "prefer")


class TrainingError(ValueError):
    """Model, data and folder do not fit together; the message says what to do."""


@dataclass
class StageArguments:
    """Options that choose the stage."""

    _argument_group_name = "stage"

    stage: Stage = option(
        DEFAULT_STAGE,
        "align: the projector alone, by CTC on transcripts. read: LoRA, on text alone, heard as the aligned projector "
        "would hear it. instruct: projector and LoRA, on responses. distill: answer speech as the base answers its "
        "transcript. prefer: prefer one response to another.",
    )
    config: str | None = option(
        None,
        "Recipe: a YAML file of options, or the name of a shipped one; the command line overrides it. By "
        "default the shipped recipe of the stage.",
    )


@dataclass
class ModelArguments(CheckedOptions):
    """Options of the model, and of the parts that train."""

    _argument_group_name = "model"
    GROUPS = {
        "adapter": (
            *("stack_factor", "projector_type", "projector_hidden_size", "projector_context_layers"),
            *("projector_readout", "projector_letters", "projector_letter_width", "projector_letter_layers"),
            *("lora_rank", "lora_alpha", "lora_dropout", "trainable"),
        )
    }

    llama_path: str | None = option(
        None,
        f"Language model: a Hub id, a folder, or an embedded base; {DEFAULT_TEXT_BASE} when not given. With --model_path: "
        "where the checkpoint's own lies now.",
    )
    whisper_path: str | None = option(
        None,
        f"Whisper (or Wav2Vec2-BERT), named in the same way; {DEFAULT_AUDIO_BASE} when not given. With --model_path: "
        "where the checkpoint's own lies now.",
    )
    model_path: str | None = option(None, "AudioLLM checkpoint to go on from, instead of starting from two bases.")
    base_dtype: Annotated[str, one_of(BASE_DTYPES)] | None = option(
        None,
        "Precision of the frozen bases: float32, bfloat16 or float16; that of --bf16 or --fp16, else float32, when not "
        "given. What trains is always float32.",
    )
    load_in_8bit: bool = option(False, "Hold the frozen language model's layers in 8 bits, through bitsandbytes.")
    load_in_4bit: bool = option(False, "Hold the frozen language model's layers in 4 bits (QLoRA's nf4).")
    attn_implementation: str | None = option(None, "Attention kernels: sdpa, eager or flash_attention_2.")
    stack_factor: int | None = option(None, "20 ms frames per audio token: 2 is 40 ms; 4 (80 ms) when not given.")
    projector_type: str | None = option(None, "swiglu, mlp or linear; swiglu when not given.")
    projector_hidden_size: int | None = option(None, "Projector's inner width; four times the model's when not given.")
    projector_context_layers: int | None = option(
        None, "Blocks that let an audio token see its neighbours (gated convolutions); 0 when not given."
    )
    projector_readout: str | None = option(
        None,
        "direct: an audio token is the projector's own vector, as in Ultravox. pieces: it is a mixture of the language "
        "model's embeddings, which it reads far sooner. direct when not given.",
    )
    projector_letters: str | None = option(
        None,
        "Letters of a second CTC readout, which spells what is heard for n-best rescoring, such as "
        '"abcdefghijklmnopqrstuvwxyz\'"; none when not given. Only stage align trains it.',
    )
    projector_letter_width: int | None = option(None, "Width of the readout of letters; 320 when not given.")
    projector_letter_layers: int | None = option(None, "Gated convolutions of that readout; 3 when not given.")
    lora_rank: int | None = option(None, "Rank of LoRA; 0 trains the projector alone; 16 when not given.")
    lora_alpha: float | None = option(None, "Scale of LoRA: its update counts alpha / rank; 32 when not given.")
    lora_dropout: float | None = option(None, "Dropout on LoRA's input, which takes memory; none when not given.")
    trainable: Annotated[str, one_of(TRAINABLE)] = option(
        DEFAULT_TRAINABLE,
        f"Parts that train: {', '.join(TRAINABLE)}. 'adapter' is projector and LoRA. With the language model itself (llm, "
        "all), a new model gets no LoRA unless --lora_rank is given, its answers to text change, and checkpoints are whole.",
    )

    def config_fields(self) -> dict[str, Any]:
        """Return the options given for the new model's configuration."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name.startswith(SHAPES)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class DataArguments(WaveformAugmentation):
    """Options of the data."""

    _argument_group_name = "data"

    data_path: list[str] = option(
        [],
        "One or several of: a JSON list, *.jsonl or *.parquet of {text with <audio>, audio_paths or audio, response} or "
        "{messages}; a folder of Parquet files, or that save_to_disk wrote; hub:org/name?config=C&split=S&revision=R.",
    )
    data_weights: list[float] | None = option(
        None,
        "Share of each data_path in the rows of an epoch, which is as long as it takes for every example to come at least "
        "once. Without it, each comes exactly once.",
    )
    audio_dir: str | None = option(None, "Folder that relative audio paths start from; by default the data file's.")
    on_bad_example: Literal["error", "skip"] = option(
        "error", "error: list all bad examples and stop. skip: list them, and train on the others."
    )
    streaming: bool = option(
        False, "Read examples as they are needed, without counting or checking them; needs --max_steps."
    )
    shuffle_rows: int = option(SHUFFLE_ROWS, "With --streaming: rows that are held to draw from; 0 for none.")
    eval_data_path: str | None = option(None, "Held-out examples, in a form of data_path, for --eval_strategy.")
    feature_cache: str | None = option(
        None, "Folder for encoder output, shared by runs; 'off' encodes each batch anew."
    )
    augment: bool = option(False, "Vary the cached features anew in every batch: masks and tempo.")
    waveform_variants: Annotated[int, POSITIVE] = option(
        3,
        "Variants of each recording that --speed and the like make. The encoder runs once for each, and the cache grows by "
        "as many times.",
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.data_path, str):
            self.data_path = [self.data_path]


@dataclass
class AudioLlmTrainingArguments(CheckedOptions, TrainingArguments):
    """transformers' `TrainingArguments`, with short names for the common ones and a rate for the projector."""

    _argument_group_name = "training"
    GROUPS = {
        "optimisation": (
            *("batch_size", "max_tokens_per_batch", "num_epochs", "learning_rate", "projector_learning_rate"),
            *("train_sampling_strategy", "packing", "lr_scheduler_type", "warmup_steps"),
        ),
        "evaluation": (
            *("eval_max_samples", "eval_samples_shown", "eval_max_new_tokens", "eval_normaliser"),
            *("metric_for_best_model", "early_stopping_patience"),
        ),
    }

    output_dir: str = option("runs/train", "Folder for checkpoints and the trained adapter.")
    batch_size: Annotated[int, POSITIVE] | None = option(
        None, "Examples per device and step, whatever the next two say; short for --per_device_train_batch_size."
    )
    max_tokens_per_batch: Annotated[int, POSITIVE] | None = option(
        None,
        "Instead of --batch_size: tokens per device and batch, audio and padding included, in batches of like length.",
    )
    num_epochs: Annotated[float, POSITIVE] | None = option(None, "Passes over the data; short for --num_train_epochs.")
    use_wandb: bool = option(False, "Log to Weights & Biases; short for --report_to wandb.")
    learning_rate: float = option(2e-4, "Peak learning rate of LoRA.")
    projector_learning_rate: float | None = option(
        None, "Peak learning rate of projector and boundary vectors; that of LoRA when not given."
    )
    remove_unused_columns: bool = option(False, "Must stay off: the collator reads columns that the model does not.")
    train_sampling_strategy: str = option("group_by_length", "Batches of like length, so that little is padded.")
    length_column_name: str = option("length", "Column that holds the tokens per example.")
    packing: bool = option(
        False,
        "Join the examples of a batch into one row without padding, each attending to itself alone: the same loss, in "
        "less time with --attn_implementation flash_attention_2.",
    )
    save_total_limit: int | None = option(2, "How many checkpoints to keep.")
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rates.")
    warmup_steps: float = option(0.03, "Steps of warm-up, or their share when below 1.")
    logging_steps: float = option(10, "Log every so many steps.")
    report_to: None | str | list[str] = option(  # noqa: RUF036 - the order that HfArgumentParser can read
        None, "Tracker to log to, such as tensorboard; none when not given."
    )
    hub_strategy: Annotated[str, one_of(["end"])] = option(
        "end", "When --push_to_hub uploads: only at the end, since checkpoints on the way hold your token."
    )
    eval_max_samples: int = option(
        100, "Held-out rows that word error is scored on, evenly spaced over the file. The loss is that of all rows."
    )
    eval_samples_shown: int = option(5, "How many of their answers are printed. eval_samples.jsonl has all.")
    eval_max_new_tokens: int = option(200, "Longest answer in tokens; 30 s of fast speech are about 100 words.")
    eval_normaliser: Annotated[str, one_of(NORMALISERS)] = option(
        "english",
        "Normaliser of texts whose words are compared: english (Whisper's), basic (any language with spaces: lower case, no "
        "punctuation) or none.",
    )
    metric_for_best_model: str | None = option(None, "Metric of --load_best_model_at_end: loss or word_error.")
    early_stopping_patience: int | None = option(
        None,
        "Stop after so many evaluations without a better --metric_for_best_model. Needs --load_best_model_at_end.",
    )

    def __post_init__(self):
        self.remove_unused_columns = False
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, --bf16 is refused
            self.dataloader_pin_memory = False
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every batch reaches every weight that trains
        if self.label_smoothing_factor:
            # The Trainer's own smoothing takes this model's labels for shifted ones: it would learn to repeat tokens.
            raise ValueError("--label_smoothing_factor is not supported.")
        if self.batch_size is not None:
            self.per_device_train_batch_size = self.batch_size
        if self.num_epochs is not None:
            self.num_train_epochs = self.num_epochs
        if self.report_to is None:
            self.report_to = ["wandb"] if self.use_wandb else "none"
        if (self.metric_for_best_model or "").removeprefix("eval_") == WORD_ERROR:
            self.greater_is_better = False  # transformers takes every metric but a loss for one to raise
        CheckedOptions.__post_init__(self)
        TrainingArguments.__post_init__(self)

    def batch_budget(self, packed: bool = False) -> BatchBudget | None:
        """Return the bounds of a batch, its rows packed or padded; None where it is a number of rows."""
        if self.batch_size is not None or self.max_tokens_per_batch is None:
            return None
        return BatchBudget(self.max_tokens_per_batch, packed)


def trains(trainable: str, part: str) -> bool:
    """Return whether a part trains: "projector", "lora", "audio" or "llm"."""
    return part in TRAINABLE[trainable]


def part_of(name: str) -> str:
    """Return the part that a weight belongs to, by its name in the model."""
    if "multi_modal_projector." in name or "audio_boundary_embeds" in name:
        return "projector"
    if ".lora_" in name:
        return "lora"
    return "audio" if "audio_tower." in name else "llm"


def set_trainable(model: PreTrainedModel, trainable: str) -> None:
    """Make the weights of one of `TRAINABLE` require gradients alone; a base that trains is forgotten, and saved whole."""
    for name, parameter in model.named_parameters():
        own_part = trains(trainable, part_of(name))
        parameter.requires_grad_(own_part and NEVER_TRAINED not in name and LETTERS not in name)
    for part, role in (("audio", "audio"), ("llm", "text")):
        if trains(trainable, part):
            setattr(model.config, f"{role}_model_id", None)
            setattr(model.config, f"{role}_model_revision", None)
            model.config.base_fingerprint.pop(role, None)
    model.train(model.training)  # the audio tower's mode follows whether it is frozen


def asks_for_fsdp(arguments: TrainingArguments) -> bool:
    """Return whether `accelerate launch` or `--fsdp` asks for sharding."""
    return bool(arguments.fsdp) or _launched_with("ACCELERATE_USE_FSDP")


def _launched_with(variable: str) -> bool:
    """Return whether `accelerate launch` has set a variable, as its configuration file says."""
    return os.environ.get(variable, "false").lower() == "true"


def check_distributed(arguments: TrainingArguments, stage: str | None = None) -> None:
    """Raise ValueError for FSDP1, ZeRO-3, loading in one process, and FSDP in a stage that does not shard."""
    if asks_for_fsdp(arguments):
        chosen = arguments.fsdp_plugin_args or {}
        version = int(chosen.get("fsdp_version", os.environ.get("FSDP_VERSION", "1")))
        if stage in UNSHARDED_STAGES:
            raise ValueError(f"--stage {stage} is not sharded by FSDP. Run it by training/distributed/ddp.yaml.")
        if version != 2:
            raise ValueError(f"FSDP {version} cannot shard layers of which only LoRA trains. Set fsdp_version: 2.")
        if chosen.get("cpu_ram_efficient_loading", _launched_with("FSDP_CPU_RAM_EFFICIENT_LOADING")):
            raise ValueError("fsdp_cpu_ram_efficient_loading is not supported; set it to false.")
    deepspeed = getattr(arguments, "hf_deepspeed_config", None)
    launched = _launched_with("ACCELERATE_USE_DEEPSPEED") and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if str(launched if deepspeed is None else deepspeed.get_value("zero_optimization.stage", 0)) == "3":
        raise ValueError("DeepSpeed's ZeRO-3 is not supported. Use ZeRO-2 or FSDP2 (training/distributed/).")


def check_quantisation(model: ModelArguments, arguments: TrainingArguments) -> None:
    """Raise ValueError for what quantised layers cannot do, or where bitsandbytes is not installed."""
    if not (model.load_in_8bit or model.load_in_4bit):
        return
    option = "--load_in_8bit" if model.load_in_8bit else "--load_in_4bit"
    if model.load_in_8bit and model.load_in_4bit:
        raise ValueError("--load_in_8bit contradicts --load_in_4bit; give one of them.")
    if trains(model.trainable, "llm"):
        raise ValueError(f"{option} freezes the language model in few bits; --trainable cannot include it.")
    if asks_for_fsdp(arguments):
        raise ValueError(f"{option} cannot be sharded by FSDP; train under DDP (training/distributed/ddp.yaml).")
    if not is_bitsandbytes_available():
        raise ValueError(f"{option} needs bitsandbytes, which is not installed: pip install 'audiollm[quantised]'.")


def base_dtype(arguments: ModelArguments, training: AudioLlmTrainingArguments) -> torch.dtype:
    """Return the precision of the frozen bases; bases that train are float32."""
    if trains(arguments.trainable, "audio") or trains(arguments.trainable, "llm"):
        return torch.float32
    if arguments.base_dtype is None:
        return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    return BASE_DTYPES[arguments.base_dtype]


def check_arguments(
    model: ModelArguments, data: DataArguments, training: AudioLlmTrainingArguments, stage: str = DEFAULT_STAGE
) -> None:
    """Refuse by ValueError or OSError, before anything is loaded, what could only fail later or would do nothing."""
    check_distributed(training, stage)
    check_quantisation(model, training)
    if model.model_path is not None and model.config_fields():
        given = ", ".join(f"--{name}" for name in model.config_fields())
        raise ValueError(f"{given} shape a new model; --model_path has one of its own. Leave them out.")
    if training.fp16 and training.device.type == "cpu":
        raise ValueError("--fp16 needs a GPU: its loss scaling does not run on a CPU. Use --bf16 here, or neither.")
    if (data.eval_data_path is not None) != (training.eval_strategy != IntervalStrategy.NO):
        raise ValueError("--eval_data_path and --eval_strategy (epoch or steps) need each other.")
    if not data.data_path and stage != "read":
        raise ValueError("--data_path is needed: what to train on.")
    weights = data.data_weights
    if weights is not None and (len(weights) != len(data.data_path) or min(weights) <= 0):
        raise ValueError(f"--data_weights are {weights}; expected a positive number for each --data_path.")
    if data.streaming and training.max_steps <= 0:
        raise ValueError("--streaming cannot count its examples: say how long to train with --max_steps.")
    resume = training.resume_from_checkpoint
    if resume is not None and not Path(resume).is_dir():
        raise FileNotFoundError(f"--resume_from_checkpoint {resume} is not a folder.")
    waveforms = ", ".join(data.waveform_options())
    varied = "--augment" if data.augment else waveforms
    audio_trains, llm_trains = trains(model.trainable, "audio"), trains(model.trainable, "llm")
    is_cached, is_default = data.feature_cache != CACHE_OFF and not audio_trains, model.trainable == DEFAULT_TRAINABLE
    names_cache = data.feature_cache not in (None, CACHE_OFF)
    trainable, one_file = f"--trainable {model.trainable}", stage in ("distill", "prefer")
    is_instruct, by_budget = stage == DEFAULT_STAGE, training.batch_budget() is not None
    on_a_gpu = training.dataloader_num_workers and (names_cache or varied) and training.device.type != "cpu"
    workers = "--dataloader_num_workers with --streaming and a feature cache"
    rules: list[tuple[Any, str, str]] = [
        (stage == "align" and not is_default, trainable, "it trains the projector"),
        (stage == "align" and not is_cached, "--feature_cache off", "it trains on cached features"),
        (stage == "align" and data.eval_data_path is not None, "--eval_data_path", "it does not evaluate"),
        (stage == "align" and training.push_to_hub, "--push_to_hub", "push what comes after it"),
        (data.streaming and waveforms, f"{waveforms} with --streaming", "variants are made ahead, of all recordings"),
        (data.streaming and by_budget, "a batch budget with --streaming", "it needs the lengths of all rows"),
        (data.streaming and on_a_gpu, workers, "its workers cannot encode on a GPU"),
        (data.streaming and not is_instruct, "--streaming", "it reads all rows ahead"),
        (weights is not None and not is_instruct, "--data_weights", "it reads each row once"),
        (training.packing and not is_instruct, "--packing", "its rows stay apart"),
        (by_budget and stage not in (DEFAULT_STAGE, "read"), "a batch budget", "its batches are so many rows"),
        (one_file and len(data.data_path) > 1, "several --data_path", "it reads one file"),
        (stage == "read" and (audio_trains or llm_trains), trainable, "posteriors are those of the frozen parts"),
        (stage == "read" and waveforms, waveforms, "--augment varies its recordings"),
        (stage == "distill" and llm_trains, trainable, "the language model is its teacher"),
        (stage == "prefer" and not is_default, trainable, "it trains LoRA"),
        (stage == "prefer" and varied, varied, "both answers are about the recording as it is"),
        (audio_trains and names_cache, f"--feature_cache with {trainable}", "features change after every step"),
        (not is_cached and varied, f"{varied} without a feature cache", "it varies what is in the cache"),
    ]
    for applies, given, reason in rules:
        if applies:
            raise ValueError(f"--stage {stage} cannot have {given}: {reason}.")
    check_writable(training.output_dir)
