"""Checkpoints of a few MB: how the frozen bases are loaded and recognised, and the code a folder carries."""

import copy
import hashlib
import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import logging

from .audio_towers import audio_tower_class
from .base_models import naming_base, resolve_base
from .configuration_audiollm import AudioLlmConfig
from .language_head import check_language_model
from .lora import is_target, merged_weight
from .safe_loading import check_encoder

logger = logging.get_logger(__name__)

#: How many elements of each base weight go into the fingerprint.
FINGERPRINT_SAMPLES = 64
#: Where the encoder lies in checkpoints of the whole model, by `model_type`.
ENCODER_KEYS = {"whisper": {r"^(model\.)?encoder\.": ""}, "wav2vec2-bert": {r"^wav2vec2_bert\.": ""}}
#: Arguments of `from_pretrained` that say where files are; the bases are fetched with the same ones.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "proxies")
MERGED_SUFFIX = ".base_layer.weight"


def recorded_base_id(model_id: str) -> str:
    """How a base id is written into a checkpoint: folders by their absolute path, other ids as they are."""
    return os.path.abspath(model_id) if os.path.isdir(model_id) else model_id


def load_audio_base(
    model_id: str, audio_config: Any, revision: str | None = None, **hub_arguments
) -> dict[str, torch.Tensor]:
    """State dict of the speech encoder `model_id` in its stored precision, keys relative to the encoder."""
    config = copy.deepcopy(audio_config)
    config.dtype = None  # that of a checkpoint, which "auto" would load the base in, as well as its fingerprint
    base = resolve_base(model_id, "audio")
    with naming_base(model_id, "audio"):
        check_encoder(base, config, model_id, revision=revision or "main", **hub_arguments)
        tower = audio_tower_class(config).from_pretrained(
            base,
            config=config,
            revision=revision or "main",
            use_safetensors=True,
            key_mapping=ENCODER_KEYS[audio_config.model_type],
            dtype="auto",
            **hub_arguments,
        )
    return tower.state_dict()


def load_text_base(
    model_id: str, revision: str | None = None, check_head: bool = False, **hub_arguments
) -> dict[str, torch.Tensor]:
    """
    State dict of the causal language model `model_id` in its stored precision.

    Keys are those of AudioLLM: `model.language_model.…` and `lm_head.…` (absent where it is tied).

    Raises:
        ValueError: with `check_head`, when AudioLLM would not give this model's logits.
    """
    base = resolve_base(model_id, "text")
    with naming_base(model_id, "text"):
        causal_lm = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision or "main",
            dtype="auto",
            trust_remote_code=False,
            use_safetensors=True,
            **hub_arguments,
        )
    if check_head:
        check_language_model(causal_lm)
    state = {f"model.language_model.{key}": value for key, value in causal_lm.base_model.state_dict().items()}
    if not causal_lm.config.tie_word_embeddings:
        head = causal_lm.get_output_embeddings()
        state.update({f"lm_head.{key}": value for key, value in head.state_dict().items()})
    return state


