"""Where a task's errors are: by how long clips are, by category, by kind, and how they are spread over clips."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..bootstrap import interval, paired_test

#: What an item's row says of it, as a figure's part above the line and below it, by measure: errors of words; 1 where
#: an answer is right. `None` is 1 for each item.
PARTS: dict[str, tuple[str, str | None]] = {
    "word_error": ("errors", "words"),
    "character_error": ("character_errors", "characters"),
    "choice_accuracy": ("right", None),
    "no_speech_rate": ("score", None),
    "judge_score": ("score", None),
    "rouge1": ("score", None),
    "cider_d": ("score", None),
}
#: Measures whose errors are substitutions, deletions and insertions, and what those fields begin with.
SPELLED = {"word_error": "", "character_error": "character_"}
#: Edges between lengths of clips, in seconds.
DURATION_EDGES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 1800.0)
#: Upper edges of the bins of a clip's own error rate: none, a tenth at most, ...; what is beyond the last is a bin as well.
ERROR_EDGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
#: Categories that are shown; a task with more has ids for categories.
MAX_CATEGORIES = 60
#: Items of which an interval is drawn.
MIN_INTERVAL_ITEMS = 2

Row = Mapping[str, Any]


def parts_of(row: Row, metric: str) -> tuple[float, float] | None:
    """What an item adds to a figure, above and below the line; None where it does not count."""
    above, below = PARTS[metric]
    if not row.get("scored", True) or row.get(above) is None:
        return None
    if metric == "choice_accuracy" and row.get("chosen") is None:
        return None
    if below is not None and row.get(below) is None:
        return None
    return float(row[above]), 1.0 if below is None else float(row[below])


def pooled_figure(rows: Iterable[Row], metric: str, samples: int, seed: int) -> dict[str, Any] | None:
    """A figure of some of a task's items with its interval; None where none of them counts."""
    found = [parts for row in rows if (parts := parts_of(row, metric)) is not None]
    statistics = np.array(found, dtype=np.float64).reshape(-1, 2)
    if not statistics[:, 1].sum():
        return None
    if len(found) < MIN_INTERVAL_ITEMS:
        value = float(statistics[0, 0] / statistics[0, 1])
        return {"value": value, "low": None, "high": None, "items": len(found)}
    figure = interval(statistics, samples=samples, seed=seed)
    low, high = (bound if math.isfinite(bound) else None for bound in (figure.low, figure.high))
    return {"value": figure.value, "low": low, "high": high, "items": len(found)}


def grouped(
    systems: Mapping[str, Sequence[Row]],
    group_of: Callable[[Row], str | None],
    order: Sequence[str],
    metric: str,
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """
    A figure of each group of items, of each system: `[{"name", "systems": {system: figure}}]`, without empty groups.

    Args:
        group_of: an item's group; None of one that is in none.
        order: of the groups.
    """
    groups: dict[str, dict[str, list[Row]]] = {name: {} for name in order}
    for system, rows in systems.items():
        for row in rows:
            name = group_of(row)
            if name is not None:
                groups[name].setdefault(system, []).append(row)
    found = []
    for name, members in groups.items():
        figures = {system: pooled_figure(rows, metric, samples, seed) for system, rows in members.items()}
        kept = {system: figure for system, figure in figures.items() if figure is not None}
        if kept:
            found.append({"name": name, "systems": kept})
    return found


def duration_names() -> list[str]:
    """Names of the lengths of clips, short ones first."""
    edges = [_clock(edge) for edge in DURATION_EDGES_S]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    return [f"under {edges[0]}", *between, f"{edges[-1]} or more"]


def duration_name(row: Row) -> str | None:
    """Of which length a clip is; None where that is not known."""
    seconds = float(row.get("duration_s") or 0.0)
    return duration_names()[int(np.searchsorted(DURATION_EDGES_S, seconds, side="right"))] if seconds > 0 else None


def _clock(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def error_kinds(rows: Iterable[Row], metric: str) -> dict[str, float] | None:
    """Substitutions, deletions, insertions and reference words (or characters) of a task; None where nothing is scored."""
    prefix = SPELLED[metric]
    length = PARTS[metric][1] or ""
    totals = dict.fromkeys(("substitutions", "deletions", "insertions"), 0) | {"reference": 0}
    for row in rows:
        if parts_of(row, metric) is not None:
            for name in ("substitutions", "deletions", "insertions"):
                totals[name] += int(row.get(prefix + name) or 0)
            totals["reference"] += int(row[length])
    return {name: float(value) for name, value in totals.items()} if totals["reference"] else None


def error_histogram(rows: Iterable[Row], metric: str) -> list[int]:
    """How many clips have an error rate in each bin of `ERROR_EDGES`, and beyond the last."""
    rates = [parts[0] / parts[1] for row in rows if (parts := parts_of(row, metric)) is not None and parts[1]]
    counts = [0] * (len(ERROR_EDGES) + 1)
    for rate in rates:
        counts[int(np.searchsorted(ERROR_EDGES, rate, side="left"))] += 1
    return counts


def histogram_names() -> list[str]:
    """Names of the bins of [`error_histogram`]."""
    percents = [f"{100 * edge:g}" for edge in ERROR_EDGES]
    return ["none", *(f"{low}–{high} %" for low, high in itertools.pairwise(percents)), f"over {percents[-1]} %"]


def paired_difference(
    first: Sequence[Row], second: Sequence[Row], metric: str, samples: int, seed: int
) -> dict | None:
    """How much more the second system has than the first on items that count in both; None where there are none."""
    sides = [
        {row["id"]: parts for row in rows if (parts := parts_of(row, metric)) is not None} for rows in (first, second)
    ]
    common = [one for one in sides[0] if one in sides[1]]
    if len(common) < MIN_INTERVAL_ITEMS:
        return None
    rows = [np.array([side[one] for one in common], dtype=np.float64) for side in sides]
    found = paired_test(rows[0], rows[1], samples=samples, seed=seed)
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        return None
    return {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "items": len(common)}


__all__ = [
    "PARTS",
    "SPELLED",
    "duration_name",
    "duration_names",
    "error_histogram",
    "error_kinds",
    "grouped",
    "histogram_names",
    "paired_difference",
    "parts_of",
    "pooled_figure",
]
