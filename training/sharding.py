"""
Training over several processes: what the Trainer and accelerate need to know of a small adapter on large frozen bases.

Sharded training (FSDP2) wraps the language model's own layers, leaves the frozen audio tower whole, and saves what was
trained alone. All of it goes through accelerate; configurations for `accelerate launch` are in `training/distributed/`.
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
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

#: How `accelerate launch` tells the processes that it starts what its configuration file says.
FSDP_VARIABLE, FSDP_VERSION_VARIABLE = "ACCELERATE_USE_FSDP", "FSDP_VERSION"
EFFICIENT_LOADING_VARIABLE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
DEEPSPEED_VARIABLE, ZERO_STAGE_VARIABLE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"
FSDP_VERSION = 2
#: Its model is a projector, which it reads outside of any forward as well.
UNSHARDED_STAGE = "align"
MAX_ZERO_STAGE = 2
AUDIO_TOWER = "model.audio_tower"


def asks_for_fsdp(arguments: TrainingArguments) -> bool:
    """Whether `accelerate launch` or the command's `--fsdp` asks for sharding."""
    return bool(arguments.fsdp) or os.environ.get(FSDP_VARIABLE, "false").lower() == "true"


def check_distributed(arguments: TrainingArguments, stage: str | None = None) -> None:
    """
    Refuses kinds of sharding that an adapter on frozen bases cannot be trained under.

    Raises:
        ValueError: FSDP1, loading in one process only, or DeepSpeed's ZeRO-3 is asked for; or FSDP of the projector
            alone, in stage align.
    """
    if asks_for_fsdp(arguments):
        if stage == UNSHARDED_STAGE:
            raise ValueError(
                f"--stage {stage} trains the projector alone, which is too small to be sharded by FSDP. Run it in one "
                "process, or under DDP (training/distributed/ddp.yaml)."
            )
        chosen = arguments.fsdp_plugin_args or {}
        version = int(chosen.get("fsdp_version", os.environ.get(FSDP_VERSION_VARIABLE, "1")))
        if version != FSDP_VERSION:
            raise ValueError(
                f"FSDP {version} is asked for, but it cannot shard layers of which only LoRA trains. Set "
                f"fsdp_version: {FSDP_VERSION}, as training/distributed/fsdp2.yaml does."
            )
        loads_once = str(chosen.get("cpu_ram_efficient_loading", os.environ.get(EFFICIENT_LOADING_VARIABLE, "false")))
        if loads_once.lower() == "true":
            raise ValueError(
                "fsdp_cpu_ram_efficient_loading is not supported: an adapter is completed with its bases in every "
                "process. Set it to false."
            )
    if zero_stage(arguments) > MAX_ZERO_STAGE:
        raise ValueError(
            "DeepSpeed's ZeRO-3 is not supported: LoRA's weights are read outside of their own layers' forward, where "
            "ZeRO-3 does not gather them. Use ZeRO-2 (training/distributed/deepspeed_zero2.yaml), or, for a base that "
            "does not fit on one GPU, FSDP2 (training/distributed/fsdp2.yaml)."
        )


def zero_stage(arguments: TrainingArguments) -> int:
    """The stage of DeepSpeed's ZeRO that is asked for; 0 without DeepSpeed."""
    if getattr(arguments, "hf_deepspeed_config", None) is not None:
        stage = arguments.hf_deepspeed_config.get_value("zero_optimization.stage", 0)
    elif os.environ.get(DEEPSPEED_VARIABLE, "false").lower() == "true":
        stage = os.environ.get(ZERO_STAGE_VARIABLE, "0")
    else:
        return 0
    return int(stage) if str(stage).isdigit() else 0


def trained_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """
    What a model trains, whole, on the CPU.

    Where it is sharded, every process has to call this.
    """
    return {name: _whole(value) for name, value in model.named_parameters() if _is_saved(name, value)}


def _is_saved(name: str, parameter: torch.Tensor) -> bool:
    """Whether a checkpoint holds a weight: what trains, and the whole adapter even where some of it does not."""
    return parameter.requires_grad or is_adapter_key(name)


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    value = parameter.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def decoder_layer_names(model: PreTrainedModel) -> list[str]:
    """Class names of the language model's decoder layers, which are sharded one by one."""
    language_model = model.get_submodule("model.language_model")
    return sorted(getattr(language_model, "_no_split_modules", None) or [])


def load_trained(model: torch.nn.Module, folder: str) -> None:
    """
    Gives a sharded model the trained weights of a checkpoint folder.

    Raises:
        ValueError: the folder's weights are not those that this model trains.
    """
    state: dict[str, Any] = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    known = {name for name, parameter in model.named_parameters() if _is_saved(name, parameter)}
    if not trained <= state.keys() <= known:
        differ = sorted((trained - state.keys()) | (state.keys() - known))
        raise ValueError(
            f"{folder} holds {len(state)} trained weights and this run trains {len(trained)}; they differ in "
            f"{differ[:3]}. Resume with the options that the checkpoint was made with."
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the outermost weights whole, and loading would not reach the shards
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))
