"""Start of every stage: model and processor, frozen but for what trains; the output folder; the cache."""

from dataclasses import dataclass
from typing import Any

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.base_models import EMBEDDED_PREFIX, how_to_get
from audiollm.command_line.cpu_speed import use_cpu_speed
from audiollm.command_line.embedded_bases import DEFAULT_AUDIO_BASE, DEFAULT_TEXT_BASE, fetch
from audiollm.command_line.machine import quantisation
from transformers import set_seed

from .arguments import (
    CACHE_OFF,
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    TrainingError,
    asks_for_fsdp,
    base_dtype,
    set_trainable,
    trains,
)
from .checkpointing import claim_folder
from .feature_cache import FeatureCache


@dataclass
class Prepared:
    """Model, processor, cache and arguments of a stage."""

    model: AudioLlmForConditionalGeneration
    processor: AudioLlmProcessor
    cache: FeatureCache | None  # None where every batch is encoded anew
    arguments: AudioLlmTrainingArguments
    text_reference: str = "the base"  # what answers to text are compared with after the stage, in words
    source: str | None = None  # the checkpoint that the stage goes on from

    @property
    def progress(self) -> bool:
        """Return whether progress bars are shown."""
        return not self.arguments.disable_tqdm

    def for_trainer(self) -> dict[str, Any]:
        """Return the arguments that all Trainers take."""
        return {"model": self.model, "args": self.arguments, "processing_class": self.processor}


def load_model(
    arguments: ModelArguments, dtype: torch.dtype
) -> tuple[AudioLlmForConditionalGeneration, AudioLlmProcessor]:
    """Load model and processor: composed of two bases, or a checkpoint. Raises TrainingError where that cannot be done."""
    common: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": arguments.attn_implementation,
        "quantization_config": quantisation(arguments.load_in_8bit, arguments.load_in_4bit, dtype),
    }
    path, audio_base, text_base = arguments.model_path, arguments.whisper_path, arguments.llama_path
    if path is not None:
        given = [f"--{name}" for name in ("llama_path", "whisper_path") if getattr(arguments, name) is not None]
        try:
            holds = AudioLlmConfig.from_pretrained(path).weight_format
            if holds == "adapter" or not given:
                common |= {"audio_model_id": audio_base, "text_model_id": text_base}
                model = AudioLlmForConditionalGeneration.from_pretrained(path, **common)
                return model, AudioLlmProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            advice = "" if "hf download" in str(error) else how_to_get(path)
            raise TrainingError(f"--model_path {path} cannot be loaded: {error}{advice}") from error
        raise TrainingError(
            f"{' and '.join(given)} cannot go with --model_path {path}: it is {holds!r}, with its bases."
        )
    audio_base, text_base = audio_base or DEFAULT_AUDIO_BASE, text_base or DEFAULT_TEXT_BASE
    for base in (audio_base, text_base):
        if base.startswith(EMBEDDED_PREFIX):
            fetch(base)
    shape = arguments.config_fields()
    if trains(arguments.trainable, "llm"):
        shape.setdefault("lora_rank", 0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(audio_base, text_base, **shape, **common)
    processor = AudioLlmProcessor.from_audio_text_pretrained(
        audio_base, text_base, stack_factor=model.config.stack_factor
    )
    return model, processor


def caches_features(data: DataArguments, trainable: str, stage: str, device: str) -> bool:
    """Return whether the encoder's output is cached. A GPU encodes in the step: a quarter more work, and no disk."""
    if data.feature_cache == CACHE_OFF or trains(trainable, "audio"):
        return False
    needed = stage in ("align", "read") or data.augment or bool(data.waveform_options())
    return needed or data.feature_cache is not None or device == "cpu"


def prepare(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: AudioLlmTrainingArguments,
    stage: str,
) -> Prepared:
    """Load model and processor, claim the output folder, and open the cache. Raises TrainingError where one fails."""
    set_seed(training_arguments.seed)
    try:
        model, processor = load_model(model_arguments, base_dtype(model_arguments, training_arguments))
    except ValueError as error:  # of a checkpoint or base that cannot be used
        raise TrainingError(str(error)) from error
    if getattr(model, "hf_device_map", None) is None:
        # Where it also encodes what the cache lacks; a language model that is to be sharded may not fit there whole.
        moved: torch.nn.Module = model.model.audio_tower if asks_for_fsdp(training_arguments) else model
        moved.to(training_arguments.device)
    use_cpu_speed(model)
    is_base = model.config.text_model_id is not None and model.config.weight_format != "merged"
    trainable = "projector" if stage == "align" else model_arguments.trainable
    set_trainable(model, trainable)
    if training_arguments.should_save:
        model.print_trainable_parameters()
        claim_folder(training_arguments.output_dir, {"stage": stage, "trainable": trainable})
    cache = None
    if caches_features(data_arguments, trainable, stage, training_arguments.device.type):
        cache = FeatureCache(model, processor, data_arguments.feature_cache)
    elif training_arguments.should_save:
        print("There is no feature cache: every batch is encoded anew.")
    reference = "the base" if is_base else "the model that the stage began with"
    return Prepared(model, processor, cache, training_arguments, reference, model_arguments.model_path)
