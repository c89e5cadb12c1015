"""Figures and names as readers are shown them, and the sentences that are said of a task's figures."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..measures import FRACTION
from ..systems import CASCADE, DEAF, MODEL, SYSTEM_TITLES, WHISPER, WRONG_AUDIO
from .breakdown import SPELLED
from .gathering import texts

#: Digits that count; more are noise in any set that fits on a page.
DIGITS = 3
#: A difference is called one below it.
SIGNIFICANCE = 0.05
NOTHING = "–"


def number(value: float) -> str:
    """A number with three digits that count, never as a power of ten."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10 ** (DIGITS - 1) else f"{value:.{DIGITS}g}"


def figure(value: float | None, unit: str | None) -> str:
    """A figure with its unit: fractions as percent."""
    if value is None:
        return NOTHING
    return f"{number(100 * value)} %" if unit == FRACTION else number(value)


def difference(value: float, unit: str | None) -> str:
    """A difference with its sign: of fractions in points of a percent."""
    scaled = 100 * value if unit == FRACTION else value
    return f"{'+' if scaled > 0 else ''}{number(scaled)}"


def spread(found: Mapping[str, Any], unit: str | None) -> str:
    """A figure's interval in brackets; empty where it has none."""
    if found.get("low") is None or found.get("high") is None:
        return ""
    scale = 100 if unit == FRACTION else 1
    return f"[{number(scale * found['low'])}, {number(scale * found['high'])}]"


def full(found: Mapping[str, Any] | None, unit: str | None = None) -> str:
    """A figure and its interval."""
    if found is None:
        return NOTHING
    unit = found.get("unit", unit)
    return f"{figure(found.get('value'), unit)} {spread(found, unit)}".strip()


def system_title(system: str) -> str:
    """What readers call a system."""
    return texts()["systems"].get(system, {}).get("title", system)


def system_about(system: str) -> str:
    """What a system is."""
    return texts()["systems"].get(system, {}).get("about", SYSTEM_TITLES.get(system, "another system"))


def metric_title(metric: str) -> str:
    """What readers call a metric."""
    return texts()["metrics"].get(metric, {}).get("title", metric.replace("_", " "))


def metric_about(metric: str) -> str:
    """What a metric is, with which way is better."""
    known = texts()["metrics"].get(metric, {})
    better = {True: "lower is better", False: "higher is better", None: ""}[known.get("lower")]
    return "; ".join(filter(None, [known.get("about", "").rstrip("."), better]))


def is_lower_better(metric: str) -> bool | None:
    """Whether less of a metric is better; None where it is not known."""
    return texts()["metrics"].get(metric, {}).get("lower")


def count_title(count: str) -> str:
    """What a count is of."""
    return texts()["counts"].get(count, count.replace("_", " "))


def hours(seconds: float) -> str:
    """A length of audio in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def verdicts(task: Mapping[str, Any]) -> Iterator[str]:
    """Sentences that say what a task's main figures mean, as far as the model and another system have one."""
    metric, systems = task["metric"], task["systems"]
    own = _figure_of(systems, MODEL, metric)
    if metric is None or own is None or is_lower_better(metric) is None:
        return
    for system in (WRONG_AUDIO, WHISPER, CASCADE, DEAF):
        other = _figure_of(systems, system, metric)
        if other is None:
            continue
        told = f"{metric_title(metric)} {figure(own['value'], own['unit'])}, {_named(system)} {figure(other['value'], other['unit'])}"
        yield f"{told}: {_judged(system, metric, own, other, task['differences'].get(system))}"


def _named(system: str) -> str:
    return {
        WRONG_AUDIO: "with wrong recordings",
        WHISPER: "Whisper's own decoder",
        CASCADE: "the cascade",
        DEAF: "the base model without the recording",
    }[system]


def _judged(
    system: str, metric: str, own: Mapping[str, Any], other: Mapping[str, Any], difference: Mapping[str, Any] | None
) -> str:
    better = own["value"] != other["value"] and (own["value"] < other["value"]) == is_lower_better(metric)
    if difference is not None:
        clear = difference["p"] < SIGNIFICANCE
        sure = f"p = {difference['p']:.2g}, paired on {difference['items']} items"
    else:
        clear = _apart(own, other)
        sure = "intervals do not overlap" if clear else "intervals overlap, or there are none"
    if system == WRONG_AUDIO:
        if better and clear:
            return f"it answers by what it hears ({sure})."
        return f"NOT clearly better than with wrong recordings: much of what it answers may not come from listening ({sure})."
    if not clear:
        return f"not told apart ({sure})."
    if metric in SPELLED and other["value"] > 0:
        ratio = own["value"] / other["value"]
        many = f"{number(ratio)} times as many errors" if ratio > 1 else f"{figure(ratio, FRACTION)} of its errors"
        return f"the model has {many} ({sure})."
    return f"the model is {'better' if better else 'worse'} ({sure})."


def _apart(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    bounds = [own.get("low"), own.get("high"), other.get("low"), other.get("high")]
    if any(bound is None for bound in bounds):
        return False
    return own["high"] < other["low"] or other["high"] < own["low"]


def _figure_of(systems: Mapping[str, Any], system: str, metric: str | None) -> Mapping[str, Any] | None:
    found = systems.get(system, {}).get("metrics", {}).get(metric)
    return found if found and found.get("value") is not None else None


__all__ = [
    "NOTHING",
    "count_title",
    "difference",
    "figure",
    "full",
    "hours",
    "is_lower_better",
    "metric_about",
    "metric_title",
    "number",
    "spread",
    "system_about",
    "system_title",
    "verdicts",
]
