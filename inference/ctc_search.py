"""CTC over one recording's slots: the likeliest texts by a prefix beam search, and the likelihood of given ones."""

from collections.abc import Sequence

import numpy as np
import torch

from .context_words import SEARCH_BONUS, START, ContextTrie
from .spoken_pieces import BLANK

#: Texts that are followed at once, and pieces that each may go on with at a slot: the likeliest of it.
NUM_PREFIXES, NUM_PIECES = 48, 10


def prefix_beam_search(
    log_probabilities: torch.Tensor,
    num_best: int,
    num_prefixes: int = NUM_PREFIXES,
    num_pieces: int = NUM_PIECES,
    context: ContextTrie | None = None,
    beginning: Sequence[int] = (),
) -> list[tuple[tuple[int, ...], float]]:
    """
    The likeliest class sequences, summed over their alignments (Hannun et al. 2014, arXiv:1408.2873).

    Libraries there are read vocabularies of characters or of `▁`, and numpy 1; a language model's is neither.

    Args:
        log_probabilities: `(slots, classes)`, the blank first.
        num_best: how many to return at most.
        num_prefixes, num_pieces: how wide it is searched: with as many as there are, nothing is missed.
        context: words to favour.
        beginning: classes that every sequence begins with.

    Returns:
        Sequences without blanks, the likeliest first, with their log-likelihoods as far as they were followed.
    """
    scores = log_probabilities.detach().cpu().double().numpy()
    num_pieces = min(num_pieces, scores.shape[1] - 1)
    favoured = scores if context is None else scores + SEARCH_BONUS * context.has_class
    order = torch.from_numpy(favoured[:, BLANK + 1 :]).topk(num_pieces, dim=1).indices.numpy() + BLANK + 1
    # A prefix is a number: that it ends with `last[n]`, and goes on from the prefix `parent[n]`.
    numbers: dict[tuple[int, int], int] = {}
    parent, last, depths, states = [-1], [BLANK], [0], [START]
    alive = np.zeros(1, dtype=np.int64)
    ends_blank, ends_piece = np.zeros(1), np.full(1, -np.inf)
    for slot, likeliest in zip(scores, order):
        pieces = np.array(list(dict.fromkeys([*likeliest.tolist(), *beginning])))
        endings = np.array([last[number] for number in alive.tolist()])
        total = np.logaddexp(ends_blank, ends_piece)
        stays_blank = total + slot[BLANK]
        stays_piece = np.where(endings == BLANK, -np.inf, ends_piece + slot[endings])
        # A piece that follows itself is another one only after a blank.
        repeats = pieces[None] == endings[:, None]
        grows = np.where(repeats, ends_blank[:, None], total[:, None]) + slot[pieces][None]
        followed = alive.tolist()
        for index, number in enumerate(followed):
            if depths[number] < len(beginning):
                grows[index, pieces != beginning[depths[number]]] = -np.inf
        place = {number: index for index, number in enumerate(followed)}
        column = {piece: index for index, piece in enumerate(pieces.tolist())}
        for index, number in enumerate(followed):  # what grows into a prefix that is followed already
            source, target = place.get(parent[number]), column.get(last[number])
            if source is not None and target is not None:
                stays_piece[index] = np.logaddexp(stays_piece[index], grows[source, target])
                grows[source, target] = -np.inf
        everything = np.concatenate([np.logaddexp(stays_blank, stays_piece), grows.ravel()])
        ranks = everything
        if context is not None:
            grown = [context.followed(context.step(states[number], piece)) for number in followed for piece in column]
            ranks = everything + SEARCH_BONUS * np.array([context.followed(states[n]) for n in followed] + grown)
        kept = np.argsort(-ranks, kind="stable")[:num_prefixes]
        kept = kept[everything[kept] > -np.inf]
        survivors, blanks, said = [], [], []
        for choice in kept:
            if choice < len(alive):
                survivors.append(int(alive[choice]))
                blanks.append(stays_blank[choice])
                said.append(stays_piece[choice])
                continue
            source, target = divmod(int(choice) - len(alive), len(pieces))
            step = (int(alive[source]), int(pieces[target]))
            if step not in numbers:
                numbers[step] = len(parent)
                parent.append(step[0])
                last.append(step[1])
                depths.append(depths[step[0]] + 1)
                states.append(context.step(states[step[0]], step[1]) if context is not None else START)
            survivors.append(numbers[step])
            blanks.append(-np.inf)
            said.append(grows[source, target])
        alive, ends_blank, ends_piece = np.array(survivors), np.array(blanks), np.array(said)
    found = np.logaddexp(ends_blank, ends_piece)
    ranks = found
    if context is not None:
        ranks = found + SEARCH_BONUS * np.array([context.at_end(states[number]) for number in alive.tolist()])
    whole = [index for index in np.argsort(-ranks, kind="stable") if depths[alive[index]] >= len(beginning)]
    return [(_classes(int(alive[index]), parent, last), float(found[index])) for index in whole[:num_best]]


def _classes(number: int, parent: Sequence[int], last: Sequence[int]) -> tuple[int, ...]:
    classes: list[int] = []
    while parent[number] >= 0:
        classes.append(last[number])
        number = parent[number]
    return tuple(reversed(classes))


def ctc_log_likelihoods(log_probabilities: torch.Tensor, targets: Sequence[Sequence[int]]) -> list[float]:
    """
    Log-likelihood of each class sequence, summed over all alignments; minus infinity where the slots are too few for it.

    Args:
        log_probabilities: `(slots, classes)`, the blank first.
        targets: class sequences without blanks; an empty one says nothing.
    """
    if not targets:
        return []
    used = sorted({BLANK, *(one for target in targets for one in target)})
    place = {one: index for index, one in enumerate(used)}
    columns = log_probabilities.detach().float().cpu()[:, used]
    slots = len(columns)
    longest = max(map(len, targets))
    padded = torch.zeros(len(targets), max(longest, 1), dtype=torch.long)
    for row, target in zip(padded, targets):
        row[: len(target)] = torch.tensor([place[one] for one in target], dtype=torch.long)
    losses = torch.nn.functional.ctc_loss(
        columns[:, None].expand(-1, len(targets), -1),
        padded,
        torch.full((len(targets),), slots),
        torch.tensor([len(target) for target in targets]),
        blank=place[BLANK],
        reduction="none",
    )
    return [-loss for loss in losses.tolist()]
