"""
Word times and confidence: the likeliest CTC alignment of a transcript with the posteriors of its audio tokens.

CTC puts a word piece on one token, a spike, somewhere in the middle of its sound. Two words so meet half-way between the last
spike of the one and the first spike of the other, or each stays near its own where there is a pause between them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from audiollm.projector import slot_counts

from .spoken_pieces import BLANK, SpokenLexicon, spoken_form
from .transcripts import Word

#: Encoders of either kind give a frame each 20 ms.
SECONDS_PER_FRAME = 0.02
#: Lead of a word's beginning before half-way between the centres of two spikes. This and the reach of a word beyond its
#: spikes, before and after, were fitted to Whisper's cross-attention times of studio prompts.
SPIKE_DELAY_SECONDS = 0.06
REACH_SECONDS = 0.3
#: CTC's probability of a word as the share of such words that are right: slope and offset of their logits, fitted to words of
#: development clips (`benchmarks/confidence.py`). CTC is too sure where it is sure, and too unsure where it is not.
CONFIDENCE_SLOPE, CONFIDENCE_OFFSET = 0.32, 1.2
#: Probabilities further out than this from 0 and 1 count as this.
LEAST_PROBABILITY = 0.002


def check_readout(config) -> None:
    """Raise ValueError where the model of a configuration has no CTC posteriors."""
    if config.projector_readout != "pieces":
        raise ValueError(
            "Times of words need CTC posteriors, but this model's projector has none: projector_readout is "
            f"{config.projector_readout!r}. Leave out the word times, or train a model with "
            "`--stage align --projector_readout pieces`."
        )


def spoken_lexicon(model, tokenizer) -> SpokenLexicon:
    """Return the word pieces that a model's readout knows."""
    readout = model.model.multi_modal_projector.readout
    return SpokenLexicon(tokenizer, readout.lexicon.bool().nonzero().flatten().tolist())


