"""LoRA that acts on some rows of a batch only: those with audio, each through the adapter chosen for it."""

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .frozen_linear import can_fuse, dropout_mask, frozen_linear_with_lora

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    # transformers looks for missing packages in a checkpoint's main file only.
    raise ImportError(
        f"AudioLLM's adapters need peft, which cannot be imported ({error}): `pip install peft`."
    ) from error

ROUTE_KEYWORD = "lora_route"


@dataclass(frozen=True)
class LoraRoute:
    """
    Which rows go through which adapter: `rows[name]` holds row indices `(n,)`, or None where all rows do.

    An empty route is the untouched base model. Of a packed batch, a row is a position: `rows` then counts those of all
    the batch's rows, one after the other.
    """

    rows: dict[str, torch.Tensor | None]
    packed: bool = False

    @classmethod
    def from_names(
        cls, names: list[str | None], device: torch.device | str, run_always: Iterable[str] = ()
    ) -> "LoraRoute":
        """
        Groups the rows of a batch by the adapter each was given; None leaves a row to the base model.

        The adapters `run_always` are run even on no row at all, for a gradient (of zero) to reach them.
        """
        rows: dict[str, torch.Tensor | None] = {}
        for adapter in dict.fromkeys([*run_always, *(name for name in names if name is not None)]):
            indices = [row for row, name in enumerate(names) if name == adapter]
            everywhere = len(indices) == len(names)
            rows[adapter] = None if everywhere else torch.tensor(indices, dtype=torch.long, device=device)
        return cls(rows)

    def over_positions(self, sequences: torch.Tensor) -> "LoraRoute":
        """The route of a packed batch, given that of its examples; `sequences`: the example of each position."""
        rows = {
            name: None if indices is None else torch.isin(sequences, indices).nonzero().flatten()
            for name, indices in self.rows.items()
        }
        return LoraRoute(rows, packed=True)

    def by_row(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape `(batch, length, width)` with what `rows` counts in its first dimension."""
        return tensor.flatten(0, -2) if self.packed else tensor


class LoraRouter:
    """
    Hands the current route to every adapted layer of one language model.

    The model sets the route before it runs. It also passes it to the decoder layers as a keyword, and they to their
    attention, where a hook takes it off again: activation checkpointing keeps keywords, so that a layer which is run a
    second time in the backward pass follows the route of its own forward pass, whatever was run in between. (Hooks on
    the layers alone would not do: transformers checkpoints inside of them.)
    """

    def __init__(self):
        self.route = LoraRoute({})

    def follow(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook of a decoder layer: the keyword stays on."""
        self.route = kwargs.get(ROUTE_KEYWORD, self.route)
        return args, kwargs

    def take(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook of a decoder layer's parts, or of one that does not hand keywords on: takes it off."""
        self.route = kwargs.pop(ROUTE_KEYWORD, self.route)
        return args, kwargs


class RoutedLoraLinear(LoraLinear):
    """PEFT's LoRA layer, applied to the rows that the router names; other rows are those of the base layer, exactly."""

    router: LoraRouter

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`x` has the batch's rows in its first dimension; so has the result."""
        route = self.router.route
        routes = {} if self.disable_adapters or self.merged else route.rows
        routes = {name: rows for name, rows in routes.items() if name in self.lora_A}
        everywhere = next((name for name, rows in routes.items() if rows is None), None)
        if everywhere is not None and not args and not kwargs and can_fuse(self.base_layer, x):
            result = self._fused(x, everywhere)
            del routes[everywhere]
        else:
            result = self.base_layer(x, *args, **kwargs)
        for name, rows in routes.items():
            chosen = x if rows is None else route.by_row(x).index_select(0, rows.to(x.device))
            mask, scaling = self._dropout(chosen, name)
            chosen = chosen if mask is None else chosen * mask
            # The weights are float32 to be trained, but the product is the base's precision: half the memory.
            if self._factors(name)[0].is_meta:  # offloaded: the layers' own calls fetch their weights
                low = self.lora_A[name](chosen.float())
                update = (self.lora_B[name](low) * scaling).to(result.dtype)
            else:
                down, up = (weight.to(x.dtype) for weight in self._factors(name))
                low, up = nn.functional.linear(chosen, down).to(result.dtype), (up * scaling).to(result.dtype)
                update = nn.functional.linear(low, up)
            if rows is None:
                result = result + update
            else:
                result = route.by_row(result).index_add(0, rows.to(x.device), update).view(result.shape)
        return result

    def _fused(self, x: torch.Tensor, name: str) -> torch.Tensor:
        base, flat = cast(nn.Linear, self.base_layer), x.flatten(0, -2)
        mask, scaling = self._dropout(flat, name)
        result = frozen_linear_with_lora(flat, base.weight, base.bias, mask, *self._factors(name), scaling)
        return result.view(*x.shape[:-1], base.out_features)

    def _factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return cast(nn.Linear, self.lora_A[name]).weight, cast(nn.Linear, self.lora_B[name]).weight

    def _dropout(self, x: torch.Tensor, name: str) -> tuple[torch.Tensor | None, float]:
        """The mask of this adapter's dropout, None where there is none, and the update's scaling with it."""
        dropout, scaling = self.lora_dropout[name], self.scaling[name]
        if not isinstance(dropout, nn.Dropout) or not dropout.training or not dropout.p:
            return None, scaling
        mask, factor = dropout_mask(x, dropout.p)
        return mask, scaling * factor


def add_adapters(language_model: nn.Module, config) -> LoraRouter | None:
    """
    Injects the configuration's named adapters into `language_model`, in place.

    Raises:
        ValueError: a target names no linear layer of the language model.
    """
    if not config.lora_adapters:
        return None
    router = LoraRouter()
    for name in config.lora_adapters:
        inject_adapter(language_model, name, config.adapter_settings(name))
    for module in language_model.modules():
        if isinstance(module, RoutedLoraLinear):
            module.router = router
            module.set_adapter(list(module.lora_A))
        elif isinstance(module, GradientCheckpointingLayer):
            hook = router.follow if accepts_route(module) else router.take
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for part in module.children():
                part.register_forward_pre_hook(router.take, with_kwargs=True)
    return router


def inject_adapter(language_model: nn.Module, name: str, settings: dict[str, Any]) -> None:
    """
    Adds one more adapter to the layers that it targets, in place; rows go through it where a route names it.

    Args:
        settings: rank, alpha, dropout and target_modules, as `AudioLlmConfig.adapter_settings` gives them.

    Raises:
        ValueError: a target names no linear layer of the language model.
    """
    lora_config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=list(settings["target_modules"]),
    )
    lora_config._register_custom_module({nn.Linear: RoutedLoraLinear})
    _check_targets(language_model, name, settings["target_modules"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(lora_config, language_model, adapter_name=name)


def _check_targets(language_model: nn.Module, adapter: str, targets: list[str]) -> None:
    for target in targets:
        found = [module for path, module in language_model.named_modules() if is_target(path, [target])]
        if not found:
            linear = sorted(
                {p.rpartition(".")[2] for p, m in language_model.named_modules() if isinstance(m, nn.Linear)}
            )
            have = f"Its linear layers are {linear}: set lora_target_modules to some of them."
            raise ValueError(
                f"LoRA adapter {adapter!r} targets {target!r}, but {type(language_model).__name__} has no such module. "
                f"{have if linear else 'It has no linear layers at all: choose another language model.'}"
            )
        wrong = [m for m in found if not isinstance(m, (nn.Linear, RoutedLoraLinear)) or isinstance(m, nn.Embedding)]
        if wrong:
            raise ValueError(
                f"LoRA adapter {adapter!r} targets {target!r}, which is a {type(wrong[0]).__name__} in "
                f"{type(language_model).__name__}; only linear layers can be routed per row."
            )


def is_target(module_path: str, targets: list[str]) -> bool:
    """Whether a module path is meant by one of the target names (a whole path, or its last parts), as in PEFT."""
    return any(module_path == target or module_path.endswith("." + target) for target in targets)


def reset_adapters(model: nn.Module) -> None:
    """
    Starts every adapter over as peft does: A random, B zero, so that the update is nothing.

    Weights that transformers has marked as loaded stay as they are.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_A:
                weights = (module.lora_A[name].weight, module.lora_B[name].weight)
                if not any(getattr(weight, "_is_hf_initialized", False) for weight in weights):
                    module.reset_lora_parameters(name, True)


def accepts_route(module: nn.Module) -> bool:
    """Whether the module's forward takes keywords it does not know, as transformers' decoders and their layers do."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
