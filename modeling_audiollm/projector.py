"""The projector: stacks encoder frames and maps them into the language model's embedding space."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from transformers.activations import ACT2FN

from .audio_tower import length_mask

#: Tokens that one context block sees: 720 ms at 80 ms each.
CONTEXT_KERNEL = 9
#: The readout of letters: 20 ms frames that one slot is made of.
LETTER_FRAMES = 2
#: Cosines lie in [-1, 1]; this makes them the first logits of a readout, which learns its own scale.
INITIAL_SCALE = 20.0


def slot_counts(num_frames: torch.Tensor, stack_factor: int) -> torch.Tensor:
    """Audio tokens that come of so many encoder frames: the last, partly filled stack counts."""
    return (num_frames + stack_factor - 1) // stack_factor


def stack_frames(frames: torch.Tensor, num_frames: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Stack `factor` neighbouring frames; those past a window's end count as zeros.

    Args:
        frames: `(windows, max_frames, d_model)`.
        num_frames: `(windows,)`, the real frames of each.

    Returns:
        Stacked frames `(windows, slots, factor * d_model)` and the boolean mask `(windows, slots)` of the slots that hold
        at least one real frame.
    """
    windows, max_frames, width = frames.shape
    frames = frames.masked_fill(~length_mask(num_frames, max_frames)[:, :, None], 0.0)
    frames = nn.functional.pad(frames, (0, 0, 0, -max_frames % factor))
    stacked = frames.reshape(windows, -1, width * factor)
    return stacked, length_mask(slot_counts(num_frames, factor), stacked.shape[1])


class SwiGLU(nn.Module):
    """Gates the first half of the features with the SiLU of the second (Shazeer 2020, arXiv:2002.05202)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value, gate = hidden_states.chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


class ContextBlock(nn.Module):
    """
    Gated depthwise convolution over `CONTEXT_KERNEL` tokens, added to its input (Dauphin et al. 2017, arXiv:1612.08083).

    A frame of a speech encoder does not hold its own word alone. A block starts as the identity.
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


