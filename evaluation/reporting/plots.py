"""Plots of a report as inline SVG: text stays text, its colour is the page's, and nothing is fetched."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..measures import FRACTION
from .breakdown import SPELLED
from .wording import figure, metric_title, number, system_title

#: Okabe and Ito's colours, which the colour-blind can tell apart and which show on white and on black, with a marker each.
STYLES = {
    "model": ("#0072B2", "o"),
    "wrong_audio": ("#D55E00", "X"),
    "whisper": ("#009E73", "s"),
    "cascade": ("#CC79A7", "D"),
    "deaf": ("#8C8C8C", "v"),
}
OTHER_STYLE = ("#B8860B", "P")
#: Substitutions, deletions, insertions: colour, and hatching, so that colour is not needed.
ERROR_STYLES = {"substitutions": ("#0072B2", ""), "deletions": ("#E69F00", "//"), "insertions": ("#CC79A7", "..")}
#: Stands for the page's own text colour until the SVG is written.
INK = "#010203"
GRID = "#8c8c8c"
WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES = 5.0, 0.27, 0.95
PLOT_HEIGHT_INCHES = 2.9
FONT_POINTS = 10.5
#: Share of a row that its systems' marks are spread over.
SPREAD = 0.62
#: Bars' axis is so much longer than the longest one.
ROOM_FOR_LABELS = 1.17
#: Word errors above it are drawn at the edge: an answer that repeats itself would hide all others.
MAX_ERROR_DRAWN = 2.0
#: What a page has no use for: metadata, and style that would hold for all of the page; the page's own has it.
UNUSED = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
ID, REFERENCE = re.compile(r' id="([^"]*)"'), re.compile(r"#([\w.-]+)")
FONT_FAMILY = re.compile(r"(font: [\d.]+px) [^;\"]*")


def as_svg(draw: Callable[[Axes], None], height: float, title: str, key: str) -> str:
    """
    What `draw` draws, as an `<svg>` element.

    Args:
        height: in inches.
        title: read aloud where the plot is not seen.
        key: different for every plot of a page, so that no two have ids in common.
    """
    settings: Any = {
        **{"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": key},
        **{"font.size": FONT_POINTS, "hatch.linewidth": 0.7},
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    }
    with matplotlib.rc_context(settings):
        drawn = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes = drawn.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_alpha(0)
        draw(axes)
        file = io.StringIO()
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = UNUSED.sub("", text[text.index("<svg") :]).replace(INK, "currentColor")
    used = set(REFERENCE.findall(text))  # other ids are counted from 1 in every plot
    text = ID.sub(lambda found: found[0] if found[1] in used else "", text)
    text = FONT_FAMILY.sub(r"\1 sans-serif", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def limit_of(metric: str) -> float:
    """Up to where a metric is drawn."""
    return MAX_ERROR_DRAWN if metric in SPELLED else float("inf")


def plot_headline(metric: str, tasks: Mapping[str, Mapping[str, Any]], systems: Sequence[str]) -> str:
    """
    One figure of each task and system as a mark with its interval.

    Args:
        tasks: figures by system, by task.
        systems: in the order of the legend.
    """
    names = list(tasks)
    unit = next(each["unit"] for figures in tasks.values() for each in figures.values())
    limit = limit_of(metric)

    def draw(axes: Axes) -> None:
        for place, system in enumerate(systems):
            colour, marker = STYLES.get(system, OTHER_STYLE)
            offset = SPREAD * (place / max(len(systems) - 1, 1) - 0.5) if len(systems) > 1 else 0.0
            found = [(row, tasks[name][system]) for row, name in enumerate(names) if system in tasks[name]]
            for row, each in found:
                if each.get("low") is not None:
                    ends = [min(each[end], limit) for end in ("low", "high")]
                    axes.plot(ends, [row + offset] * 2, color=colour, linewidth=2)
            values = [min(each["value"], limit) for _, each in found]
            rows = [row + offset for row, _ in found]
            axes.plot(values, rows, marker, color=colour, markersize=6.5, label=system_title(system))
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        _value_axis(axes.xaxis, unit, limit)
        axes.set_xlabel(metric_title(metric))
        axes.grid(axis="x", color=GRID, alpha=0.25)
        _legend(axes)

    rows = sum(len(figures) for figures in tasks.values())
    return as_svg(
        draw, MARGIN_INCHES + ROW_INCHES * rows, f"{metric_title(metric)} by task and system", f"headline {metric}"
    )


def plot_groups(metric: str, groups: Sequence[Mapping[str, Any]], systems: Sequence[str], unit: str, key: str) -> str:
    """A figure of each group of items, such as lengths of clips, and system, with intervals."""

    def draw(axes: Axes) -> None:
        limit = limit_of(metric)
        for place, system in enumerate(systems):
            colour, marker = STYLES.get(system, OTHER_STYLE)
            offset = 0.5 * SPREAD * (place / max(len(systems) - 1, 1) - 0.5) if len(systems) > 1 else 0.0
            found = [(x, each["systems"][system]) for x, each in enumerate(groups) if system in each["systems"]]
            for x, each in found:
                if each["low"] is not None:
                    axes.plot(
                        [x + offset] * 2, [min(each[end], limit) for end in ("low", "high")], color=colour, linewidth=2
                    )
            values = [min(each["value"], limit) for _, each in found]
            look: dict[str, Any] = {
                "marker": marker,
                "color": colour,
                "markersize": 6,
                "linestyle": ":",
                "linewidth": 1,
            }
            axes.plot([x + offset for x, _ in found], values, label=system_title(system), **look)
        axes.set_xticks(range(len(groups)), [each["name"] for each in groups], rotation=25, ha="right")
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(bottom=0)
        _value_axis(axes.yaxis, unit, limit)
        axes.grid(axis="y", color=GRID, alpha=0.25)
        _legend(axes)

    return as_svg(draw, PLOT_HEIGHT_INCHES + 0.3, f"{metric_title(metric)} by length of the recording", key)


def plot_error_kinds(kinds: Mapping[str, Mapping[str, float]], key: str) -> str:
    """Substitutions, deletions and insertions of each system, as shares of what was said."""

    def draw(axes: Axes) -> None:
        names = list(kinds)
        lefts = [0.0] * len(names)
        for kind, (colour, hatch) in ERROR_STYLES.items():
            widths = [kinds[name][kind] / kinds[name]["reference"] for name in names]
            look: dict[str, Any] = {
                "color": colour,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0,
                "height": 0.6,
            }
            axes.barh(names, widths, left=lefts, label=kind, **look)
            lefts = [left + width for left, width in zip(lefts, widths)]
        for row, total in enumerate(lefts):
            place = (min(total, MAX_ERROR_DRAWN), row)
            axes.annotate(figure(total, FRACTION), place, (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), [system_title(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, min(max(*lefts, 0.01) * ROOM_FOR_LABELS, MAX_ERROR_DRAWN))
        _value_axis(axes.xaxis, FRACTION, MAX_ERROR_DRAWN)
        _legend(axes)

    return as_svg(draw, MARGIN_INCHES + 0.42 * len(kinds), "Substitutions, deletions and insertions by system", key)


def plot_histogram(counts: Mapping[str, Sequence[int]], names: Sequence[str], key: str) -> str:
    """How many items have which error of their own, by system."""

    def draw(axes: Axes) -> None:
        width = 0.8 / len(counts)
        for place, (system, found) in enumerate(counts.items()):
            colour, _ = STYLES.get(system, OTHER_STYLE)
            left = [x - 0.4 + width * (place + 0.5) for x in range(len(names))]
            axes.bar(left, found, width, color=colour, label=system_title(system))
        axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_ylabel("items")
        axes.grid(axis="y", color=GRID, alpha=0.25)
        axes.set_axisbelow(True)
        _legend(axes)

    return as_svg(draw, PLOT_HEIGHT_INCHES, "How many items have which error of their own", key)


def _value_axis(axis: Any, unit: str, limit: float = float("inf")) -> None:
    """Marks in the unit's own way; at the limit, where all that lies beyond it is drawn, that it may be more."""
    scale, sign = (100, " %") if unit == FRACTION else (1, "")
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{'≥ ' if value >= limit else ''}{number(scale * value)}{sign}")
    )
    axis.set_major_locator(MaxNLocator(nbins=5))


def _legend(axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(
        **{"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 3, "frameon": False, "fontsize": "small"},
        **{"handlelength": 1.2, "columnspacing": 1.0, "borderaxespad": 0.2},
    )


__all__ = ["plot_error_kinds", "plot_groups", "plot_headline", "plot_histogram"]
