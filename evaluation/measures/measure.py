"""What a measure is: answers in, figures that add up over items out, and what each item has to do with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bootstrap import Pooled, means, ratio

FRACTION, POINTS, RATIO = "fraction", "points", "ratio"


@dataclass(frozen=True)
class Answer:
    """
    What a system said to one item.

    Attributes:
        id: the item's, or that of a session whose chunks were put together.
        text: what was said; empty where nothing was, or the system failed.
        references, extra: the item's.
        duration_s: of all recordings. seconds: that the answer took.
        finish: stop, length, repeated or error. error: what failed.
        verdicts: the judge's, as they are in the folder.
    """

    id: str
    text: str
    references: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    seconds: float = 0.0
    finish: str = "stop"
    error: str | None = None
    verdicts: Sequence[Mapping[str, Any]] = ()

    @property
    def reference(self) -> str:
        """The first right answer; empty where there is none."""
        return next(iter(self.references), None) or ""


@dataclass(frozen=True)
class Convention:
    """
    By what answers are compared.

    Attributes:
        normaliser, aligner: see `evaluation/word_error.py`.
        language: of the answers, for the tokenizer of BLEU. bleu_tokenizer: one that a task asks for.
        parsing: rule by which choices are read.
    """

    normaliser: str = "english"
    aligner: str = "jiwer"
    language: str | None = None
    bleu_tokenizer: str | None = None
    parsing: str = "air_bench"


@dataclass(frozen=True)
class Measured:
    """
    One figure of a set of answers.

    Attributes:
        statistics: `(scored, columns)`, which add up, of the answers that count.
        ids: whose they are, row by row.
        pooled: makes the figure of their sums.
        unit: fraction (0 to 1; word error may exceed it), points (a scale of its own) or ratio.
        items: what to write of an answer, by its id.
        dropped: how many answers do not count, by reason.
        signature: what was counted, in one line, and by which library.
    """

    statistics: np.ndarray
    ids: Sequence[str]
    unit: str
    signature: str
    pooled: Pooled = ratio
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The figure of all answers that count; NaN where there is none."""
        if not len(self.statistics):
            return float("nan")
        return float(self.pooled(self.statistics.sum(axis=0, dtype=np.float64)))


def mean_of(
    scores: Mapping[str, float],
    unit: str,
    signature: str,
    items: Mapping[str, Mapping[str, Any]] | None = None,
    dropped: Mapping[str, int] | None = None,
) -> Measured:
    """A figure that is the mean of what each answer gets: `scores` by its id, and what to write of it in `items`."""
    written = {one: {"score": score} for one, score in scores.items()} if items is None else items
    values = np.array(list(scores.values()), dtype=np.float64)
    return Measured(means(values), list(scores), unit, signature, items=written, dropped=dropped or {})


@dataclass(frozen=True)
class Measure:
    """
    A way to score answers.

    Attributes:
        name: the metric's, with its unit where that is not plain.
        measure: scores answers by a convention.
        lower_is_better: whether less of it is better; None where neither is.
        needs_reference: answers to items without a right answer do not count.
    """

    name: str
    measure: Callable[[Sequence[Answer], Convention], Measured]
    lower_is_better: bool | None = False
    needs_reference: bool = True


__all__ = ["FRACTION", "POINTS", "RATIO", "Answer", "Convention", "Measure", "Measured", "mean_of"]
