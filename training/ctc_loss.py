"""CTC loss over a large lexicon of word pieces, in the memory of a few of them."""

import torch
from torch import nn

#: Slots whose logits over the whole lexicon are in memory at a time.
SLOTS_PER_CHUNK = 1024
#: Log-probability of slots past a clip's end, which no path goes through.
NEVER = -30.0


class PieceCtcLoss(torch.autograd.Function):
    """
    Sum of the clips' CTC losses, as `torch.nn.functional.ctc_loss` of the logits' `log_softmax` gives it.

    Of a lexicon of thousands of pieces, a clip's paths go through its own few; all others only take part in the
    normaliser. So the recursion runs over the transcript's pieces, and the logits of all pieces are computed twice, a
    chunk of slots at a time, instead of being kept with their log-probabilities and the gradients of both.
    """

    @staticmethod
    def forward(ctx, queries, blank_logits, directions, slots, targets, target_lengths):
        """
        Args:
            queries: `(clips, max_slots, hidden)`, float32; see [`audiollm.piece_readout.PieceReadout.queries`].
            blank_logits: `(clips, max_slots)`.
            directions: of the pieces, `(pieces, hidden)`; in half precision where the products are to be computed so.
            slots, target_lengths: `(clips,)`, of each clip.
            targets: classes `(clips, max_targets)`, padded with anything; piece `n` is class `n + 1`.
        """
        if not targets.shape[1]:  # nobody speaks in any clip
            targets = targets.new_zeros(len(targets), 1)
        real = torch.arange(queries.shape[1], device=queries.device) < slots[:, None]
        flat, blanks = queries[real], blank_logits[real]
        chunks = flat.to(directions.dtype).split(SLOTS_PER_CHUNK)
        normaliser = torch.cat([(chunk @ directions.T).float().logsumexp(dim=1) for chunk in chunks])
        normaliser = torch.logaddexp(normaliser, blanks)

        # A piece that comes twice is one class: that of its first place.
        places = (targets[:, :, None] == targets[:, None, :]).int().argmax(dim=2)
        spoken = directions[(targets - 1).clamp(min=0)].float()
        logits = torch.cat([blank_logits[:, :, None], queries @ spoken.transpose(1, 2)], dim=2)
        scores = logits.new_full(logits.shape, NEVER)
        scores[real] = logits[real] - normaliser[:, None]
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            losses = nn.functional.ctc_loss(
                leaf.transpose(0, 1), places + 1, slots, target_lengths, reduction="none", zero_infinity=True
            )
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        # torch takes the scores for log-probabilities of all classes: its gradient is their exponential less the occupancy.
        # The loss of a clip with more pieces than slots is zero, and so is its gradient.
        alignable = real & (losses.detach() > 0)[:, None]
        occupancy = (scores.exp() - gradient) * alignable[:, :, None]

        grad = queries.new_zeros(queries.shape)
        weights = alignable[real].float()
        parts = []
        for chunk, norm, weight in zip(chunks, normaliser.split(SLOTS_PER_CHUNK), weights.split(SLOTS_PER_CHUNK)):
            probabilities = ((chunk @ directions.T).float() - norm[:, None]).exp() * weight[:, None]
            parts.append((probabilities.to(directions.dtype) @ directions).float())
        grad[real] = torch.cat(parts)
        grad -= occupancy[:, :, 1:] @ spoken
        blank_grad = blank_logits.new_zeros(blank_logits.shape)
        blank_grad[real] = (blanks - normaliser).exp() * weights
        ctx.save_for_backward(grad, blank_grad - occupancy[:, :, 0])
        return losses.sum()

    @staticmethod
    def backward(ctx, upstream):
        """Scale the gradients that [`forward`] computed."""
        grad, blank_grad = ctx.saved_tensors
        return grad * upstream, blank_grad * upstream, None, None, None, None