class PieceReadout(nn.Module):
    """
    Turns projected slots into mixtures of the language model's embeddings (LegoSLM; Ma et al. 2025, arXiv:2505.11352).

    A slot is scored against the embedding of every word piece in the lexicon, less what all embeddings have in common
    (two thirds of an embedding's length in SmolLM2), and against a blank. The token is the embeddings' mean under those
    probabilities, which CTC trains. `residual_gain`, which starts at zero, lets through what no piece can say.

    Attributes:
        lexicon: boolean buffer `(vocab_size,)` of the pieces that can be said; all of them until a warm start says.
        blank: embedding of a slot that says nothing, `(hidden_size,)`.
    """

    lexicon: torch.Tensor

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(()))
        self.blank_bias = nn.Parameter(torch.empty(()))
        self.blank = nn.Parameter(torch.empty(hidden_size))
        self.residual_gain = nn.Parameter(torch.empty(()))
        self.register_buffer("lexicon", torch.empty(vocab_size, dtype=torch.bool))
        self._table: tuple[tuple, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start over: a blank of nothing, and a lexicon of all pieces."""
        nn.init.constant_(self.log_scale, math.log(INITIAL_SCALE))
        for parameter in (self.blank_bias, self.blank, self.residual_gain):
            nn.init.zeros_(parameter)
        nn.init.ones_(self.lexicon)

    def table(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Return the embeddings' common part `(hidden,)`, the pieces' embeddings `(pieces, hidden)` and their unit directions.

        They are kept until the embeddings or the lexicon change.
        """
        if hasattr(embeddings, "full_tensor"):  # sharded over ranks
            embeddings = embeddings.full_tensor()
        if self.lexicon.dtype != torch.bool:  # loading keeps the whole projector in float32
            with torch.inference_mode(False):  # it may be trained afterwards
                self.lexicon = self.lexicon.bool()
        key = (*map(tensor_state, (embeddings, self.lexicon)), self.blank.device)
        if self._table is None or self._table[0] != key:
            # Not of inference mode, even if built in it: training goes on with the same table.
            with torch.inference_mode(False), torch.no_grad():
                whole = embeddings.detach().to(self.blank.device)
                common = whole.mean(dim=0, dtype=torch.float32)
                pieces = whole[self.lexicon].float()
                directions = nn.functional.normalize(pieces - common, dim=-1)
            self._table = key, (common, pieces, directions)
        return self._table[1]

    def queries(self, projected: torch.Tensor, common: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries `(..., hidden)` for slots, whose products with directions are logits, and the blank's logits `(...)`."""
        queries = nn.functional.normalize(projected.float(), dim=-1) * self.log_scale.exp()
        blank = (queries * nn.functional.normalize(self.blank - common, dim=0)).sum(dim=-1)
        return queries, blank + self.blank_bias

    def log_probabilities(self, projected: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities `(..., 1 + pieces)` of slots `(..., hidden)`: of the blank, then of the lexicon by id."""
        common, _, directions = self.table(embeddings)
        queries, blank = self.queries(projected, common)
        return torch.cat([blank[..., None], (queries @ directions.T).float()], dim=-1).log_softmax(dim=-1)

    def forward(self, projected: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return audio tokens `(..., hidden)` of projected slots `(..., hidden)`."""
        probabilities = self.log_probabilities(projected, embeddings).exp()
        _, pieces, _ = self.table(embeddings)
        said = probabilities[..., :1] * self.blank + (probabilities[..., 1:] @ pieces).float()
        return said + self.residual_gain * projected


def tensor_state(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what changes when a tensor's content does, as far as autograd keeps count of it."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class LetterReadout(nn.Module):
    """
    Spells what is heard, by CTC over letters in slots of 40 ms, for n-best rescoring. Only stage align trains it.

    A word that training seldom had is unlikely as a word piece, but its letters are those of other words.

    Attributes:
        words: words that are searched for in the letters, the most frequent first: the bytes `(bytes,)` of UTF-8, one word a
            line; None where there are none.
    """

    words: torch.Tensor | None

    def __init__(self, config):
        super().__init__()
        eps, width = config.projector_norm_eps, config.projector_letter_width
        stacked_size = LETTER_FRAMES * config.audio_config.hidden_size
        self.norm_in = nn.RMSNorm(stacked_size, eps=eps)
        self.linear_in = nn.Linear(stacked_size, width, bias=False)
        self.context = nn.ModuleList(ContextBlock(width, eps) for _ in range(config.projector_letter_layers))
        self.norm_out = nn.RMSNorm(width, eps=eps)
        self.linear_out = nn.Linear(width, 2 + len(config.projector_letters))
        size = config.projector_letter_words
        self.register_buffer("words", torch.zeros(size, dtype=torch.uint8) if size else None)

    def known_words(self) -> list[str]:
        """Return the words that are searched for, the most frequent first."""
        if self.words is None:
            return []
        if self.words.dtype != torch.uint8:  # loading keeps the whole projector in float32
            with torch.inference_mode(False):  # it may be saved afterwards
                self.words = self.words.to(torch.uint8)
        return bytes(self.words.tolist()).decode("utf-8").split()

    def set_words(self, words: Iterable[str], config) -> None:
        """Replace the words that are searched for, and say their size in the configuration."""
        listed = "\n".join(words).encode("utf-8")
        config.projector_letter_words = len(listed)
        self.words = torch.tensor(list(listed)).to(self.linear_out.weight.device, torch.uint8) if listed else None

    def forward(self, frames: torch.Tensor, num_frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            frames: encoder frames, `(windows, max_frames, d_model)`, padded on the right.
            num_frames: `(windows,)`, the real frames of each window.

        Returns:
            Log-probabilities `(windows, slots, 2 + letters)` in float32, the blank and the space first, and the slots of
            each window `(windows,)`.
        """
        stacked, mask = stack_frames(frames, num_frames, LETTER_FRAMES)
        hidden_states = nn.functional.gelu(self.linear_in(self.norm_in(stacked.to(self.linear_in.weight.dtype))))
        for block in self.context:
            hidden_states = block(hidden_states, mask)
        scores = self.linear_out(self.norm_out(hidden_states))
        return scores.float().log_softmax(dim=-1), slot_counts(num_frames, LETTER_FRAMES)


class AudioLlmProjector(nn.Module):
    """
    Stacks `stack_factor` frames of 20 ms into one token and projects it, without biases.

    The default (`"swiglu"`) has the layout of Ultravox 0.5 and later, which llama.cpp and vLLM can run. With
    `projector_context_layers`, the second linear layer gives tokens of the encoder's width, which so many
    [`ContextBlock`]s and one more linear layer follow. With `projector_readout="pieces"`, [`PieceReadout`] follows.
    """

    def __init__(self, config):
        super().__init__()
        self.stack_factor = config.stack_factor
        stacked_size = config.audio_config.hidden_size * config.stack_factor
        hidden_size = config.projector_hidden_size
        output_size = config.text_config.hidden_size
        eps = config.projector_norm_eps

        self.norm_pre = nn.RMSNorm(stacked_size, eps=eps) if config.projector_pre_norm else nn.Identity()
        self.linear_1: nn.Module = nn.Identity()
        self.activation: nn.Module = nn.Identity()
        middle_size = stacked_size
        if config.projector_type != "linear":
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
        self.letters = LetterReadout(config) if config.projector_letters else None

    @property
    def dtype(self) -> torch.dtype:
        """The projector's own precision, which may be higher than that of the frozen bases."""
        return self.linear_2.weight.dtype

    def stack(self, frames: torch.Tensor, num_frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stack the frames of audio tokens; see [`stack_frames`]."""
        return stack_frames(frames, num_frames, self.stack_factor)

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
        self, frames: torch.Tensor, num_frames: torch.Tensor, embeddings: torch.Tensor, first: int = 0
    ) -> torch.Tensor:
        """
        Return the CTC log-probabilities `(total_slots, 1 + pieces)` of the readout of pieces, without those before `first`.

        See [`forward`] for the other arguments.
        """
        assert self.readout is not None, "This projector has no readout of pieces."
        return self.readout.log_probabilities(self.project(*self.stack(frames, num_frames))[first:], embeddings)

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
