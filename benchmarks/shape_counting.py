"""
Counts what a model costs from its shapes: the real classes on torch's `meta` device, where nothing is allocated.

FLOPs are those that torch's own counter sees; bytes are those of every tensor that is alive at once, in a forward and
backward pass of the modules that training runs. What depends on values, not on shapes (which position holds audio, which is
supervised), is put in here by its size; the rest of a step is the model's own code.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from audiollm import AudioLlmConfig, AudioLlmForConditionalGeneration
from audiollm.checkpoints import is_adapter_key
from audiollm.cpu_speed import run_with_shared_prefix
from audiollm.lora import MASKS_KEYWORD
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

#: Under this name transformers finds the attention below.
SHAPES_ONLY_ATTENTION = "shapes_only"
#: AdamW keeps two float32 values for each weight that trains.
ADAM_BYTES = 8
MEL_FRAMES_PER_SECOND = 100
MEL_FRAMES_PER_ENCODER_FRAME = 2
WINDOW_SECONDS = 30.0
#: `<audio>` and `</audio>`.
BOUNDARY_TOKENS = 2


@dataclass(frozen=True)
class StepShape:
    """
    A batch of rows alike: a prompt with one recording, and an answer.

    Attributes:
        rows: of the batch.
        audio_seconds: of each recording.
        prompt_tokens: of text before the answer; the template's and the question's.
        answer_tokens: of the answer, which are supervised.
        shared_tokens: of the prompt, so many come before the recording and are the same in all rows.
    """

    rows: int
    audio_seconds: float
    prompt_tokens: int
    answer_tokens: int
    shared_tokens: int = 0

    def windows(self) -> list[int]:
        """Log-mel frames of each window of one recording."""
        windows, left = [], round(self.audio_seconds * MEL_FRAMES_PER_SECOND)
        longest = round(WINDOW_SECONDS * MEL_FRAMES_PER_SECOND)
        while left > 0:
            windows.append(min(left, longest))
            left -= windows[-1]
        return windows

    def slots(self, stack_factor: int) -> int:
        """Audio tokens of one recording."""
        return sum(math.ceil(math.ceil(w / MEL_FRAMES_PER_ENCODER_FRAME) / stack_factor) for w in self.windows())

    def row_tokens(self, stack_factor: int) -> int:
        """Positions of one row."""
        return self.prompt_tokens + BOUNDARY_TOKENS + self.slots(stack_factor) + self.answer_tokens


@dataclass(frozen=True)
class StepCount:
    """
    What one training step costs.

    Attributes:
        flops: of `encoder`, `projector`, `language_model` and `head` in the forward pass, and of `backward`.
        forward_bytes: what the forward pass leaves for the backward pass.
        peak_bytes: the most that is alive at once beside weights and optimizer: activations, gradients, scratch.
        tokens: positions of all rows.
    """

    flops: dict[str, int]
    forward_bytes: int
    peak_bytes: int
    tokens: int

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())


class LiveBytes(TorchDispatchMode):
    """
    Bytes of the tensors made within, as long as they live: `current`, and their `peak`.

    What was made before, such as weights, does not count; views count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _storage_id(leaf) not in given:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, storage_id: int) -> None:
        self.current -= self._known.pop(storage_id)


def _storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
    """
    Attention by the fused kernel, which keeps no matrix of scores, as sdpa chooses it on a GPU.

    Keys and values are repeated for their query heads, as sdpa's wrapper does where a batch has padding.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    return kernel(query, key, value, 0.0, causal, False, scale=scaling)[0].transpose(1, 2), None


AttentionInterface.register(SHAPES_ONLY_ATTENTION, _attention)


def _addmm_flops(into, a, b, *args, out_shape=None, **kwargs) -> int:
    return 2 * a[0] * a[1] * b[1]


#: torch's counter knows `addmm` but not the one in place, by which LoRA's update is added.
MORE_FORMULAS = {torch.ops.aten.addmm_: _addmm_flops}


def flop_counter() -> FlopCounterMode:
    """torch's counter, with what it lacks."""
    return FlopCounterMode(display=False, custom_mapping=MORE_FORMULAS)


