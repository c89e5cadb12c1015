"""A report as Markdown: the same figures, without plots and players."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import wording
from .page import average_metrics, average_notes, name_of, reasons_of, settings_of, signatures_of, unit_of, verdicts_of

#: What Markdown or HTML would take for markup.
MARKUP = re.compile(r"([\\`*_{}\[\]|~#$])")
#: Mistakes of each kind that are named.
CONFUSIONS_SHOWN = 5
KINDS = {"substitution": "wrong", "deletion": "missing", "insertion": "added"}


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def plain(text: Any) -> str:
    """A text that is shown as it is, on one line, wherever in Markdown it stands."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKUP.sub(r"\\\1", line)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Evaluation of {plain(name_of(report))}"
    yield ""
    if not report["tasks"]:
        yield "Nothing was scored."
        return
    yield "In brackets: 95 % bootstrap intervals over items."
    yield ""
    systems = report["systems"]
    rows = []
    for task, found in report["tasks"].items():
        for metric in found["metrics"]:
            figures = [found["systems"].get(system, {}).get("metrics", {}).get(metric) for system in systems]
            rows.append([task, wording.metric_title(metric), *map(wording.full, figures)])
    for group, by_system in report["averages"].items():
        for metric in average_metrics(by_system):
            label = "; ".join([f"mean of {group}", *average_notes(by_system, metric)])
            figures = [by_system.get(system, {}).get(metric) for system in systems]
            rows.append([label, wording.metric_title(metric), *map(wording.full, figures)])
    yield from _table(["task", "metric", *map(wording.system_title, systems)], rows)
    yield from (
        f"- {plain(wording.system_title(system))}: {plain(wording.system_about(system))}." for system in systems
    )
    for task, found in report["tasks"].items():
        yield from ("", f"## {plain(task)}", "")
        yield from _task(found, verdicts_of(report).get(task, []))
    yield from ("", "## How it was made", "")
    yield from (f"- {plain(name)}: {plain(value)}" for name, value in settings_of(report))
    yield from (f"- {plain(name)}: {plain(signature)}" for name, signature in signatures_of(report))
    if report["command"]:
        yield from ("", "    " + report["command"])


def _task(found: Mapping[str, Any], verdicts: Iterable[str]) -> Iterator[str]:
    about = found["about"]
    facts = (about.get(name) for name in ("title", "hub", "config", "split", "licence"))
    if said := "; ".join(plain(each) for each in facts if each):
        yield from (f"{said}.", "")
    if about.get("limit"):
        yield from (f"Only the first {about['limit']} items were asked.", "")
    yield from (f"- {plain(sentence)}" for sentence in verdicts)
    for system, reason in found["left_out"].items():
        yield f"- {plain(wording.system_title(system))} is not there: {plain(reason)}."
    yield ""
    systems = found["systems"]
    if not systems:
        yield "No system has answered."
        return
    reasons = reasons_of(found)
    titles = [wording.count_title(reason) for reason in reasons]
    counts = [
        [wording.system_title(system), *(scored["counts"].get(reason, 0) for reason in reasons)]
        + [wording.hours(scored["audio_seconds"]), wording.hours(scored["seconds"])]
        for system, scored in systems.items()
    ]
    yield from _table(["system", *titles, "audio", "computing"], counts)
    for title, groups in (("length", found["by_duration"]), ("category", found["by_category"])):
        if groups:
            rows = [
                [group["name"], *(wording.full(group["systems"].get(system), unit_of(found)) for system in systems)]
                for group in groups
            ]
            yield from _table(
                [f"by {title}: {wording.metric_title(found['metric'])}", *map(wording.system_title, systems)], rows
            )
    if found["error_kinds"]:
        rows = [
            [wording.system_title(system), *(f"{kinds[kind]:,.0f}" for kind in kinds)]
            for system, kinds in found["error_kinds"].items()
        ]
        yield from _table(["kinds of error", "wrong", "missing", "added", "in the reference"], rows)
    yield from _confusions(found["confusions"] or {})
    yield from _worst(found)


def _confusions(confusions: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for kind, mistakes in confusions.items():
        if mistakes:
            told = [
                f"{plain(' → '.join(filter(None, (each['said'], each['written']))))} ×{each['count']}"
                for each in mistakes[:CONFUSIONS_SHOWN]
            ]
            yield f"- most often {KINDS[kind]}: {', '.join(told)}"


def _worst(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["worst"]:
        return
    yield from ("", f"Worst examples ({found['worst_order']}):", "")
    rows = [[each["id"], each["reference"] or "(nothing)", each["output"] or "(nothing)"] for each in found["worst"]]
    yield from _table(["item", "right", wording.system_title(found["main_system"])], rows)


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(plain(cell) for cell in head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(plain(cell) for cell in row) + " |"
    yield ""


__all__ = ["plain", "render_markdown"]
