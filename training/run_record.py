"""Facts that only a run knows, for its record and model card; and how far it moved the answers to text alone."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from audiollm.publishing.record import (
    add_run,
    command_line,
    describe_file,
    library_versions,
    machine_facts,
    package_facts,
    peak_memory_mib,
    shown_path,
)
from transformers import PreTrainedModel

from .preparing import Prepared

#: Options that say where things lie or what is shown, or that have a place of their own in the record.
NOT_HYPERPARAMETERS = {
    *("output_dir", "logging_dir", "data_path", "audio_dir", "feature_cache", "eval_data_path", "config", "stage"),
    *("hub_token", "push_to_hub_token", "hub_model_id", "push_to_hub", "resume_from_checkpoint", "disable_tqdm"),
    *("report_to", "run_name", "use_cpu", "dataloader_pin_memory", "logging_steps", "batch_size", "num_epochs"),
    *("use_wandb", "length_column_name", "ddp_find_unused_parameters"),
}
#: Hyper-parameters that are written down even where they are the defaults.
ALWAYS = {"learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "seed", "lr_scheduler_type"}


def record_run(
    prepared: Prepared, stage: str, arguments: Sequence[Any], started: float, outcome: Mapping[str, Any]
) -> None:
    """Write the training record; `arguments` are of model, data, training and the stage, `outcome` has the run's figures."""
    model_arguments, data_arguments, training_arguments, _ = arguments
    base = str(prepared.model.dtype).removeprefix("torch.")
    mixed = "bfloat16" if training_arguments.bf16 else "float16" if training_arguments.fp16 else "float32"
    run = {
        "stage": stage,
        "command": command_line(),
        "starts_from": None if model_arguments.model_path is None else shown_path(model_arguments.model_path),
        "data": [describe_file(path) for path in data_arguments.data_path],
        **outcome,
        "hyperparameters": hyperparameters(arguments),
        "trainable_parameters": prepared.model.num_parameters(only_trainable=True),
        "precision": f"bases {base}, what trains float32, computed in {mixed}",
        "processes": training_arguments.world_size,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mib": round(peak_memory_mib()),
        "machine": machine_facts(),
        "versions": library_versions(),
        "audiollm": package_facts(),
    }
    add_run(str(training_arguments.output_dir), run, model_arguments.model_path)


def hyperparameters(groups: Sequence[Any]) -> dict[str, Any]:
    """Return options that are not the defaults, and those of `ALWAYS`, as JSON; no paths and no secrets."""
    chosen: dict[str, Any] = {}
    for group, field in [(each, field) for each in groups if is_dataclass(each) for field in fields(each)]:
        name, value = field.name, getattr(group, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if name in NOT_HYPERPARAMETERS or name.startswith(("_", "hub_", "logging_")):
            continue
        if name in ALWAYS or value != default:
            value = shown_path(value) if isinstance(value, str) else value
            plain = value is None or isinstance(value, (bool, int, float, list, dict))
            chosen[name] = value if plain else str(getattr(value, "value", value))
    return chosen


#: Text of several kinds; what matters is that it is always the same.
PROBES = (
    "The capital of France is Paris, and its river is the Seine.",
    "def add(a, b):\n    return a + b\n",
    "In 1969, 2 people walked on the Moon; 10 more followed by 1972.",
)


@torch.no_grad()
def text_logits(model: PreTrainedModel, tokenizer) -> list[torch.Tensor]:
    """Return the logits `(tokens, vocab_size)` of each probe, a text without audio, on the CPU."""
    was_training = model.training
    model.eval()
    logits = []
    for text in PROBES:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        # The class's own forward: the Trainer may have wrapped the model's in autocast, which rounds.
        logits.append(type(model).forward(model, input_ids=ids).logits[0].float().cpu())
    model.train(was_training)
    return logits


def drift(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Return the largest absolute difference of two results of [`text_logits`]; 0 only where every bit is the same."""
    if all(torch.equal(first, second) for first, second in zip(before, after, strict=True)):
        return 0.0
    largest = max(float((first - second).abs().max()) for first, second in zip(before, after))
    return largest or float("nan")  # minus zero against zero, or not a number: different, however small


def describe_drift(value: float, reference: str = "the base") -> str:
    """Return the line that a stage ends with."""
    if value == 0:
        return f"Text-only logits are those of {reference}, bit for bit: largest difference 0."
    return f"Text-only logits have drifted from {reference}: largest difference {value:.4g}."