class _Projecting(nn.Module):
    """The projector on stacked frames, as a module of its own whose weights can be put in."""

    def __init__(self, projector: Any):
        super().__init__()
        self.projector = projector

    def forward(self, stacked: torch.Tensor) -> torch.Tensor:
        return cast(Any, self.projector).project(stacked)


def set_recomputing(model: nn.Module, wanted: bool) -> None:
    """Whether decoder layers compute activations twice instead of keeping them; before 5.23, under its older name."""
    name = next(name for name in ("activation", "gradient") if hasattr(model, f"{name}_checkpointing_enable"))
    if wanted:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False, "preserve_rng_state": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


class ShapedModel:
    """
    A model of these shapes on the meta device: frozen bases in `dtype`, what trains in float32.

    Args:
        config_fields: of [`AudioLlmConfig`], with `audio_config` and `text_config`.
        dtype: of the bases.
        autocast: whether the projector runs in `dtype` as well, as the Trainer's `--bf16` does, instead of float32.
    """

    def __init__(self, config_fields: dict[str, Any], dtype: torch.dtype = torch.bfloat16, autocast: bool = True):
        self.dtype, self.autocast = dtype, autocast
        self.config = AudioLlmConfig(**config_fields)
        with torch.device("meta"):
            self.model = AudioLlmForConditionalGeneration(self.config)
        for name, parameter in self.model.named_parameters():
            if not is_adapter_key(name):
                parameter.data = parameter.data.to(dtype)
        self.model.set_attn_implementation(SHAPES_ONLY_ATTENTION)
        self.model.train()

    @property
    def body(self) -> Any:
        """The model without its head."""
        return self.model.model

    def parameters(self) -> dict[str, int]:
        """How many there are of each part; tied ones once."""
        named = list(self.model.named_parameters())
        parts = {
            "encoder": "model.audio_tower.",
            "projector": "model.multi_modal_projector.",
            "boundary_vectors": "model.audio_boundary_embeds",
        }
        counts = {part: sum(p.numel() for n, p in named if n.startswith(prefix)) for part, prefix in parts.items()}
        counts["lora"] = sum(p.numel() for n, p in named if ".lora_" in n)
        counts["total"] = sum(p.numel() for _, p in named)
        counts["language_model"] = counts["total"] - sum(counts[part] for part in (*parts, "lora"))
        counts["trainable"] = sum(p.numel() for _, p in named if p.requires_grad)
        counts["frozen"] = counts["total"] - counts["trainable"]
        return counts

    def weight_bytes(self, part: str = "", trainable: bool | None = None) -> int:
        """Bytes of the weights whose names begin so; of those alone that train, or do not, if asked."""
        return sum(
            p.numel() * p.element_size()
            for n, p in self.model.named_parameters()
            if n.startswith(part) and trainable in (None, p.requires_grad)
        )

    def checkpoint_bytes(self) -> int:
        """What `save_pretrained` writes of an adapter, without headers."""
        return sum(p.numel() * p.element_size() for n, p in self.model.named_parameters() if is_adapter_key(n))

    def static_bytes(self, encoder_resident: bool) -> int:
        """Weights and AdamW's states; without the encoder where features are cached and it has left the device."""
        weights = self.weight_bytes() - (0 if encoder_resident else self.weight_bytes("model.audio_tower."))
        return weights + ADAM_BYTES * self.parameters()["trainable"]

    def encode(self, shape: StepShape) -> torch.Tensor:
        """The encoder on a batch's windows, `(rows, frames of all windows, d_model)`."""
        bins = self.config.audio_config.num_mel_bins
        parts = [
            self.body.audio_tower(torch.empty(shape.rows, bins, frames, device="meta", dtype=self.dtype))
            for frames in shape.windows()
        ]
        return torch.cat([part.last_hidden_state for part in parts], dim=1)

    def encoder_flops(self, shape: StepShape) -> int:
        """FLOPs of encoding a batch."""
        with torch.no_grad(), flop_counter() as counter:
            self.encode(shape)
        return counter.get_total_flops()

    def project(self, stacked: torch.Tensor) -> torch.Tensor:
        """The projector on stacked frames `(slots, stack_factor * d_model)`."""
        module = _Projecting(self.body.multi_modal_projector)
        if not self.autocast:
            return module(stacked)
        return functional_call(module, {n: p.to(self.dtype) for n, p in module.named_parameters()}, (stacked,))

    @contextmanager
    def checkpointing(self, wanted: bool) -> Iterator[None]:
        """Within, activations of decoder layers are computed twice instead of kept, if wanted."""
        if wanted:
            set_recomputing(self.model, True)
        try:
            yield
        finally:
            if wanted:
                set_recomputing(self.model, False)

    def training_step(
        self, shape: StepShape, cached: bool = True, checkpointing: bool = False, share_prefix: bool = False
    ) -> StepCount:
        """
        One forward and backward pass of stage instruct.

        Args:
            shape: of the batch.
            cached: whether the encoder's output was computed before, or is made now.
            checkpointing: whether activations of decoder layers are computed twice.
            share_prefix: whether the prompts' common beginning is run once for all rows.
        """
        with self.checkpointing(checkpointing):
            # Apart: the counter of FLOPs follows modules by hooks that keep tensors alive.
            with flop_counter() as counter:
                marks = [0]
                flops: dict[str, int] = {}

                def mark(part: str) -> None:
                    marks.append(counter.get_total_flops())
                    flops[part] = marks[-1] - marks[-2]

                self._forward(shape, cached, share_prefix, mark).backward()
                mark("backward")
            self.model.zero_grad(set_to_none=True)
            with LiveBytes() as live:
                loss = self._forward(shape, cached, share_prefix)
                forward_bytes = live.current
                loss.backward()
            self.model.zero_grad(set_to_none=True)
        tokens = shape.rows * shape.row_tokens(self.config.stack_factor)
        return StepCount(flops, forward_bytes, live.peak, tokens)

    def _forward(
        self, shape: StepShape, cached: bool, share_prefix: bool, mark: Callable[[str], None] = lambda part: None
    ) -> torch.Tensor:
        """The loss; `mark` is told when each part is done."""
        if not cached:
            with torch.no_grad():
                self.encode(shape)
        mark("encoder")
        tokens = self.project(self._stacked_frames(shape))
        mark("projector")
        hidden = self._run_language_model(shape, tokens, share_prefix)
        mark("language_model")
        loss = self._loss(hidden, shape)
        mark("head")
        return loss

    def _stacked_frames(self, shape: StepShape) -> torch.Tensor:
        width = self.config.audio_config.hidden_size * self.config.stack_factor
        slots = shape.rows * shape.slots(self.config.stack_factor)
        return torch.empty(slots, width, device="meta", dtype=self.dtype)

    def _run_language_model(self, shape: StepShape, tokens: torch.Tensor, share_prefix: bool) -> torch.Tensor:
        length = shape.row_tokens(self.config.stack_factor)
        ids = torch.empty(shape.rows, length, dtype=torch.long, device="meta")
        embeds = self.body.embed_text(ids)
        slots = (ids == self.config.audio_token_id)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(slots, tokens.to(embeds))
        decoder, masks = self.body.language_model, dict.fromkeys(self.config.lora_adapters)
        if share_prefix:
            return run_with_shared_prefix(decoder, decoder.config, embeds, None, shape.shared_tokens, masks)
        return decoder(inputs_embeds=embeds, use_cache=False, **{MASKS_KEYWORD: masks}).last_hidden_state

    def _loss(self, hidden: torch.Tensor, shape: StepShape) -> torch.Tensor:
        supervised = hidden.flatten(0, 1)[: shape.rows * shape.answer_tokens].clone()  # a mask's choice is a copy
        targets = torch.empty(len(supervised), dtype=torch.long, device="meta")
        logits = self.model.compute_logits(supervised)
        return self.model.loss_function(
            logits=logits,
            labels=None,
            vocab_size=logits.shape[-1],
            shift_labels=targets,
            num_items_in_batch=len(supervised),
        )

    def prefill_flops(self, shape: StepShape) -> int:
        """FLOPs of hearing and reading a prompt, up to the first token of the answer."""
        with torch.no_grad(), flop_counter() as counter:
            self.encode(shape)
            hidden = self._run_language_model(shape, self.project(self._stacked_frames(shape)), False)
            self.model.compute_logits(hidden[:, -1:])
        return counter.get_total_flops()
