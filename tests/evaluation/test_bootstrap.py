"""Intervals and tests: against figures known by other means, and against what they must not depend on."""

import numpy as np
import pytest
from audiollm.evaluation.bootstrap import Difference, interval, means, paired_test


@pytest.fixture
def errors() -> np.ndarray:
    """Errors and words of 400 clips `(400, 2)`."""
    rng = np.random.default_rng(7)
    words = rng.integers(1, 30, 400)
    return np.stack([rng.binomial(words, 0.2), words], axis=1).astype(float)


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 500)
    found = interval(means(values), samples=4000)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(500), rel=0.06)


def test_a_corpus_is_resampled_as_a_corpus(errors, monkeypatch) -> None:
    """The mean of clips' own error rates is another figure."""
    found = interval(errors)
    mean_of_clips = (errors[:, 0] / errors[:, 1]).mean()
    assert found.value == errors[:, 0].sum() / errors[:, 1].sum() != pytest.approx(mean_of_clips)
    rng, by_hand = np.random.default_rng(5), []
    for _ in range(1000):
        drawn = errors[rng.integers(0, len(errors), len(errors))]
        by_hand.append(drawn[:, 0].sum() / drawn[:, 1].sum())
    assert np.quantile(by_hand, [0.025, 0.975]) == pytest.approx([found.low, found.high], abs=0.003)
    assert interval(errors, seed=3) == interval(errors, seed=3) != interval(errors, seed=4)
    whole = interval(errors, samples=50)
    monkeypatch.setattr("audiollm.evaluation.bootstrap.MAX_BLOCK_VALUES", 1)
    assert interval(errors, samples=50).low == pytest.approx(whole.low)


def test_one_item_and_items_without_a_word() -> None:
    assert interval(np.array([[1.0, 4.0]])).low == 0.25
    found = interval(np.array([[1.0, 2.0], [0.0, 0.0]]))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert np.isnan(interval(np.zeros((2, 2))).low)


def test_a_difference_is_found_where_there_is_one(errors) -> None:
    """Also one that the two intervals do not show."""
    worse, slightly = errors.copy(), errors.copy()
    worse[::3, 0] += 1
    slightly[:12, 0] += 1
    found, other_way = paired_test(errors, worse), paired_test(worse, errors)
    assert found.value == found.second - found.first > 0 and found.low > 0 and found.p == 1 / 1001
    assert (other_way.value, other_way.p) == (pytest.approx(-found.value), found.p)
    assert paired_test(errors, errors) == Difference(*[interval(errors).value] * 2, 0.0, 0.0, 0.0, 1.0)
    assert interval(errors).high > interval(slightly).low and paired_test(errors, slightly).p < 0.01


def test_p_is_uniform_where_systems_do_not_differ() -> None:
    """A test at 5% finds differences that are none in about 5% of cases."""
    rng = np.random.default_rng(0)
    pairs = [(means(rng.normal(size=60)), means(rng.normal(size=60))) for _ in range(300)]
    found = np.array([paired_test(*pair, samples=200, seed=seed).p for seed, pair in enumerate(pairs)])
    assert 0.02 < np.mean(found < 0.05) < 0.09
