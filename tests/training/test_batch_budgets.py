"""Batches within a budget: every row once an epoch, the same for any number of processes, as many in every epoch."""

from itertools import chain

import pytest
from audiollm.training.batching import BatchBudget, BudgetBatchSampler
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=60)
BUDGET = BatchBudget(max_tokens=800)


def steps(batches: list[list[int]], size: int) -> list[list[int]]:
    """The rows of every `size` batches, sorted."""
    return [sorted(chain.from_iterable(batches[start : start + size])) for start in range(0, len(batches), size)]


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 5), packed=st.booleans())
def test_every_row_comes_once_within_the_budget_and_epochs_are_equally_long(sizes, seed, packed) -> None:
    budget = BatchBudget(800, packed)
    made = BudgetBatchSampler(sizes, budget, seed=seed)
    for epoch in range(3):
        batches = made.batches(epoch)
        assert len(batches) == len(made)
        assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
        for batch in batches:
            tokens = [sizes[index] for index in batch]
            assert (sum(tokens) if packed else max(tokens) * len(tokens)) <= 800


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, processes=st.integers(2, 5))
def test_the_steps_of_several_processes_hold_what_one_with_accumulation_does(sizes, processes) -> None:
    alone = BudgetBatchSampler(sizes, BUDGET)
    shared = BudgetBatchSampler(sizes, BUDGET, num_processes=processes)
    if len(shared) % processes:
        # So few rows that some process goes without one of its own.
        assert all(len(batch) == 1 for batch in shared.batches(0)[-(len(shared) % processes) :])
        return
    for epoch in range(2):
        one, many = steps(alone.batches(epoch), processes), steps(shared.batches(epoch), processes)
        # Where the last step has fewer rows than processes, larger batches take its place.
        assert (
            one == many
            if len(one[-1]) >= processes
            else sorted(chain.from_iterable(one)) == sorted(chain.from_iterable(many))
        )


def test_the_order_depends_on_seed_and_epoch_alone_and_like_lengths_come_together() -> None:
    sizes = [8, 400] * 20
    one, again, *others = [
        BudgetBatchSampler(sizes, BUDGET, seed=seed).batches(epoch) for seed, epoch in ((1, 2), (1, 2), (1, 3), (2, 2))
    ]
    assert one == again != others[0] != others[1] != one
    assert all(len({sizes[index] for index in batch}) == 1 for batch in one)
    epoch = 0
    made = BudgetBatchSampler(sizes, BUDGET, seed=1, current_epoch=lambda: epoch)
    first = list(made)
    epoch = 1
    assert list(made) == made.batches(1) != first == made.batches(0)


def test_a_row_that_fills_the_budget_is_a_batch_and_one_more_is_refused() -> None:
    assert BudgetBatchSampler([800], BUDGET).batches(0) == [[0]]
    with pytest.raises(ValueError, match=r"Row 1 takes 801 tokens, more than --max_tokens_per_batch 800"):
        BudgetBatchSampler([1, 801], BUDGET)
