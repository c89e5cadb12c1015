"""
Log-probabilities of many alike texts under the language model, each shared beginning computed once.

The texts of an n-best list differ in a word or two. As a tree of tokens, in which a token attends to those before it in
its text alone, 16 of them take a third of the positions that they take one by one, and one pass.
"""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import torch

#: Rows times positions of one pass of the language model, and positions of one pass of its head.
MAX_SCORED_POSITIONS, MAX_HEAD_POSITIONS = 8192, 128
#: Longest text or tree of a pass, as a multiple of its shortest.
MOST_TIMES_LONGER = 1.5
#: Lengths of a pass are rounded up to so many significant bits, at most an eighth more. torch's libraries keep what they have
#: prepared for each shape that they have seen, megabytes each.
LENGTH_BITS = 4
#: Attention that takes a mask of any shape; others get each text as a tree of its own, which is causal.
TAKES_ANY_MASK = ("sdpa", "eager")


@dataclass
class TokenTree:
    """
    Texts that begin alike, as a tree.

    Args:
        beginning: tokens that all texts begin with, at least one.

    Attributes:
        token_ids, parents, depths: of each node, the root first and every node after its parent.
        texts: nodes of each text, without the beginning.
    """

    beginning: InitVar[Sequence[int]]
    texts: list[list[int]] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self, beginning: Sequence[int]):
        self.token_ids = list(beginning)
        self.parents = list(range(-1, len(beginning) - 1))
        self.depths = list(range(len(beginning)))
        self._stem = len(beginning) - 1

    def add(self, token_ids: Sequence[int]) -> None:
        """Add a text, without the beginning."""
        node, nodes = self._stem, []
        for token_id in token_ids:
            step = (node, token_id)
            if step not in self._known:
                self._known[step] = len(self.token_ids)
                self.token_ids.append(token_id)
                self.parents.append(node)
                self.depths.append(self.depths[node] + 1)
            node = self._known[step]
            nodes.append(node)
        self.texts.append(nodes)

    def mask(self) -> torch.Tensor:
        """Return which nodes each node attends to: itself and those before it in its text; boolean `(nodes, nodes)`."""
        mask = torch.eye(len(self.token_ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            mask[node] |= mask[parent]
        return mask


@torch.inference_mode()
def text_logprobs(
    model, beginnings: Sequence[Sequence[int]], texts: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """
    Return the base language model's log-probability of each text in nats, without audio or adapter.

    Args:
        model: an [`AudioLlmForConditionalGeneration`].
        beginnings: tokens that each group's texts begin with, at least one; their own probability does not count.
        texts: groups of texts as token ids, without the beginning. Those of a group share what they begin with.
    """
    as_trees = model.config.text_config._attn_implementation in TAKES_ANY_MASK
    trees: list[TokenTree] = []
    for beginning, group in zip(beginnings, texts):
        for number, text in enumerate(group):
            if not (as_trees and number):
                trees.append(TokenTree(beginning))
            trees[-1].add(text)
    scores: dict[int, list[float]] = {}
    for places in _alike([len(tree.token_ids) for tree in trees]):
        scores |= zip(places, _score(model, [trees[place] for place in places], as_trees))
    found = iter(one for place in range(len(trees)) for one in scores[place])
    return [[next(found) for _ in group] for group in texts]


def _alike(sizes: Sequence[int]) -> list[list[int]]:
    """Return the places of trees that are scored together: of like sizes, so that little is padding."""
    passes: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):
        fits = passes and (len(passes[-1]) + 1) * sizes[place] <= MAX_SCORED_POSITIONS
        if fits and sizes[place] <= MOST_TIMES_LONGER * sizes[passes[-1][0]]:
            passes[-1].append(place)
        else:
            passes.append([place])
    return passes


def rounded_up(length: int) -> int:
    """Return a length in `LENGTH_BITS` significant bits, the next one where it has more."""
    unit = 1 << max(0, length.bit_length() - LENGTH_BITS)
    return -(-length // unit) * unit


def _score(model, trees: Sequence[TokenTree], as_trees: bool) -> list[list[float]]:
    """Return the log-probability of each text of each of some trees, by one pass."""
    device, sizes = model.device, [len(tree.token_ids) for tree in trees]
    length = rounded_up(max(sizes))
    input_ids, positions = (
        torch.tensor([each + [0] * (length - len(each)) for each in rows])
        for rows in ([tree.token_ids for tree in trees], [tree.depths for tree in trees])
    )
    if as_trees:
        mask = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding attends to itself
        for row, tree, size in zip(mask, trees, sizes):
            row[:size, :size] = tree.mask()
        mask = mask[:, None]
        if model.config.text_config._attn_implementation == "eager":  # which adds its mask
            mask = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    else:
        mask = torch.arange(length)[None] < torch.tensor(sizes)[:, None]
    hidden = model.model(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    # Every node but a root is a token that its parent's hidden state predicts.
    rows = [row for row, size in enumerate(sizes) for _ in range(size - 1)]
    parents = [parent for tree in trees for parent in tree.parents[1:]]
    targets = [token_id for tree in trees for token_id in tree.token_ids[1:]]
    padding = [0] * (rounded_up(len(targets)) - len(targets))
    columns = torch.tensor([rows + padding, parents + padding, targets + padding], dtype=torch.long)
    logprobs = []
    for row, parent, target in columns.to(hidden.device).split(MAX_HEAD_POSITIONS, dim=1):
        scores = model.compute_logits(hidden[row, parent]).float()
        chosen = scores.gather(-1, target.to(scores.device)[:, None])[:, 0]
        logprobs.append(chosen - scores.logsumexp(dim=-1))
    of_nodes = torch.cat(logprobs)[: len(targets)].cpu().split([size - 1 for size in sizes])
    return [
        [float(each[torch.tensor(nodes, dtype=torch.long) - 1].sum()) for nodes in tree.texts]
        for tree, each in zip(trees, of_nodes)
    ]
