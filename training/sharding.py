"""
Training in several processes, through accelerate; configurations for `accelerate launch` are in `training/distributed/`.

FSDP2 shards the language model's layers, leaves the frozen audio tower whole, and saves trained weights only.
"""

import os
from pathlib import Path
from typing import Any

import torch
from audiollm.checkpoints import is_adapter_key
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

#: How `accelerate launch` tells the processes that it starts what its configuration file says.
FSDP_VARIABLE, FSDP_VERSION_VARIABLE = "ACCELERATE_USE_FSDP", "FSDP_VERSION"
EFFICIENT_LOADING_VARIABLE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
DEEPSPEED_VARIABLE, ZERO_STAGE_VARIABLE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"
FSDP_VERSION = 2
#: Align reads the projector outside of any forward; prefer runs the model before it is sharded.
UNSHARDED_STAGES = ("align", "prefer")
MAX_ZERO_STAGE = 2
AUDIO_TOWER = "model.audio_tower"


def asks_for_fsdp(arguments: TrainingArguments) -> bool:
    """Return whether `accelerate launch` or `--fsdp` asks for sharding."""
    return bool(arguments.fsdp) or os.environ.get(FSDP_VARIABLE, "false").lower() == "true"


def check_distributed(arguments: TrainingArguments, stage: str | None = None) -> None:
    """
    Refuse kinds of sharding that an adapter on frozen bases cannot be trained under.

    Raises:
        ValueError: FSDP1, loading in one process only, or DeepSpeed's ZeRO-3 is asked for; or FSDP in a stage that does
            not shard.
    """
    if asks_for_fsdp(arguments):
        chosen = arguments.fsdp_plugin_args or {}
        version = int(chosen.get("fsdp_version", os.environ.get(FSDP_VERSION_VARIABLE, "1")))
        loads_once = str(chosen.get("cpu_ram_efficient_loading", os.environ.get(EFFICIENT_LOADING_VARIABLE, "false")))
        if stage in UNSHARDED_STAGES:
            raise ValueError(
                f"--stage {stage} is not sharded by FSDP. Run it under DDP (training/distributed/ddp.yaml)."
            )
        if version != FSDP_VERSION:
            raise ValueError(
                f"FSDP {version} cannot shard layers of which only LoRA trains. Set fsdp_version: {FSDP_VERSION}."
            )
        if loads_once.lower() == "true":
            raise ValueError("fsdp_cpu_ram_efficient_loading is not supported; set it to false.")
    if zero_stage(arguments) > MAX_ZERO_STAGE:
        raise ValueError(
            "DeepSpeed's ZeRO-3 is not supported: LoRA is computed outside of its own layers' forward. Use ZeRO-2 or FSDP2 "
            "(training/distributed/)."
        )


def zero_stage(arguments: TrainingArguments) -> int:
    """Return the stage of DeepSpeed's ZeRO that is asked for; 0 without DeepSpeed."""
    if getattr(arguments, "hf_deepspeed_config", None) is not None:
        stage = arguments.hf_deepspeed_config.get_value("zero_optimization.stage", 0)
    elif os.environ.get(DEEPSPEED_VARIABLE, "false").lower() == "true":
        stage = os.environ.get(ZERO_STAGE_VARIABLE, "0")
    else:
        return 0
    return int(stage) if str(stage).isdigit() else 0


def trained_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return trained weights and the adapter, gathered on the CPU; all processes of a sharded model must call this."""
    saved = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or is_adapter_key(n)}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).cpu() for n, p in saved.items()}


def load_trained(model: torch.nn.Module, folder: str) -> None:
    """Load the trained weights of a checkpoint folder into a sharded model."""
    state: dict[str, Any] = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the outermost weights whole, and loading would not reach the shards
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))
