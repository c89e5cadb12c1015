"""
Intervals by percentile bootstrap over items, and tests of whether two systems differ on the same items.

Statistics `(items, columns)`, such as errors and words of each clip, add up; a pooled function makes the figure of their
sums. So corpus figures are resampled as corpus figures.
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
    """Difference of two systems on the same items."""

    first: float  # their figures
    second: float
    value: float  # the second less the first
    low: float  # its percentile interval, paired
    high: float
    #: Probability of a difference as large if answers were the systems' by chance: two-sided approximate randomisation
    #: (Noreen 1989), at best 1 / (samples + 1).
    p: float


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return the first column over the second, such as errors over words; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def means(values: np.ndarray) -> np.ndarray:
    """Return statistics `(items, 2)` of which [`ratio`] is the mean of `values` `(items,)`."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def resampled(statistics: np.ndarray, pooled: Pooled = ratio, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Return figures `(samples,)` of as many items drawn with replacement, again and again; there must be one."""
    rng, statistics = np.random.default_rng(seed), statistics.astype(np.float64)
    return np.concatenate([pooled(times @ statistics) for times in _times_drawn(rng, len(statistics), samples)])


def interval(statistics: np.ndarray, pooled: Pooled = ratio, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """
    Return a figure and its percentile bootstrap interval over items (Efron 1979; for word error Bisani and Ney 2004).

    Args:
        statistics: `(items, columns)`, which add up, of one item or more.
        pooled: makes the figure of their sums.
        samples: number of samples. seed: of the draws.
    """
    figures = resampled(statistics, pooled, samples, seed)
    return Interval(float(pooled(statistics.sum(axis=0, dtype=np.float64))), *percentiles(figures))


def percentiles(figures: np.ndarray) -> tuple[float, float]:
    """Return the middle `LEVEL` of figures `(samples,)`; samples in which there was nothing to score are left out."""
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return float("nan"), float("nan")
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_test(
    first: np.ndarray, second: np.ndarray, pooled: Pooled = ratio, samples: int = SAMPLES, seed: int = 0
) -> Difference:
    """
    Test two systems for a difference on the same items: interval by paired bootstrap, p by approximate randomisation.

    Their statistics `(items, columns)` are row by row of the same item, one row or more; for the rest see [`interval`].
    """
    rng, first, second = np.random.default_rng(seed), first.astype(np.float64), second.astype(np.float64)
    sums = first.sum(axis=0), second.sum(axis=0)
    one, other = (float(pooled(each)) for each in sums)
    drawn, at_least = [], 0
    for times in _times_drawn(rng, len(first), samples):
        drawn.append(pooled(times @ second) - pooled(times @ first))
        moved = rng.integers(0, 2, size=times.shape) @ (second - first)
        swapped = np.abs(pooled(sums[1] - moved) - pooled(sums[0] + moved))
        # A difference that is equal but for rounding is as large.
        at_least += int(np.sum(swapped >= abs(other - one) - 1e-12))
    low, high = percentiles(np.concatenate(drawn))
    return Difference(one, other, other - one, low, high, (at_least + 1) / (samples + 1))


def _times_drawn(rng: np.random.Generator, count: int, samples: int) -> Iterator[np.ndarray]:
    """Yield the counts of each item in each sample, `(samples, count)` in blocks that fit in memory."""
    size = max(1, MAX_BLOCK_VALUES // count)
    for start in range(0, samples, size):
        yield rng.multinomial(count, np.full(count, 1 / count), size=min(size, samples - start))
