"""What is looked at before a checkpoint's weights are believed: who wrote it may have erred, or may mean harm."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

#: What makes a speech encoder's weights as large as they are, by the names that configurations have for it.
ENCODER_SIZES = (
    "d_model",
    "hidden_size",
    "encoder_layers",
    "num_hidden_layers",
    "encoder_ffn_dim",
    "intermediate_size",
    "num_mel_bins",
    "max_source_positions",
)
#: A configuration may ask for so many times the weights that there are, tied ones counted twice, and so many besides,
#: until it is refused without building it. What is missing within this is named one by one.
LARGEST_SHARE, SPARE_WEIGHTS = 2, 1 << 20
#: How many weights the files hold that a model is being built for; None where nobody has looked.
_WEIGHTS_AT_HAND: ContextVar[int | None] = ContextVar("weights_at_hand", default=None)


def load_adapter(path: str | Path, source: Any) -> dict[str, torch.Tensor]:
    """
    The tensors of an adapter's safetensors file.

    Raises:
        ValueError: the file is damaged; `source` is named.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{source}: {Path(path).name} is damaged or cut off ({error}); download it again.") from error


def check_finite(weights: Mapping[str, torch.Tensor], source: Any) -> None:
    """
    Raises:
        ValueError: one of them holds NaN or infinity.
    """
    for name, value in weights.items():
        # float8 has no test of its own.
        if not value.is_meta and not torch.isfinite(value.float()).all():
            raise ValueError(f"{source}: the weight {name} holds NaN or infinity, so that it would answer nothing.")


def check_encoder(base: str, audio_config: Any, model_id: str, **where: Any) -> None:
    """
    Raises:
        ValueError: an encoder is of another size than a checkpoint's configuration says, and could not be loaded as it.
    """
    found = AutoConfig.from_pretrained(base, trust_remote_code=False, **where)
    for name in ENCODER_SIZES:
        here, there = getattr(found, name, None), getattr(audio_config, name, None)
        if here != there:
            raise ValueError(
                f"The audio base {model_id!r} has {name} {here}, but the checkpoint's audio_config says {there}: it was "
                "made with another base, or its config.json is damaged."
            )


def weights_in_files(path: Any, where: dict[str, Any], variant: str | None = None) -> int | None:
    """
    At most how many weights the safetensors files of a whole checkpoint hold: one for a byte. None for a variant's.

    Raises:
        ValueError: the list of files is damaged, or names one outside of the checkpoint.
    """
    if variant is not None:
        return None
    quiet = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(path, SAFE_WEIGHTS_NAME, **quiet, **where)
    if file is not None:
        return Path(file).stat().st_size
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **quiet, **where)
    if index is None:
        return None  # transformers says what is not there
    try:
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        outside = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {SAFE_WEIGHTS_INDEX_NAME} is damaged ({type(error).__name__}: {error}).") from error
    if outside:
        raise ValueError(
            f"{path}: {SAFE_WEIGHTS_INDEX_NAME} names {outside[0]!r}, which is no file of weights beside it."
        )
    return sum(Path(cast(str, cached_file(path, name, **where))).stat().st_size for name in names)


def check_kinds(model: nn.Module, adapter: Mapping[str, torch.Tensor], source: Any) -> None:
    """
    Raises:
        ValueError: what is a floating-point weight of the model was stored as something else.
    """
    for name, parameter in model.named_parameters():
        stored = adapter.get(name, parameter)
        if stored.is_floating_point() != parameter.is_floating_point():
            raise ValueError(f"{source}: the weight {name} is stored as {stored.dtype}; expected {parameter.dtype}.")


@contextmanager
def weights_at_hand(count: int | None) -> Iterator[None]:
    """While this lasts, models that ask for far more weights than `count` are refused before they take memory."""
    token = _WEIGHTS_AT_HAND.set(count)
    try:
        yield
    finally:
        _WEIGHTS_AT_HAND.reset(token)


def refuse_oversized(model: nn.Module) -> None:
    """
    To be called of a model that has its shapes, and not yet its weights.

    Raises:
        ValueError: its configuration asks for more weights than can be in the files.
    """
    at_hand = _WEIGHTS_AT_HAND.get()
    if at_hand is None:
        return
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > LARGEST_SHARE * at_hand + SPARE_WEIGHTS:
        raise ValueError(
            f"The checkpoint's configuration asks for {asked:,} weights, but its files and bases hold {at_hand:,}: its "
            "config.json is damaged, or is another checkpoint's."
        )


__all__ = [
    "check_encoder",
    "check_finite",
    "check_kinds",
    "load_adapter",
    "refuse_oversized",
    "weights_at_hand",
    "weights_in_files",
]
