"""Show a report to people: figures in words, and the page made by `report.html.jinja`, which fetches nothing."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from audiollm.publishing.record import shown_path
from audiollm.publishing.score_table import COUNTS, READING, SYSTEM_TITLES, score_rows

from .bootstrap import SIGNIFICANCE
from .measures import FRACTION, LOWER_IS_BETTER
from .mistakes import SPELLED
from .systems import CASCADE, DEAF, MODEL, WHISPER, WRONG_AUDIO
from .word_error import optional_library

HERE = Path(__file__).parent
NOTHING = "–"
#: Bars of errors end here: an answer that repeats itself would hide all others.
MAX_ERROR_DRAWN = 2.0
#: By task and item: `uri` of a player with `cut_s`, or `missing`, the reason why there is none.
Players = Mapping[tuple[str, str], Mapping[str, Any]]


@lru_cache(maxsize=1)
def texts() -> dict[str, dict[str, Any]]:
    """Return titles and explanations of metrics, by their names."""
    return yaml.safe_load((HERE / "report.yaml").read_text(encoding="utf-8"))


def number(value: float, unit: str | None = None) -> str:
    """Return a number with three digits that count, never as a power of ten; of a fraction, its percent."""
    scaled = 100 * value if unit == FRACTION else value
    if scaled == 0:
        return "0"
    return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"


def figure(value: float | None, unit: str | None) -> str:
    """Return a figure with its unit."""
    if value is None:
        return NOTHING
    return f"{number(value, unit)} %" if unit == FRACTION else number(value)


def spread(found: Mapping[str, Any], unit: str | None) -> str:
    """Return a figure's interval in brackets; nothing where it has none."""
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"[{number(found['low'], unit)}, {number(found['high'], unit)}]"


def clock(seconds: float) -> str:
    """Return a length of audio in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def metric_title(metric: str) -> str:
    """Return the name of a metric for readers."""
    return texts().get(metric, {}).get("title", metric.replace("_", " "))


def metric_about(metric: str) -> str:
    """Return the explanation of a metric, with which way is better."""
    better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    return "; ".join(filter(None, [texts().get(metric, {}).get("about", ""), better]))


def bar(found: Mapping[str, Any], limit: float) -> dict[str, float]:
    """Return the width of a figure's bar, and start and length of its interval, in percent of the limit."""

    def share(value: float) -> float:
        return round(100 * min(max(value, 0.0), limit) / limit, 2) if limit else 0.0

    low, high = (found["value"] if found[end] is None else found[end] for end in ("low", "high"))
    return {"width": share(found["value"]), "low": share(low), "span": round(share(high) - share(low), 2)}


def verdicts(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences that say what a task's main figures mean, as far as the model and another system have one."""
    metric = task["metric"]
    found = {system: each["metrics"].get(metric) for system, each in task["systems"].items()}
    found = {system: each for system, each in found.items() if each and each["value"] is not None}
    if MODEL not in found:
        return
    own, shown = found[MODEL]["value"], {name: figure(each["value"], each["unit"]) for name, each in found.items()}
    for system in (WRONG_AUDIO, WHISPER, CASCADE, DEAF):
        if system not in found:
            continue
        told = f"{metric_title(metric)} {shown[MODEL]}, {SYSTEM_TITLES[system]} {shown[system]}: "
        test = task["differences"].get(system)
        if test is None:
            yield told + "not compared item by item."
            continue
        other, clear = found[system]["value"], test["p"] < SIGNIFICANCE
        better = own < other if metric in LOWER_IS_BETTER else own > other
        if system != WRONG_AUDIO:
            told += f"the model is {'better' if better else 'worse'}" if clear else "no clear difference"
        elif better and clear:
            told += "the model answers by what it hears"
        else:
            told += "NOT clearly better than with wrong recordings, so much of it may be guessed"
        yield f"{told} (p = {test['p']:.2g}, paired on {test['items']} items)."


def render_page(report: Mapping[str, Any], players: Players, player_notes: Mapping[str, str]) -> str:
    """Return the page of a report as it was gathered, with notes about the players of a task; the page fetches nothing."""
    jinja2, markupsafe = (optional_library(name, "evaluation") for name in ("jinja2", "markupsafe"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True
    )
    count_titles = {"items": "items asked", "scored": "items that count", **COUNTS}
    shown = (figure, spread, number, clock, bar, metric_title, metric_about)
    environment.filters |= {function.__name__: function for function in shown}
    environment.filters |= {
        "system_title": lambda system: SYSTEM_TITLES.get(system, system),
        "system_about": lambda system: READING.get(system, "The model under test is given the recording."),
        "count_title": lambda count: count_titles.get(count, count.replace("_", " ")),
        "reasons": reasons_of,
    }
    tasks = report["tasks"]
    metrics = list(dict.fromkeys(name for found in tasks.values() for name in found["metrics"]))
    answered = [list(found["systems"].values()) for found in tasks.values() if found["systems"]]
    limits = {}
    for name in metrics:
        figures = filter(None, (each["metrics"].get(name) for each in chain(*answered)))
        most = max((each["high"] or each["value"] or 0.0 for each in figures), default=0.0)
        limits[name] = min(most, MAX_ERROR_DRAWN) if name in SPELLED else most
    return environment.get_template("report.html.jinja").render(
        report=report,
        name=shown_path(report["model"]),
        rows=[row for row in score_rows(report) if tasks.get(row.task, {}).get("metric", row.metric) == row.metric],
        bases=report["run"].get("bases") or {},
        items=sum(max(scored["counts"]["items"] for scored in each) for each in answered),
        audio_seconds=sum(max(scored["audio_seconds"] for scored in each) for each in answered),
        metrics=metrics,
        limits=limits,
        css=markupsafe.Markup((HERE / "report.css").read_text(encoding="utf-8")),
        shown_path=shown_path,
        signatures=signatures_of(report),
        players=players,
        player_notes=player_notes,
    )


def reasons_of(found: Mapping[str, Any]) -> list[str]:
    """Return the counts of a task that are not zero for all systems."""
    counts = [each["counts"] for each in found["systems"].values()]
    shown = ((name, count) for each in counts for name, count in each.items())
    return list(dict.fromkeys(name for name, count in shown if count or name in ("items", "scored")))


def signatures_of(report: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return the signatures of every metric, each once, with its tasks."""
    found: dict[str, dict[str, list[str]]] = {}
    for task, entry in report["tasks"].items():
        for metric in entry["metrics"]:
            figures = (scored["metrics"].get(metric) or {} for scored in entry["systems"].values())
            for signature in dict.fromkeys(each["signature"] for each in figures if each.get("signature")):
                found.setdefault(metric_title(metric), {}).setdefault(signature, []).append(task)
    return found
