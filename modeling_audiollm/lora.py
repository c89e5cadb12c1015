"""LoRA that acts on rows with audio, and leaves the other rows of a batch the base model's, bit for bit."""

import inspect
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .projector import tensor_state

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    # transformers looks for missing packages in a checkpoint's main file only.
    raise ImportError(
        f"AudioLLM's adapters need peft, which cannot be imported ({error}): `pip install peft`."
    ) from error

logger = logging.get_logger(__name__)

#: Keyword that carries a call's masks to the decoder layers: for each adapter that acts a float mask
#: `(batch, length, 1)`, 1 where it acts and 0 where it does not, or None where it acts on all positions.
MASKS_KEYWORD = "lora_masks"


class _Call(threading.local):
    """Masks of the language model's call that this thread runs; None outside of calls."""

    masks: dict[str, torch.Tensor | None] | None = None


_CALL = _Call()


class FrozenLinearWithLora(torch.autograd.Function):
    """
    Frozen linear layer with its masked low-rank update (Hu et al. 2021, arXiv:2106.09685) as one operation.

    Products are added where they are made; autograd's own way passes over the activations several times.
    """

    #: Multiplies by a weight, `(x, weight, bias)`; a faster product may be put in its place.
    product: Any = staticmethod(nn.functional.linear)

    @staticmethod
    def forward(ctx, x, weight, bias, mask, down, up, scaling: float) -> torch.Tensor:
        """
        Return `x @ weight.T + bias + scaling * mask * (x @ down.T) @ up.T`, `(n, out)`.

        Args:
            x: the input, `(n, in)`.
            weight, bias: the base's, `(out, in)` and `(out,)` or None; no gradient is computed for them.
            mask: rows of `x` that LoRA acts on, `(n, 1)`, or None for all.
            down, up: LoRA's A `(rank, in)` and B `(out, rank)`, in any precision; products have that of `x`.
        """
        product = FrozenLinearWithLora.product
        with _without_autocast(x.device.type):
            down_cast, up_cast = down.to(x.dtype), up.to(x.dtype)
            low = product(x, down_cast)
            if mask is not None:
                low = low.mul_(mask)
            result = product(x, weight, bias).addmm_(low, up_cast.T, alpha=scaling)
        ctx.save_for_backward(x, weight, mask, low, down_cast, up_cast)
        ctx.scaling, ctx.down_dtype, ctx.up_dtype = scaling, down.dtype, up.dtype
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """Return the gradients of `x`, `down` and `up`, each only where it is asked for."""
        product = FrozenLinearWithLora.product
        x, weight, mask, low, down, up = ctx.saved_tensors
        needs_x, _, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        grad_x = grad_down = grad_up = None
        with _without_autocast(grad.device.type):
            grad_low = product(grad, up.T).mul_(ctx.scaling)
            if mask is not None:
                grad_low = grad_low.mul_(mask)
            if needs_x:
                grad_x = product(grad, weight.T).addmm_(grad_low, down)
            if needs_down:
                grad_down = product(grad_low.T, x.T).to(ctx.down_dtype)
            if needs_up:
                grad_up = product(low.T, grad.T).T.to(ctx.up_dtype).mul_(ctx.scaling)
        return grad_x, None, None, None, grad_down, grad_up, None


