"""Audio tokens said in the language model's own words: a mixture of its embeddings instead of a free vector."""

import math

import torch
from torch import nn

#: Cosines lie in [-1, 1]; this makes them logits. It is learned from here on.
INITIAL_SCALE = 20.0


class PieceReadout(nn.Module):
    """
    Turns projected slots into mixtures of the language model's embeddings, weighted by how likely each piece is.

    A slot is scored against the embedding of every word piece in the lexicon, less what all embeddings have in common
    (two thirds of an embedding's length in SmolLM2, which makes all cosines alike), and against a blank. The token is
    the embeddings' mean under those probabilities. The language model so reads what it has always read, with the
    doubts of the hearing left in, and has little to learn; CTC trains the very same probabilities before it is run.
    Mixtures by CTC posteriors are LegoSLM's (Ma et al. 2025, arXiv:2505.11352).

    What no piece can say may pass through `residual_gain`, which starts at nothing and is learned.

    Args:
        vocab_size, hidden_size: of the language model.

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
        Return the embeddings' common part `(hidden,)`, the pieces' embeddings `(pieces, hidden)`
        and their distinct directions, of unit length; they are kept until the embeddings or the lexicon change.
        """
        if hasattr(embeddings, "full_tensor"):  # sharded over ranks
            embeddings = embeddings.full_tensor()
        if self.lexicon.dtype != torch.bool:  # loading keeps the whole projector in float32
            with torch.inference_mode(False):  # it may be trained afterwards
                self.lexicon = self.lexicon.bool()
        key = (*map(_state, (embeddings, self.lexicon)), self.blank.device)
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
        """
        Return queries `(..., hidden)`, whose products with the pieces' directions are the logits, and the blank's logits `(...)`.

        Args:
            projected: slots, `(..., hidden)`.
            common: what the embeddings have in common; with the directions, it is part of [`table`].
        """
        queries = nn.functional.normalize(projected.float(), dim=-1) * self.log_scale.exp()
        blank = (queries * nn.functional.normalize(self.blank - common, dim=0)).sum(dim=-1)
        return queries, blank + self.blank_bias

    def log_probabilities(self, projected: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """
        Log-probabilities `(..., 1 + pieces)` of projected slots `(..., hidden)`: the blank, then the lexicon by id.

        Args:
            embeddings: the language model's, `(vocab_size, hidden)`.
        """
        common, _, directions = self.table(embeddings)
        queries, blank = self.queries(projected, common)
        return torch.cat([blank[..., None], (queries @ directions.T).float()], dim=-1).log_softmax(dim=-1)

    def forward(self, projected: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Audio tokens `(..., hidden)` of projected slots `(..., hidden)`; see [`log_probabilities`]."""
        probabilities = self.log_probabilities(projected, embeddings).exp()
        _, pieces, _ = self.table(embeddings)
        said = probabilities[..., :1] * self.blank + (probabilities[..., 1:] @ pieces).float()
        return said + self.residual_gain * projected


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    """Changes when a tensor's content does, as far as autograd keeps count of it."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
