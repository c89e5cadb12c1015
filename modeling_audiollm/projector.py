"""The projector: stacks encoder frames and maps them into the language model's embedding space."""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from .audio_tower import length_mask
from .piece_readout import PieceReadout

#: Tokens that one context block sees: 720 ms at 80 ms each.
CONTEXT_KERNEL = 9


def slot_counts(num_frames: torch.Tensor, stack_factor: int) -> torch.Tensor:
    """Audio tokens that come of so many encoder frames: the last, partly filled stack counts."""
    return (num_frames + stack_factor - 1) // stack_factor


class SwiGLU(nn.Module):
    """Gates the first half of the features with the SiLU of the second (Shazeer 2020, arXiv:2002.05202)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value, gate = hidden_states.chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


class ContextBlock(nn.Module):
    """
    Gated depthwise convolution over neighbouring tokens, added to its input (Dauphin et al. 2017, arXiv:1612.08083).

    A frame of a speech encoder does not say its own word by itself; the encoder's decoder looks around. A block sees
    `CONTEXT_KERNEL` tokens. It starts as the identity.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.conv = nn.Conv1d(width, width, CONTEXT_KERNEL, padding=CONTEXT_KERNEL // 2, groups=width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw random weights, and zeros for the last layer."""
        nn.init.ones_(self.norm.weight)
        nn.init.kaiming_uniform_(self.gate.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.conv.weight, a=math.sqrt(5))
        nn.init.zeros_(self.out.weight)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            tokens: `(windows, slots, width)`.
            mask: boolean `(windows, slots)`, False past a window's end. What lies there reaches no real token.
        """
        value, gate = self.gate(self.norm(tokens)).chunk(2, dim=-1)
        hidden_states = (value * gate.sigmoid()).masked_fill(~mask[:, :, None], 0.0)
        hidden_states = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)
        return tokens + self.out(nn.functional.silu(hidden_states))


class AudioLlmProjector(nn.Module):
    """
    Stacks `stack_factor` frames of 20 ms into one token and projects it, without biases.

    The default (`"swiglu"`: RMSNorm, linear, SwiGLU, RMSNorm, linear) has the layout of Ultravox 0.5 and later, which
    llama.cpp and vLLM can run. `"mlp"` has an ordinary activation instead of the gate; `"linear"` is a single layer.
    With `projector_context_layers`, the second linear layer gives tokens of the encoder's width, which so many
    [`ContextBlock`]s and one more linear layer follow. With `projector_readout="pieces"` the result is said in the
    language model's own embeddings ([`PieceReadout`]).
    """

    def __init__(self, config):
        super().__init__()
        self.stack_factor = config.stack_factor
        stacked_size = config.audio_config.hidden_size * config.stack_factor
        hidden_size = config.projector_hidden_size
        output_size = config.text_config.hidden_size
        eps = config.projector_norm_eps

        self.norm_pre = nn.RMSNorm(stacked_size, eps=eps) if config.projector_pre_norm else nn.Identity()
        if config.projector_type == "linear":
            self.linear_1: nn.Module = nn.Identity()
            self.activation: nn.Module = nn.Identity()
            middle_size = stacked_size
        else:
            gated = config.projector_type == "swiglu"
            self.linear_1 = nn.Linear(stacked_size, hidden_size, bias=False)
            self.activation = SwiGLU() if gated else ACT2FN[config.projector_activation]
            middle_size = hidden_size // 2 if gated else hidden_size
        has_mid_norm = config.projector_mid_norm and config.projector_type != "linear"
        self.norm_mid = nn.RMSNorm(middle_size, eps=eps) if has_mid_norm else nn.Identity()
        num_blocks = config.projector_context_layers
        width = config.audio_config.hidden_size if num_blocks else output_size
        self.linear_2 = nn.Linear(middle_size, width, bias=False)
        self.context = nn.ModuleList(ContextBlock(width, eps) for _ in range(num_blocks))
        if num_blocks:
            self.norm_context = nn.RMSNorm(width, eps=eps)
            self.linear_3 = nn.Linear(width, output_size, bias=False)
        speaks = config.projector_readout == "pieces"
        self.readout = PieceReadout(config.text_config.vocab_size, output_size) if speaks else None

    @property
    def dtype(self) -> torch.dtype:
        """The projector's own precision, which may be higher than that of the frozen bases."""
        return self.linear_2.weight.dtype

    def stack(self, frames: torch.Tensor, num_frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Stacks neighbouring frames; those past a window's end count as zeros.

        Args:
            frames: `(windows, max_frames, d_model)`.
            num_frames: `(windows,)`, the real frames of each.

        Returns:
            Stacked frames `(windows, slots, stack_factor * d_model)` and the boolean mask `(windows, slots)` of the
            slots that hold at least one real frame.
        """
        windows, max_frames, width = frames.shape
        frames = frames.masked_fill(~length_mask(num_frames, max_frames)[:, :, None], 0.0)
        padding = -max_frames % self.stack_factor
        frames = nn.functional.pad(frames, (0, 0, 0, padding))
        stacked = frames.reshape(windows, -1, width * self.stack_factor)
        return stacked, length_mask(slot_counts(num_frames, self.stack_factor), stacked.shape[1])

    def project(self, stacked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Project what [`stack`] returns; tokens of all windows one after the other, `(total_slots, hidden_size)`."""
        # Without context, padding is dropped before the projection, and costs nothing.
        hidden_states = stacked if self.context else stacked[mask]
        hidden_states = self.norm_pre(hidden_states.to(self.dtype))
        hidden_states = self.activation(self.linear_1(hidden_states))
        hidden_states = self.linear_2(self.norm_mid(hidden_states))
        if not self.context:
            return hidden_states
        for block in self.context:
            hidden_states = block(hidden_states, mask)
        return self.linear_3(self.norm_context(hidden_states[mask]))

    def log_probabilities(
        self, frames: torch.Tensor, num_frames: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """Return the CTC log-probabilities `(total_slots, 1 + pieces)` of the readout of pieces; see [`forward`]."""
        assert self.readout is not None, "This projector has no readout of pieces."
        return self.readout.log_probabilities(self.project(*self.stack(frames, num_frames)), embeddings)

    def forward(
        self, frames: torch.Tensor, num_frames: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            frames: encoder frames, `(windows, max_frames, d_model)`, padded on the right.
            num_frames: `(windows,)`, the real frames of each window.
            embeddings: the language model's, `(vocab_size, hidden_size)`, which the readout of pieces needs.

        Returns:
            The audio tokens of all windows one after the other, `(total_slots, hidden_size)`.
        """
        projected = self.project(*self.stack(frames, num_frames))
        if self.readout is None:
            return projected
        if embeddings is None:
            raise ValueError("A projector that reads out pieces needs the language model's embeddings.")
        return self.readout(projected, embeddings)