class MaskedLoraLinear(LoraLinear):
    """
    PEFT's LoRA layer with AudioLLM's adapters, which act where the call's masks say.

    Where a mask is 0 the update is exactly 0: the result has the bits of the base layer. Adapters that a user adds with
    PEFT act on all rows, and PEFT's switches and merges reach those alone.

    Attributes:
        masked: names of AudioLLM's adapters.
        base_changed: an adapter of the user's has been merged into the base's weights.
    """

    masked: frozenset[str] = frozenset()
    base_changed = False
    #: The only adapter, its name, A and B; None until they are looked for.
    _only: tuple[str, nn.Linear, nn.Linear] | None = None
    #: Its weights in the precision of the base, with what they were made of.
    _kept: tuple[Any, tuple[torch.Tensor, ...]] | None = None

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        masks = _CALL.masks
        if masks is None:
            raise RuntimeError("A layer with LoRA was run outside of AudioLLM's forward, which says where it acts.")
        if len(masks) == 1 and not (self.training or torch.is_grad_enabled()):
            [(name, mask)] = masks.items()
            found = self._inferred(x, name, mask)
            if found is not None:
                return found
        if self._kept is not None:
            self._kept = None
        chosen = [(name, mask) for name, mask in masks.items() if name in self.lora_A]
        if torch.is_grad_enabled() and len(chosen) == 1 and self._can_fuse(x, chosen[0][0]):
            name, mask = chosen.pop()
            base, flat = cast(nn.Linear, self.base_layer), x.flatten(0, -2)
            mask = None if mask is None else mask.reshape(-1, 1).to(flat)
            factors = self.lora_A[name].weight, self.lora_B[name].weight
            result = FrozenLinearWithLora.apply(flat, base.weight, base.bias, mask, *factors, self.scaling[name])
            result = result.view(*x.shape[:-1], base.out_features)
        else:
            result = self.base_layer(x, *args, **kwargs)
        for name, mask in chosen:
            result = self._updated(result, x, name, mask)
        if len(self.lora_A) > len(self.masked) and not self.disable_adapters:  # PEFT has added some
            for name in self.active_adapters:
                if name in self.lora_A and name not in self.masked and name not in self.merged_adapters:
                    result = self._updated(result, x, name, None)
        return result

    def _inferred(self, x: torch.Tensor, name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
        """
        Return the result of [`forward`] without gradients where `name` is the only adapter; None where it is not as simple.

        Hundreds of layers come here for each new token, so that each step of Python counts.
        """
        only = self._only
        if only is None or only[0] != name:
            if len(self.lora_A) != 1 or name not in self.lora_A:
                return None
            only = self._only = (name, cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name]))
        base, down, up = cast(nn.Linear, self.base_layer), only[1].weight, only[2].weight
        weight = plain_weight(base)
        if weight is None or down.is_meta or autocasts(x.device.type):
            return None
        result = nn.functional.linear(x, weight, base.bias)
        if down.dtype != x.dtype:
            down, up = self._in_precision(x.dtype, down, up)
        low = nn.functional.linear(x, down)
        if mask is not None:
            low = low * mask.to(x)
        result.view(-1, result.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up.T, alpha=self.scaling[name])
        return result

    def _in_precision(self, dtype: torch.dtype, down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return A and B in a precision. They are kept until they change, or a pass that may train them."""
        if torch.compiler.is_compiling():
            return down.to(dtype), up.to(dtype)
        state = (dtype, tensor_state(down), tensor_state(up))
        kept = self._kept  # another thread may let it go
        if kept is None or kept[0] != state:
            kept = self._kept = (state, (down.to(dtype), up.to(dtype)))
        return kept[1]

    def _updated(self, result: torch.Tensor, x: torch.Tensor, name: str, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the base's result with one adapter's update; without gradients, it is added in place."""
        down, up = cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])
        scaling = self.scaling[name]
        x = self.lora_dropout[name](x) if self.training else x
        if mask is not None:
            mask = mask.reshape(*x.shape[:-1], 1).to(x)
        if down.weight.is_meta:  # offloaded: the layers' own calls fetch their weights
            low = down(x.to(down.weight.dtype))
            return result + (up(low if mask is None else low * mask) * scaling).to(result.dtype)
        # The weights are float32 to be trained, but the product is the base's precision: half the memory.
        low = nn.functional.linear(x, down.weight.to(x.dtype))
        if mask is not None:
            low = low * mask
        in_place = not torch.is_grad_enabled() and low.dtype == result.dtype and not autocasts(x.device.type)
        if in_place and plain_weight(self.base_layer) is not None:
            result.flatten(0, -2).addmm_(low.flatten(0, -2), up.weight.to(low.dtype).T, alpha=scaling)
            return result
        return result + nn.functional.linear(low, (up.weight * scaling).to(low.dtype)).to(result.dtype)

    def _can_fuse(self, x: torch.Tensor, name: str) -> bool:
        drops = self.training and isinstance(self.lora_dropout[name], nn.Dropout)
        return not drops and can_fuse(self.base_layer, x) and not self.lora_A[name].weight.is_meta

    # ---- PEFT's own adapters beside AudioLLM's -----------------------------------------------------------------------

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add one more adapter, as PEFT does; kinds with a forward of their own (DoRA and others) are refused."""
        if adapter_name in self.masked:
            raise ValueError(f"The model has an adapter {adapter_name!r} already. Give the new one another name.")
        trains = any(self.lora_A[own].weight.requires_grad for own in self.masked)
        self._only = None
        super().update_layer(adapter_name, *args, **kwargs)
        if adapter_name in self.lora_variant or self.lora_bias[adapter_name]:
            raise ValueError(
                f"The adapter {adapter_name!r} is not plain LoRA. PEFT can add no DoRA or other variant to AudioLLM's "
                "layers, and no lora_bias."
            )
        if trains:
            logger.warning_once(
                "AudioLLM's own adapter and projector train beside PEFT's adapter, but PEFT's save_pretrained does not save "
                "them. To train PEFT's adapter alone, call model.requires_grad_(False) before get_peft_model."
            )

    def delete_adapter(self, adapter_name: str) -> None:
        self._only = None
        super().delete_adapter(adapter_name)
        self.masked -= {adapter_name}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the active adapters that PEFT added into the base's weights; AudioLLM's act on as before."""
        if adapter_names is None:
            adapter_names = [name for name in self.active_adapters if name not in self.masked]
        own = sorted(self.masked.intersection(adapter_names))
        if own:
            raise ValueError(f"{own} are AudioLLM's own adapters. Merge them with model.merge_adapters().")
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        self.base_changed = self.base_changed or bool(self.merged_adapters)

    def unmerge(self) -> None:
        super().unmerge()
        self.base_changed = False

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> "MaskedLoraLinear":
        """Take the adapters that PEFT added off again, merged into the base or not, and return the layer."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            self.merged_adapters.clear()
        self.set_adapter(sorted(self.masked.intersection(self.lora_A)))
        for name in [name for name in self.lora_A if name not in self.masked]:
            self.delete_adapter(name)
        return self


def add_adapters(language_model: Any, config) -> None:
    """
    Inject the configuration's named adapters into `language_model`, in place, with the hooks that tell them their masks.

    The masks come with a call as a keyword. Activation checkpointing keeps keywords, so that a layer which is run again
    in the backward pass has the masks of its own forward pass. Decoder layers hand their keywords on to their attention,
    where a hook takes this one off.

    Raises:
        ValueError: a target names no linear layer of the language model.
    """
    if not config.lora_adapters:
        return
    for name in config.lora_adapters:
        settings = config.adapter_settings(name)
        _check_targets(language_model, name, settings["target_modules"])
        lora_config = LoraConfig(
            r=settings["rank"],
            lora_alpha=settings["alpha"],
            lora_dropout=settings["dropout"],
            target_modules=list(settings["target_modules"]),
        )
        lora_config._register_custom_module({nn.Linear: MaskedLoraLinear})
        is_empty = next(language_model.parameters()).is_meta  # its weights are loaded or drawn later
        with warnings.catch_warnings(), no_init_weights() if is_empty else nullcontext():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
            inject_adapter_in_model(lora_config, language_model, adapter_name=name)
    language_model.takes_masks = True
    language_model.num_masked_layers = sum(isinstance(each, MaskedLoraLinear) for each in language_model.modules())
    language_model.register_forward_pre_hook(_begin_call, with_kwargs=True)
    language_model.register_forward_hook(_end_call)
    for module in language_model.modules():
        if isinstance(module, MaskedLoraLinear):
            module.masked = frozenset(module.lora_A)
            module.lora_A.float()  # PEFT gives the factors the base's precision
            module.lora_B.float()
            module.set_adapter(list(module.lora_A))
        elif isinstance(module, GradientCheckpointingLayer):
            takers = [part for part in module.children() if accepts_keywords(part)]
            for taker in takers if accepts_keywords(module) else [module]:
                taker.register_forward_pre_hook(_take_masks, with_kwargs=True)


def merged_weight(layer: MaskedLoraLinear, name: str) -> torch.Tensor:
    """Return the base's weight with the update of the adapter `name`, in the base's precision."""
    weight = cast(nn.Linear, layer.base_layer).weight
    if weight.is_meta or layer.lora_A[name].weight.is_meta:
        raise ValueError(
            "A language model that is offloaded cannot be merged. Load it without offloading (device_map)."
        )
    return (weight.float() + layer.get_delta_weight(name).float()).to(weight.dtype)


def refuse_foreign_adapters(language_model: Any) -> None:
    """Raise ValueError where PEFT's adapter acts on top of AudioLLM's, or taking it off has taken AudioLLM's off too."""
    layers = [module for module in language_model.modules() if isinstance(module, MaskedLoraLinear)]
    foreign = sorted({name for layer in layers for name in layer.lora_A if name not in layer.masked})
    if foreign:
        raise ValueError(
            f"PEFT's adapters {foreign} act on top of AudioLLM's. Save them with the PEFT model's save_pretrained. Before "
            "AudioLLM itself is saved or merged, call merge_and_unload or unload."
        )
    if getattr(language_model, "takes_masks", False) and len(layers) < language_model.num_masked_layers:
        raise ValueError(
            f"Of the {language_model.num_masked_layers} layers with LoRA {len(layers)} are left: unloading another kind of "
            "adapter has removed AudioLLM's own. Load the model again."
        )


