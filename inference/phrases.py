"""
Phrases of a window: the encoder hears a window as a whole, and its text is chosen phrase by phrase.

An encoder hears a voice better the more of it it hears. An n-best list, though, holds the alternatives of a few words only.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from audiollm.projector import LETTER_FRAMES, slot_counts
from torch.nn.utils.rnn import pad_sequence

from .ctc_alignment import SECONDS_PER_FRAME, letter_log_probabilities, slot_log_probabilities
from .spoken_pieces import BLANK

Written = TypeVar("Written")
#: Lengths of batches, in encoder frames and in frames of windows, go up in such steps: torch's libraries keep what they have
#: prepared for each shape that they have seen, megabytes each.
FRAMES_STEP, WINDOW_STEP = 50, 250
#: From first to last encoder frame.
Span = tuple[int, int]

#: Longest phrase where CTC hears a gap to end it at, and its least share of that.
PHRASE_SECONDS, LEAST_SHARE = 5.0, 1 / 3
#: Nobody speaks faster, in any script; the bound soon ends a loop in a short phrase. Tokens that are allowed besides.
MAX_TOKENS_PER_SECOND, SPARE_TOKENS = 25, 16
#: CTC's class of the space between words, for letters; and the probability of no piece and no letter, from which a slot is a gap.
SPACE, GAP_PROBABILITY = 1, 0.5


class Heard(NamedTuple):
    """
    CTC's log-probabilities of a stretch of sound.

    Attributes:
        pieces: of word pieces, `(slots, 1 + pieces)`, the blank first.
        letters: `(slots of 40 ms, 2 + letters)`, the blank and the space first; None of a model that reads none.
    """

    pieces: torch.Tensor
    letters: torch.Tensor | None

    def part(self, span: Span, stack_factor: int) -> "Heard":
        """Return what was heard between two encoder frames, in float32."""
        first, end = span
        letters = self.letters
        if letters is not None:
            letters = letters[first // LETTER_FRAMES : -(-end // LETTER_FRAMES)]
        return Heard(self.pieces[first // stack_factor : -(-end // stack_factor)].float(), letters)


def hear_phrases(
    model, encoded_audio: torch.Tensor, encoded_audio_lengths: torch.Tensor
) -> tuple[list[list[Span]], list[Heard]]:
    """
    Return the encoder frames of each window's phrases, and what CTC hears in each window.

    Without CTC posteriors, a window is one phrase and nothing is heard. On the CPU, word pieces in float16: a window of 25 s
    takes 12 MB.

    Args:
        encoded_audio: encoder frames `(windows, max_frames, d_model)`.
        encoded_audio_lengths: `(windows,)`.
    """
    lengths, stack = encoded_audio_lengths.tolist(), model.config.stack_factor
    if model.config.projector_readout != "pieces":
        return [[(0, length)] for length in lengths], []
    counts = slot_counts(encoded_audio_lengths, stack).tolist()
    max_slots = round(PHRASE_SECONDS / (SECONDS_PER_FRAME * stack))
    spans, heard = [], []
    for window, (length, count) in enumerate(zip(lengths, counts)):  # one at a time: all pieces of all slots are large
        one = slice(window, window + 1)
        audio = (model, encoded_audio[one], encoded_audio_lengths[one], [count])
        (pieces,), (letters,) = slot_log_probabilities(*audio), letter_log_probabilities(*audio)
        edges = [0, *(min(end * stack, length) for end in phrase_ends(pieces, letters, stack, max_slots))]
        spans.append(list(pairwise(edges)))
        heard.append(Heard(pieces.half().cpu(), letters))
    return spans, heard


def write_phrases(
    spans: Sequence[Sequence[Span]], write: Callable[[list[int], list[Span], list[list[Written]]], Sequence[Written]]
) -> list[list[Written]]:
    """
    Return what is written for the phrases of windows: the first ones of all windows together, then the second ones.

    Args:
        spans: of [`hear_phrases`].
        write: is given windows by number, a span of each, and what was written before in it; returns what it writes for each.
    """
    written: list[list[Written]] = [[] for _ in spans]
    for number in range(max(map(len, spans), default=0)):
        windows = [window for window, own in enumerate(spans) if number < len(own)]
        new = write(windows, [spans[window][number] for window in windows], [written[window] for window in windows])
        for window, one in zip(windows, new):
            written[window].append(one)
    return written


def phrase_inputs(
    model, tokenizer, prompts: Sequence[Sequence[int]], frames: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """
    Return the inputs of `generate` that ask each prompt about its frames, padded on the left.

    Args:
        prompts: token ids, with any number of audio tokens in one place.
        frames: encoder frames `(frames, d_model)`.
    """
    counts = [-(-len(one) // model.config.stack_factor) for one in frames]
    rows = [_with_slots(prompt, model.config.audio_token_id, count) for prompt, count in zip(prompts, counts)]
    texts = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
    return {
        **{name: texts[name] for name in ("input_ids", "attention_mask")},
        "encoded_audio": padded_to_step(pad_sequence(list(frames), batch_first=True), 1, FRAMES_STEP),
        "encoded_audio_lengths": torch.tensor(list(map(len, frames)), device=frames[0].device),
    }


def padded_to_step(batch: torch.Tensor, dim: int, step: int, most: int | None = None) -> torch.Tensor:
    """Return a batch with zeros behind, so that a dimension is a multiple of `step`, or `most`."""
    length = batch.shape[dim]
    more = min(-length % step, (most or length + step) - length)
    return torch.cat([batch, batch.new_zeros([*batch.shape[:dim], more, *batch.shape[dim + 1 :]])], dim=dim)


def phrase_bound(frames: torch.Tensor) -> int:
    """Return the most tokens that the text of a phrase of these encoder frames may have."""
    return SPARE_TOKENS + int(MAX_TOKENS_PER_SECOND * len(frames) * SECONDS_PER_FRAME)


def _with_slots(prompt: Sequence[int], slot_id: int, count: int) -> list[int]:
    """Return a prompt with `count` audio tokens in place of its own."""
    first = prompt.index(slot_id)
    rest = [one for one in prompt[first:] if one != slot_id]
    return [*prompt[:first], *[slot_id] * count, *rest]


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