def viterbi_states(log_probabilities: torch.Tensor, targets: Sequence[int]) -> np.ndarray | None:
    """
    Return the likeliest CTC alignment of a clip.

    Args:
        log_probabilities: `(slots, 1 + pieces)`, the blank first.
        targets: classes of the spoken text.

    Returns:
        The state of each slot: `2 * n` in the gap before target `n` (counting from 0), `2 * n + 1` in target `n`; None
        where the slots are too few.
    """
    extended = np.full(2 * len(targets) + 1, BLANK, dtype=np.int64)
    extended[1::2] = targets
    scores = log_probabilities[:, torch.from_numpy(extended)].cpu().double().numpy()
    skips = np.zeros(len(extended), dtype=bool)
    skips[3::2] = extended[3::2] != extended[1:-2:2]
    best = np.full(len(extended), -np.inf)
    best[:2] = scores[0, :2]
    moves = np.zeros(scores.shape, dtype=np.int8)
    for slot in range(1, len(scores)):
        ways = np.full((3, len(extended)), -np.inf)
        ways[0] = best
        ways[1, 1:] = best[:-1]
        ways[2, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        moves[slot] = ways.argmax(axis=0)
        best = ways.max(axis=0) + scores[slot]
    state = len(extended) - 1 if best[-1] >= best[-2] else len(extended) - 2
    if not np.isfinite(best[state]):
        return None
    states = np.empty(len(scores), dtype=np.int64)
    for slot in range(len(scores) - 1, -1, -1):
        states[slot] = state
        state -= int(moves[slot, state])
    return states


def slot_log_probabilities(
    model, encoded_audio: torch.Tensor, encoded_audio_lengths: torch.Tensor, counts: Sequence[int], first: int = 0
) -> list[torch.Tensor]:
    """
    Return the CTC log-probabilities of rows' audio tokens, `(slots, 1 + pieces)` each, the blank first, in float32.

    Args:
        encoded_audio: encoder frames `(windows, max_frames, d_model)` of all rows in reading order.
        encoded_audio_lengths: `(windows,)`.
        counts: audio tokens of each row.
        first: audio token of the first row that is the first to be read out.
    """
    projector, embeddings = model.model.multi_modal_projector, model.get_input_embeddings().weight
    scores = projector.log_probabilities(encoded_audio, encoded_audio_lengths, embeddings, first)
    return list(scores.float().split([counts[0] - first, *counts[1:]]))


def letter_log_probabilities(
    model, encoded_audio: torch.Tensor, encoded_audio_lengths: torch.Tensor, counts: Sequence[int]
) -> list[torch.Tensor | None]:
    """
    Return the log-probabilities of rows' letters, `(slots of 40 ms, 2 + letters)` each, the blank and the space first, in float32.

    None for each row of a model without a readout of letters. The arguments are those of [`slot_log_probabilities`].
    """
    readout = model.model.multi_modal_projector.letters
    if readout is None:
        return [None] * len(counts)
    scores, slots = readout(encoded_audio, encoded_audio_lengths)
    windows = iter([row[:length] for row, length in zip(scores, slots.tolist())])
    tokens = iter(slot_counts(encoded_audio_lengths, model.config.stack_factor).tolist())
    rows: list[torch.Tensor | None] = []
    for count in counts:
        parts = []
        while count > 0:
            parts.append(next(windows))
            count -= next(tokens)
        rows.append(torch.cat(parts))
    return rows


def align_words(
    lexicon: SpokenLexicon, log_probabilities: torch.Tensor, text: str, seconds_per_slot: float
) -> tuple[Word, ...]:
    """
    Return the words of a transcript, as they are written, with their times and confidence.

    Marks that stand alone belong to the word before. A word that no piece can spell, such as a number in figures, lies
    between its neighbours, and has no confidence. Where the slots are too few for the text, its words share them evenly.

    Args:
        log_probabilities: CTC's of the slots that the text was heard in, `(slots, 1 + pieces)`, the blank first.
        text: the transcript.
        seconds_per_slot: length of an audio token.

    Returns:
        Words with times in seconds from the first slot's beginning.
    """
    written = _written_words(text)
    classes = [_pieces(lexicon, word) for word in written]
    said = [one for word in classes for one in word]
    states = viterbi_states(log_probabilities, said) if said else None
    length = len(log_probabilities) * seconds_per_slot
    if states is None:
        edges = np.linspace(0, length, len(written) + 1).tolist()
        return tuple(
            Word(word, start, end, 0.0 if pieces else None)
            for word, pieces, (start, end) in zip(written, classes, pairwise(edges))
        )
    slots = [np.flatnonzero(states == 2 * number + 1) for number in range(len(said))]
    peaks = [float(log_probabilities[at, one].max()) for at, one in zip(slots, said)]
    spikes, logprobs = [], []
    ends = np.cumsum([len(word) for word in classes]).tolist()
    for first, end in zip([0, *ends], ends):
        if end > first:
            spikes.append((np.array([slots[first][0], slots[end - 1][-1]]) + 0.5) * seconds_per_slot)
            logprobs.append(sum(peaks[first:end]))
    timed = iter(zip(_spans(spikes, length), logprobs))
    words: list[Word] = []
    for word, pieces in zip(written, classes):
        (start, end), logprob = next(timed) if pieces else ((math.nan, math.nan), None)
        words.append(Word(word, start, end, None if logprob is None else confidence_of(logprob)))
    return _fill(words, length)


def confidence_of(logprob: float) -> float:
    """Return the share of words with this log-probability of their pieces that are right, 0 to 1."""
    probability = min(max(math.exp(logprob), LEAST_PROBABILITY), 1 - LEAST_PROBABILITY)
    logit = CONFIDENCE_SLOPE * math.log(probability / (1 - probability)) + CONFIDENCE_OFFSET
    return round(1 / (1 + math.exp(-logit)), 3)


def _pieces(lexicon: SpokenLexicon, word: str) -> list[int]:
    """Return the classes of a word; none where they would be its space alone."""
    classes = lexicon.encode(word)
    return classes if lexicon.decode(classes) else []


def _written_words(text: str) -> list[str]:
    """Return the text at its spaces; marks that stand alone are kept with a neighbour, and without a word they are none."""
    words: list[str] = []
    for part in text.split():
        if words and not (spoken_form(words[-1]) and spoken_form(part)):
            words[-1] += f" {part}"
        else:
            words.append(part)
    return words if spoken_form(text) else []


def _spans(spikes: Sequence[np.ndarray], length: float) -> list[tuple[float, float]]:
    """Return start and end of words by the centres of their first and last spikes, in seconds."""
    spans = []
    for index, (first, last) in enumerate(spikes):
        earliest, latest = first - REACH_SECONDS, last + REACH_SECONDS
        if index:
            earliest = max(earliest, (spikes[index - 1][1] + first) / 2)
        if index + 1 < len(spikes):
            latest = min(latest, (last + spikes[index + 1][0]) / 2)
        start = min(max(float(earliest) - SPIKE_DELAY_SECONDS, 0.0), length)
        spans.append((start, min(max(float(latest) - SPIKE_DELAY_SECONDS, start), length)))
    return spans


def _fill(words: list[Word], length: float) -> tuple[Word, ...]:
    """Put words without times between their neighbours."""
    for index, word in enumerate(words):
        if word.confidence is None:
            start = words[index - 1].end_s if index else 0.0
            end = next((one.start_s for one in words[index + 1 :] if one.confidence is not None), length)
            words[index] = replace(word, start_s=start, end_s=max(start, end))
    return tuple(words)
