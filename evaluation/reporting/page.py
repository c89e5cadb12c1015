"""A report as one HTML page that holds all it needs: style, plots and players; nothing is fetched from anywhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiollm.publishing.record import shown_path

from ..optional import optional_library
from ..systems import WHISPER
from . import wording
from .plots import plot_error_kinds, plot_groups, plot_headline, plot_histogram

HERE = Path(__file__).parent
PAGE_TEMPLATE, STYLE_FILE = "page.html.jinja", "page.css"
#: What installs the template's engine.
EXTRA = "evaluation"
#: Counts that say nothing went wrong.
HARMLESS = ("items", "scored")
#: Clips of which a histogram is drawn, at least.
MIN_HISTOGRAM_ITEMS = 5

Players = Mapping[tuple[str, str], Mapping[str, Any]]


def prepare_page(report: Mapping[str, Any], figures_file: str) -> dict[str, Any]:
    """
    All of a page but its players, plots among it.

    Args:
        report: as gathered.
        figures_file: where the same is as JSON.
    """
    Markup = optional_library("markupsafe", EXTRA).Markup
    return {
        "report": report,
        "name": name_of(report),
        "bases": report["run"].get("bases") or {},
        "items": sum(asked(found) for found in report["tasks"].values()),
        "audio_seconds": sum(audio_of(found) for found in report["tasks"].values()),
        "verdicts": verdicts_of(report),
        "metrics": list(dict.fromkeys(name for found in report["tasks"].values() for name in found["metrics"])),
        "css": Markup((HERE / STYLE_FILE).read_text(encoding="utf-8")),
        "headline_plots": [Markup(plot) for plot in headline_plots(report)],
        "plots": {
            task: [{**plot, "svg": Markup(plot["svg"])} for plot in task_plots(report, task)]
            for task in report["tasks"]
        },
        "settings": list(settings_of(report)),
        "signatures": signatures_of(report),
        "figures_file": figures_file,
    }


def render_page(prepared: Mapping[str, Any], players: Players, player_notes: Mapping[str, str]) -> str:
    """
    The page.

    Args:
        prepared: see [`prepare_page`].
        players: by task and item: `uri` with `cut_s`, or `missing`, the reason.
        player_notes: what is to be said of a task's players.
    """
    jinja2 = optional_library("jinja2", EXTRA)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True
    )
    environment.filters |= FILTERS
    template = environment.get_template(PAGE_TEMPLATE)
    return template.render(**prepared, players=players, player_notes=player_notes)


def name_of(report: Mapping[str, Any]) -> str:
    """What a model is called: its Hub id, or its folder without those it lies in."""
    return shown_path(report["model"])


def asked(found: Mapping[str, Any]) -> int:
    """How many items a task has."""
    return max((each["counts"]["items"] for each in found["systems"].values()), default=found["items"] or 0)


def audio_of(found: Mapping[str, Any]) -> float:
    """Seconds of audio of a task's items."""
    return max((each["audio_seconds"] for each in found["systems"].values()), default=0.0)


