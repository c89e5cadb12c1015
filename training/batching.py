"""
Batches of bounded size instead of a fixed number of rows: by tokens, padding included.

Rows of like length come together, in an order that depends on seed and epoch alone: a run that resumes, or has another
number of processes, sees the same batches, as many in every epoch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import numpy as np
from torch.utils.data import Sampler

#: Whisper's encoder gives a frame every 20 ms.
ENCODER_FRAMES_PER_SECOND = 50
#: Lengths that differ by less than this share of an octave count as alike, so that they can be drawn into any of the
#: batches that hold that length. Coarser: other neighbours in each epoch. Finer: fuller batches.
STEPS_PER_OCTAVE = 4


@dataclass(frozen=True)
class BatchBudget:
    """Bounds of a batch on one device."""

    max_tokens: int | None = None  # of the longest row times rows; or of all rows, where they are packed
    packed: bool = False  # rows are laid one behind the other, without padding
    max_rows: int | None = None

    def problem(self, tokens: int) -> str | None:
        """Return the reason why a row does not fit into any batch, or None."""
        if self.max_tokens is not None and tokens > self.max_tokens:
            return f"takes {tokens} tokens, more than --max_tokens_per_batch {self.max_tokens}"
        return None


class BudgetBatchSampler(Sampler[list[int]]):
    """
    Indices of rows, a batch at a time, every row once an epoch.

    With several processes, each takes every n-th batch. Where their number does not divide, the batches of the last
    step are split, so that each process gets one and the step still holds the same rows. `lengths` are the tokens of each
    row; `current_epoch` tells which epoch begins. Raises ValueError where a row does not fit.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: BatchBudget,
        seed: int = 0,
        num_processes: int = 1,
        current_epoch: Callable[[], int] = int,
    ):
        for index, tokens in enumerate(lengths):
            if problem := budget.problem(tokens):
                raise ValueError(f"Row {index} {problem}.")
        self.seed, self.num_processes, self.current_epoch = seed, num_processes, current_epoch
        sizes = [_bucket(tokens, budget.max_tokens) for tokens in lengths]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        #: Rows of one bucket, from the shortest bucket to the longest.
        self.buckets = [list(bucket) for _, bucket in groupby(order, key=sizes.__getitem__)]
        #: Rows in each batch when they are taken in that order: the same whichever rows of a bucket come first.
        self.rows_in_batch = _partition([sizes[index] for index in order], budget)
        self._length = len(self.batches(0))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.current_epoch())

    def batches(self, epoch: int) -> list[list[int]]:
        """Return all batches of an epoch, of all processes, in order."""
        random = np.random.default_rng([self.seed, epoch])
        rows = [int(index) for bucket in self.buckets for index in random.permutation(bucket)]
        batches = [rows[start:end] for start, end in pairwise(accumulate(self.rows_in_batch, initial=0))]
        return self._even([batches[index] for index in random.permutation(len(batches))])

    def _even(self, batches: list[list[int]]) -> list[list[int]]:
        """Return as many batches as all processes can share, if there are rows enough."""
        remainder = len(batches) % self.num_processes
        if not remainder:
            return batches
        if sum(map(len, batches[-remainder:])) < self.num_processes:
            # Those with the most rows are the ones that can be split.
            largest = sorted(batches, key=len)[-remainder:]
            batches = [batch for batch in batches if batch not in largest] + largest
        kept, last = batches[:-remainder], batches[-remainder:]
        while len(last) < self.num_processes and max(map(len, last)) > 1:
            place = max(range(len(last)), key=lambda index: len(last[index]))
            middle = len(last[place]) // 2
            last[place : place + 1] = [last[place][:middle], last[place][middle:]]
        return kept + last


def _bucket(size: int, limit: int | None) -> int:
    """Return the largest size that counts as alike; 0 where the size does not matter."""
    if limit is None or size == 0:
        return 0
    step = max(1, 2 ** (size.bit_length() - 1) // STEPS_PER_OCTAVE)
    return min(-(-size // step) * step, limit)


def _partition(sizes: Sequence[int], budget: BatchBudget) -> list[int]:
    """Return the number of rows in each batch, of rows with these tokens, ascending."""
    counts: list[int] = []
    rows = tokens = 0
    for row_tokens in sizes:
        new_tokens = tokens + row_tokens if budget.packed else (rows + 1) * row_tokens
        too_many = budget.max_tokens is not None and new_tokens > budget.max_tokens
        is_full = budget.max_rows is not None and rows == budget.max_rows
        if rows and (too_many or is_full):
            counts.append(rows)
            rows, new_tokens = 0, row_tokens
        rows, tokens = rows + 1, new_tokens
    return [*counts, rows]
