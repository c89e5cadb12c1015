"""Batches within a budget: every row once an epoch, the same for any number of processes, as many in every epoch."""

from itertools import chain

import pytest
from audiollm.training.batching import BatchBudget, BudgetBatchSampler
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 1500)), min_size=1, max_size=60)
BUDGET = BatchBudget(max_tokens=800, max_audio_seconds=40.0)


def steps(batches: list[list[int]], size: int) -> list[list[int]]:
    """The rows of every `size` batches, sorted."""
    return [sorted(chain.from_iterable(batches[start : start + size])) for start in range(0, len(batches), size)]


def sampler(sizes, budget=BUDGET, **options) -> BudgetBatchSampler:
    return BudgetBatchSampler([tokens for tokens, _ in sizes], [frames for _, frames in sizes], budget, **options)


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 5), packed=st.booleans())
def test_every_row_comes_once_within_the_budget_and_epochs_are_equally_long(sizes, seed, packed) -> None:
    budget = BatchBudget(800, 40.0, packed)
    made = sampler(sizes, budget, seed=seed)
    for epoch in range(3):
        batches = made.batches(epoch)
        assert len(batches) == len(made)
        assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
        for batch in batches:
            tokens = [sizes[index][0] for index in batch]
            assert (sum(tokens) if packed else max(tokens) * len(tokens)) <= 800
            assert sum(sizes[index][1] for index in batch) <= 40 * 50


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, processes=st.integers(2, 5))
def test_the_steps_of_several_processes_hold_what_one_with_accumulation_does(sizes, processes) -> None:
    alone, shared = sampler(sizes), sampler(sizes, num_processes=processes)
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


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sizes = [(10 + index % 7, 100) for index in range(40)]
    assert sampler(sizes, seed=1).batches(2) == sampler(sizes, seed=1).batches(2)
    orders = [sampler(sizes, seed=seed).batches(epoch) for seed, epoch in ((1, 2), (1, 3), (2, 2))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    epoch = 0
    made = sampler(sizes, seed=1, current_epoch=lambda: epoch)
    first = list(made)
    epoch = 1
    assert list(made) == made.batches(1) != first == made.batches(0)


def test_rows_of_like_length_come_together() -> None:
    sizes = [(8, 0), (400, 0)] * 20
    for batch in sampler(sizes, BatchBudget(max_tokens=800)).batches(0):
        assert len({sizes[index][0] for index in batch}) == 1


def test_a_row_that_fills_the_budget_is_a_batch_and_one_more_is_refused() -> None:
    assert sampler([(800, 2000)]).batches(0) == [[0]]
    with pytest.raises(ValueError, match=r"Row 1 takes 801 tokens, more than --max_tokens_per_batch 800"):
        sampler([(1, 0), (801, 0)])
    with pytest.raises(ValueError, match=r"Row 0 has 40.02 s of audio, more than --max_audio_seconds_per_batch 40"):
        sampler([(1, 2001)])
    with pytest.raises(ValueError, match="no rows"):
        sampler([])
