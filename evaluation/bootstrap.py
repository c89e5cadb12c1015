"""
Intervals by percentile bootstrap over items, and tests of whether two systems differ on the same items.

Everything works on statistics that add up, `(items, columns)`, such as errors and words of each clip, and on a pooled
function that makes the figure of their sums: so that corpus figures are resampled as corpus figures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000
LEVEL = 0.95
#: A difference is called one where its p is below.
SIGNIFICANCE = 0.05
#: Bound on the memory of a block of samples: items times samples.
MAX_BLOCK_VALUES = 4_000_000
#: Makes figures `(...)` of sums `(..., columns)`.
Pooled = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A figure of all items, and the percentile interval of it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """
    Difference of two systems on the same items.

    Attributes:
        first, second: their figures.
        value: the second less the first. low, high: its percentile interval, paired.
        p: how likely a difference as large is if answers were the systems' by chance: two-sided approximate
            randomisation (Noreen 1989), which is never 0: at best 1 / (samples + 1).
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p: float


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first column over the second: errors over words, right answers over answers; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def means(values: np.ndarray) -> np.ndarray:
    """Statistics `(items, 2)` of which [`ratio`] is the mean of `values` `(items,)`."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def resampled(statistics: np.ndarray, pooled: Pooled = ratio, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Figures `(samples,)` of as many items drawn with replacement, again and again."""
    if statistics.ndim != 2 or not len(statistics):
        raise ValueError(f"Statistics are {statistics.shape}; expected one row or more of an item each.")
    rng, count = np.random.default_rng(seed), len(statistics)
    blocks = []
    for size in _blocks(count, samples):
        times_drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)
        blocks.append(pooled(times_drawn @ statistics.astype(np.float64)))
    return np.concatenate(blocks)


def interval(
    statistics: np.ndarray, pooled: Pooled = ratio, samples: int = SAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """
    A figure and its percentile bootstrap interval over items (Efron 1979; for word error Bisani and Ney 2004).

    Args:
        statistics: `(items, columns)`, which add up.
        pooled: makes the figure of their sums.
        samples: drawn. seed: of the draws.
        level: of the interval.

    Raises:
        ValueError: there is no item.
    """
    figures = resampled(statistics, pooled, samples, seed)
    return Interval(float(pooled(statistics.sum(axis=0, dtype=np.float64))), *percentiles(figures, level))


def percentiles(figures: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of figures `(samples,)`; those of samples in which there was nothing to score are left out."""
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return float("nan"), float("nan")
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    first: np.ndarray, second: np.ndarray, pooled: Pooled = ratio, samples: int = SAMPLES, seed: int = 0
) -> Difference:
    """
    Test whether two systems differ on the same items: interval by paired bootstrap, p by approximate randomisation.

    Args:
        first, second: their statistics `(items, columns)`, row by row of the same item, one row or more.
        pooled, samples, seed: see [`interval`].

    Raises:
        ValueError: they are not of the same items.
    """
    if first.shape != second.shape:
        raise ValueError(f"Statistics are {first.shape} and {second.shape}; expected the same items and columns.")
    rng, count = np.random.default_rng(seed), len(first)
    first, second = first.astype(np.float64), second.astype(np.float64)
    sums = first.sum(axis=0), second.sum(axis=0)
    one, other = (float(pooled(each)) for each in sums)
    observed = abs(other - one)
    drawn, at_least = [], 0
    for size in _blocks(count, samples):
        times_drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)
        drawn.append(pooled(times_drawn @ second) - pooled(times_drawn @ first))
        moved = rng.integers(0, 2, size=(size, count)) @ (second - first)
        swapped = np.abs(pooled(sums[1] - moved) - pooled(sums[0] + moved))
        # A difference that is equal but for rounding is as large.
        at_least += int(np.sum(swapped >= observed - 1e-12))
    low, high = percentiles(np.concatenate(drawn))
    return Difference(one, other, other - one, low, high, (at_least + 1) / (samples + 1))


def _blocks(count: int, samples: int) -> Iterator[int]:
    """Sizes of blocks of samples that fit in memory."""
    size = max(1, MAX_BLOCK_VALUES // count)
    for start in range(0, samples, size):
        yield min(size, samples - start)