@torch.no_grad()
def merge_layers(language_model: Any, name: str | None) -> None:
    """Put the base layers back in the place of those with LoRA, the adapter `name` folded in."""
    refuse_foreign_adapters(language_model)
    for path, layer in [(p, m) for p, m in language_model.named_modules() if isinstance(m, MaskedLoraLinear)]:
        base = cast(nn.Linear, layer.base_layer)
        if name is not None and name in layer.lora_A:
            base.weight.data = merged_weight(layer, name)
        language_model.set_submodule(path, base)
    language_model.takes_masks = False


def _begin_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if not module.takes_masks:  # merged since
        return args, kwargs
    if MASKS_KEYWORD not in kwargs:
        raise RuntimeError(
            f"{type(module).__name__} was run alone: it is unknown on which rows LoRA acts. Run the model around it."
        )
    _CALL.masks = kwargs[MASKS_KEYWORD]
    if not accepts_keywords(module):
        del kwargs[MASKS_KEYWORD]
    return args, kwargs


def _end_call(module: nn.Module, args: tuple, output: Any) -> None:
    _CALL.masks = None


def _take_masks(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if MASKS_KEYWORD in kwargs:
        _CALL.masks = kwargs.pop(MASKS_KEYWORD)
    return args, kwargs


def _check_targets(language_model: nn.Module, adapter: str, targets: list[str]) -> None:
    for target in targets:
        found = [module for path, module in language_model.named_modules() if is_target(path, [target])]
        wrong = [module for module in found if not isinstance(module, (nn.Linear, MaskedLoraLinear))]
        if wrong or not found:
            names = language_model.named_modules()
            linear = sorted({path.rpartition(".")[2] for path, module in names if isinstance(module, nn.Linear)})
            have = f"is a {type(wrong[0]).__name__}" if wrong else "is not there"
            raise ValueError(
                f"LoRA adapter {adapter!r} targets {target!r}, which {have} in {type(language_model).__name__}. Set "
                f"lora_target_modules to some of its linear layers: {linear}."
            )


def is_target(module_path: str, targets: list[str]) -> bool:
    """Return True where a module path is meant by one of the target names (a path or its last parts), as in PEFT."""
    return any(module_path == target or module_path.endswith("." + target) for target in targets)


def reset_adapters(model: nn.Module) -> None:
    """Start adapters that were not loaded as PEFT does: A random, B zero, so that the update is nothing."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_A:
                weights = (module.lora_A[name].weight, module.lora_B[name].weight)
                if not any(getattr(weight, "_is_hf_initialized", False) for weight in weights):
                    module.reset_lora_parameters(name, True)


def accepts_keywords(module: nn.Module) -> bool:
    """Return True where the module's forward takes any keyword, as transformers' decoders and their layers do."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def plain_weight(layer: nn.Module) -> torch.Tensor | None:
    """Return the weight of torch's linear layer, unquantised, whose call is its class's and no more; None of any other."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    weight = layer.weight
    return weight if type(weight) is nn.Parameter else None  # quantised ones may know few operations


def can_fuse(base: nn.Module, x: torch.Tensor) -> bool:
    """Return True where `base` is a plain frozen linear layer in the precision of `x`."""
    weight = plain_weight(base)
    if weight is None:
        return False
    device = x.device.type
    same_precision = not autocasts(device) or torch.get_autocast_dtype(device) == x.dtype
    trains = weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    return same_precision and weight.dtype == x.dtype and not trains


def autocasts(device: str) -> bool:
    """Return True where autocast is on; torch raises for devices that have none (`meta`)."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