def verdicts_of(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is said of each task's figures, of those of which something can be said."""
    said = {task: list(wording.verdicts(found)) for task, found in report["tasks"].items()}
    return {task: sentences for task, sentences in said.items() if sentences}


def unit_of(found: Mapping[str, Any]) -> str | None:
    """The unit of a task's main metric."""
    each = (scored["metrics"].get(found["metric"]) for scored in found["systems"].values())
    return next((figure["unit"] for figure in each if figure), None)


def reasons_of(found: Mapping[str, Any]) -> list[str]:
    """Counts of a task that are not zero for all of its systems, and how many items there are and count."""
    names = dict.fromkeys(name for each in found["systems"].values() for name in each["counts"])
    return [
        name
        for name in names
        if name in HARMLESS or any(each["counts"].get(name) for each in found["systems"].values())
    ]


def settings_of(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How a run was made: what a figure may depend on."""
    run, scoring = report["run"], report["scoring"]
    settings = run.get("settings") or {}
    yield "Model", name_of(report)
    facts = {
        "Revision": run.get("revision"),
        "Begun": run.get("started"),
        "Device": run.get("device"),
        "Precision": run.get("dtype"),
        "Items at a time": settings.get("batch_size"),
        "Whisper": settings.get("whisper") and shown_path(str(settings["whisper"])),
        "Fingerprint of weights": settings.get("weights"),
        "Commit": run.get("commit"),
        "Judge": judge_told(report["judge"] or {}),
        "Versions": ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()),
        "Normaliser": scoring.get("normaliser") or "each task's own",
        "Aligner": scoring.get("aligner") or "that of the normaliser",
        "Bootstrap": f"{scoring.get('samples', 'unknown')} samples, seed {scoring.get('seed', 'unknown')}",
    }
    yield from ((name, str(value)) for name, value in facts.items() if value not in (None, ""))


def judge_told(judge: Mapping[str, Any]) -> str:
    """Who gave marks, and how often each was asked; empty where nobody did."""
    own = judge.get("temperature")
    rubrics = [
        f"{name}: {each.get('samples')} samples at temperature {own or each.get('temperature')}"
        for name, each in judge.items()
        if isinstance(each, Mapping)
    ]
    return "; ".join([str(judge["model"]), *rubrics]) if judge.get("model") else ""


def signatures_of(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What every metric was counted by, each once, with its tasks where they differ."""
    by_text: dict[tuple[str, str], list[str]] = {}
    for task, found in report["tasks"].items():
        for scored in found["systems"].values():
            for metric, figure in scored["metrics"].items():
                tasks = by_text.setdefault((metric, figure.get("signature") or ""), [])
                if task not in tasks:
                    tasks.append(task)
    several = {metric for metric, _ in by_text if sum(name == metric for name, _ in by_text) > 1}
    return [
        (wording.metric_title(metric) + (f" ({', '.join(tasks)})" if metric in several else ""), signature)
        for (metric, signature), tasks in by_text.items()
        if signature
    ]


def headline_plots(report: Mapping[str, Any]) -> Iterator[str]:
    """One plot for each metric that is some task's main one."""
    for metric in dict.fromkeys(found["metric"] for found in report["tasks"].values() if found["metric"]):
        tasks = {
            task: {
                system: scored["metrics"][metric]
                for system, scored in found["systems"].items()
                if scored["metrics"].get(metric, {}).get("value") is not None
            }
            for task, found in report["tasks"].items()
            if found["metric"] == metric
        }
        tasks = {task: figures for task, figures in tasks.items() if figures}
        if tasks:
            systems = [system for system in report["systems"] if any(system in figures for figures in tasks.values())]
            yield plot_headline(metric, tasks, systems)


def task_plots(report: Mapping[str, Any], task: str) -> Iterator[dict[str, Any]]:
    """Plots of one task: those that it has the figures for."""
    found = report["tasks"][task]
    systems, metric = list(found["systems"]), found["metric"]
    if len(found["by_duration"]) > 1:
        svg = plot_groups(metric, found["by_duration"], systems, unit_of(found) or "", f"{task} durations")
        yield {"title": f"{wording.metric_title(metric)} by length of the recording", "svg": svg}
    if found["error_kinds"]:
        yield {"title": "Kinds of error", "svg": plot_error_kinds(found["error_kinds"], f"{task} kinds")}
    if any(sum(counts) >= MIN_HISTOGRAM_ITEMS for counts in found["histogram"].values()):
        svg = plot_histogram(found["histogram"], report["histogram_names"], f"{task} histogram")
        yield {"title": "Items by their own error", "svg": svg}


def average_metrics(by_system: Mapping[str, Any]) -> list[str]:
    """Metrics that a group's averages have."""
    return list(dict.fromkeys(metric for each in by_system.values() for metric in each))


def average_notes(by_system: Mapping[str, Any], metric: str) -> list[str]:
    """What a reader must know of an average: of which systems it is one of some tasks alone."""
    found = {system: each[metric] for system, each in by_system.items() if metric in each}
    missing = {", ".join(each["missing"]) for each in found.values() if each.get("partial")}
    return [f"NOT the leaderboard's average: without {names}" for names in sorted(missing)]


FILTERS = {
    "system_title": wording.system_title,
    "system_about": wording.system_about,
    "metric_title": wording.metric_title,
    "metric_about": wording.metric_about,
    "count_title": wording.count_title,
    "figure": wording.figure,
    "difference": wording.difference,
    "spread": wording.spread,
    "number": wording.number,
    "hours": wording.hours,
    "unit": unit_of,
    "reasons": reasons_of,
    "has_faults": lambda found: any(name not in HARMLESS for name in reasons_of(found)),
    "has_any": lambda confusions: any(confusions.values()),
    "signature": lambda found: " ".join(
        scored["metrics"].get(found["metric"], {}).get("signature") or "" for scored in found["systems"].values()
    ),
    "others": lambda outputs: {system: text for system, text in outputs.items() if system != WHISPER},
    "average_metrics": average_metrics,
    "average_notes": average_notes,
    "first_upper": lambda text: text[:1].upper() + text[1:],
}

__all__ = [
    "average_metrics",
    "average_notes",
    "name_of",
    "prepare_page",
    "reasons_of",
    "render_page",
    "settings_of",
    "unit_of",
    "verdicts_of",
]