def load_bases(config, check_head: bool = False, **hub_arguments) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    The frozen weights an adapter checkpoint is rebuilt from.

    Returns:
        The state dict under the composite's names, where layers with LoRA hold theirs as `….base_layer.weight`, and
        the fingerprints `{"audio": ..., "text": ...}`.
    """
    audio = load_audio_base(config.audio_model_id, config.audio_config, config.audio_model_revision, **hub_arguments)
    text = load_text_base(config.text_model_id, config.text_model_revision, check_head, **hub_arguments)
    fingerprints = {"audio": fingerprint(audio), "text": fingerprint(text)}
    state = {f"model.audio_tower.{key}": value for key, value in audio.items()}
    state.update(wrap_adapted_keys(text, config))
    return state, fingerprints


def wrap_adapted_keys(state: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    """Renames the weights of layers that carry LoRA from `x.weight` to `x.base_layer.weight`."""
    targets = sorted({t for name in config.lora_adapters for t in config.adapter_settings(name)["target_modules"]})
    wrapped = {}
    for key, value in state.items():
        module_path, _, leaf = key.rpartition(".")
        relative = module_path.removeprefix("model.language_model.")
        adapted = relative != module_path and is_target(relative, targets)
        wrapped[f"{module_path}.base_layer.{leaf}" if adapted else key] = value
    return wrapped


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """
    A short hash that tells one set of weights from another, whatever precision they are stored or loaded in.

    It covers every tensor's name and shape, and a fixed sample of its values rounded to bfloat16: enough to tell
    another model, another revision or a fine-tune, in a fraction of the time a hash of all bytes takes. It does not
    protect against a deliberate forgery.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().flatten()
        step = max(1, values.numel() // FINGERPRINT_SAMPLES)
        sample = values[::step][:FINGERPRINT_SAMPLES].float().cpu().to(torch.bfloat16)
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def check_fingerprints(config, found: dict[str, str], ignore: bool) -> None:
    """
    Compares the bases an adapter was trained on with those found now.

    Raises:
        ValueError: they differ, and `ignore` is not set (then it is a warning).
    """
    for role, recorded in config.base_fingerprint.items():
        if found.get(role) == recorded:
            continue
        message = (
            f"The {role} base {getattr(config, f'{role}_model_id')!r} is not the one this checkpoint was trained on: "
            f"its fingerprint is {found.get(role)}, the checkpoint's is {recorded}. An adapter only fits its own base. "
            f"Pass {role}_model_id= (or its revision) with the right one, or ignore_base_mismatch=True to go on."
        )
        if not ignore:
            raise ValueError(message)
        logger.warning(message)


def is_adapter_key(key: str) -> bool:
    """Whether a weight is one of those that train by default: projector, boundary vectors, LoRA."""
    return "multi_modal_projector." in key or "audio_boundary_embeds" in key or ".lora_" in key


def one_adapter(config: AudioLlmConfig) -> str | None:
    """
    Return the name of the one adapter of a model, None where it has none.

    Raises:
        ValueError: there are several, so that no single merge can stand for all.
    """
    names = list(config.lora_adapters)
    if len(names) > 1:
        raise ValueError(
            f"This model has the adapters {names}, each for rows of its own; only a model with one can be merged."
        )
    return names[0] if names else None


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of `model` with its one LoRA adapter folded into the layers it adapts; see `one_adapter`."""
    name = one_adapter(cast(AudioLlmConfig, model.config))
    modules = dict(model.named_modules())
    merged = {}
    for key, value in model.state_dict().items():
        if ".lora_" in key:
            continue
        if key.endswith(MERGED_SUFFIX):
            module_path = key.removesuffix(MERGED_SUFFIX)
            merged[f"{module_path}.weight"] = merged_weight(modules[module_path], name)
        else:
            merged[key.replace(".base_layer.", ".")] = value
    return merged


def refuse_incomplete(info, source) -> None:
    """Raises when weights are missing, unexpected or of another shape: a model half random does not say so itself."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(key if isinstance(key, str) else "{} of shape {} for {}".format(*key) for key in info[kind])
        if keys:
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[:3]}")
    if problems:
        raise ValueError(
            f"{source} does not hold the weights its configuration asks for: {'; '.join(problems)}. The checkpoint is "
            "incomplete or belongs to another configuration; save or download it again."
        )


def write_code(objects: list[Any], folder: str | os.PathLike) -> list[Path]:
    """
    Copies the source files behind `objects` (classes), and the siblings they import, flat into `folder`.

    What is copied is what runs: the installed package's files, or, for a model loaded with `trust_remote_code`, the
    ones that came with its checkpoint.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, Path] = {}
    for cls in objects:
        _collect_sources(sys.modules[cls.__module__], sources)
    written = []
    for name, source in sorted(sources.items()):
        target = folder / name
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
        written.append(target)
    return written


def _collect_sources(module: ModuleType, sources: dict[str, Path]) -> None:
    """Adds the file of `module` and those of the siblings it imports, all the way down, to `sources` by file name."""
    path = Path(str(module.__file__))
    if path.name in sources:
        return
    sources[path.name] = path
    for sibling in get_relative_imports(path):
        imported = importlib.import_module(f".{sibling}", module.__package__)
        _collect_sources(_original(imported), sources)


def _original(module: ModuleType) -> ModuleType:
    """The module itself, or, where it only re-exports one of the same file name from another room, that one."""
    file_name = module.__name__.rpartition(".")[2]
    for value in vars(module).values():
        defined_in = getattr(value, "__module__", None) or ""
        if isinstance(defined_in, str) and defined_in.rpartition(".")[2] == file_name:
            return sys.modules[defined_in]
    return module


def modification_times(folder: str | os.PathLike) -> dict[str, int]:
    """When each file directly in `folder` was last written, in nanoseconds; nothing where there is no folder."""
    if not os.path.isdir(folder):
        return {}
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir() if path.is_file()}


def changed_files(folder: str | os.PathLike, before: dict[str, int]) -> list[str]:
    """Names of the files in `folder` that are new or newer than in `before`."""
    return [name for name, written in modification_times(folder).items() if before.get(name) != written]


def upload_files(
    folder: str | os.PathLike,
    names: list[str],
    repo_id: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> None:
    """Uploads the files `names` of `folder` to the Hub in one commit; the repository is made if it is not there."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id or Path(folder).absolute().name, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=Path(folder),
        allow_patterns=names,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Upload model",
    )
