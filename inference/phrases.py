"""
Phrases of a window: the encoder hears a window as a whole, and its text is chosen phrase by phrase.

An encoder hears a voice better the more of it it hears. An n-best list, though, holds the alternatives of a few words only.
"""

import math

import numpy as np
import torch
from audiollm.projector import LETTER_FRAMES

from .spoken_pieces import BLANK

#: Longest phrase where CTC hears a gap to end it at, and its least share of that.
PHRASE_SECONDS, LEAST_SHARE = 5.0, 1 / 3
#: CTC's class of the space between words, for letters; and the probability of no piece and no letter, from which a slot is a gap.
SPACE, GAP_PROBABILITY = 1, 0.5


def phrase_ends(pieces: torch.Tensor, letters: torch.Tensor | None, stack_factor: int, max_slots: int) -> list[int]:
    """
    Return the slots at which the phrases of a window end, the last of them its own end.

    A phrase of more than `max_slots` ends in the middle of the longest gap before: slots without a piece or a letter.

    Args:
        pieces: CTC's log-probabilities of the window, `(slots, 1 + pieces)`, the blank first.
        letters: those of its letters, `(slots of 40 ms, 2 + letters)`; None without.
        stack_factor: encoder frames of a slot.
        max_slots: longest phrase.
    """
    num_slots = len(pieces)
    quiet = pieces[:, BLANK].exp().cpu().numpy()
    if letters is not None:
        spelled = letters[:, [BLANK, SPACE]].exp().sum(dim=1).cpu().numpy()
        edges = np.arange(num_slots + 1) * stack_factor / LETTER_FRAMES
        spans = zip(np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int))
        quiet = quiet * [spelled[first:end].min(initial=1.0) for first, end in spans]
    least = max(1, int(max_slots * LEAST_SHARE))
    ends = [0]
    while num_slots - ends[-1] > max_slots:
        first = ends[-1] + least
        ends.append(first + _middle_of_gap(quiet[first : ends[-1] + max_slots]))
    return [*ends[1:], num_slots]


def _middle_of_gap(quiet: np.ndarray) -> int:
    """Return the middle of the longest run that is likely quiet; else the likeliest slot."""
    inside = np.concatenate([[False], quiet >= GAP_PROBABILITY, [False]])
    (edges,) = np.nonzero(np.diff(inside))
    if not len(edges):
        return int(quiet.argmax())
    starts, ends = edges[::2], edges[1::2]
    longest = int((ends - starts).argmax())
    return math.ceil((starts[longest] + ends[longest]) / 2)
