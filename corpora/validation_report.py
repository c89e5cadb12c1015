"""What `audiollm validate` found, for people (a summary and a plot) and for programs (JSON)."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .fault_index import Finding
from .faults import ERROR, FAULTS, WARNING, Limits
from .validation import HISTOGRAM_EDGES, Validation

#: Raise it when a field of the report changes its name or meaning.
REPORT_VERSION = 1
HOURS_DIGITS = 6
#: Okabe and Ito's colours, which the colour-blind can tell apart; one for each split, then again.
SPLIT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
SEVERITY_COLOURS = {ERROR: "#B5342B", WARNING: "#E0A030"}
GREY = "#777777"
PLOT_DPI = 140
#: Title of each histogram, what its values are called, and what they are of.
HISTOGRAM_TEXTS = {
    "duration_seconds": ("Durations", "", "recordings"),
    "characters_per_second": ("Transcripts' speech rate", "letters and digits a second", "transcripts"),
    "word_error_percent": ("Transcripts' word error", "percent", "transcripts"),
}
#: Marks of a logarithmic axis of seconds.
DURATION_TICKS = {
    0.01: "10 ms",
    0.1: "0.1 s",
    1.0: "1 s",
    10.0: "10 s",
    60.0: "1 min",
    600.0: "10 min",
    3600.0: "1 h",
    36000.0: "10 h",
}


def severity_of(fault: str, strict: bool = False) -> str:
    """How bad a fault is."""
    return ERROR if strict else FAULTS[fault].severity


def count_severities(found: Validation, strict: bool = False) -> dict[str, int]:
    """How many errors and warnings there are."""
    totals = {ERROR: 0, WARNING: 0}
    for fault, count in found.index.counts().items():
        totals[severity_of(fault, strict)] += count
    return totals


def printable(text: str) -> str:
    """A text as a terminal can show it: control characters, and what is no Unicode, written out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# ----------------------------------------------------------------------------------------------------------- summary


def summarize(found: Validation, shown: int, strict: bool = False) -> str:
    """
    What was found, in lines of text.

    Args:
        shown: rows of each fault that are named.
        strict: warnings are errors.
    """
    return "\n".join(map(printable, _summary_lines(found, shown, strict)))


def _summary_lines(found: Validation, shown: int, strict: bool) -> Iterator[str]:
    for file, summary in zip(found.files, found.summaries):
        numbers = [_counted(summary.rows, "row"), _counted(summary.recordings, "recording")]
        numbers += [f"{summary.hours:.2f} h", _counted(summary.transcripts, "transcript")]
        role = f"split {file.split}" if file.judged else f"split {file.split}, compared with only"
        yield f"{file.source.name} ({role}): {', '.join(numbers)}"
        if summary.not_compared:
            yield f"  {_counted(summary.not_compared, 'row')} could not be compared with others: unusable, too long or silent"
    counts = found.index.counts()
    if not counts:
        yield "No faults."
        return
    totals = count_severities(found, strict)
    rows = found.index.count_rows(list(counts))
    yield f"{_counted(totals[ERROR], 'error')} and {_counted(totals[WARNING], 'warning')} in {_counted(rows, 'row')}:"
    for severity in (ERROR, WARNING):
        for fault in (each for each in counts if severity_of(each, strict) == severity):
            yield ""
            yield f"{severity:7}  {fault}: {counts[fault]} ({FAULTS[fault].meaning})"
            first = found.index.first(fault, shown)
            for finding in first:
                yield f"         {_line(finding, found)}"
            if counts[fault] > len(first):
                yield f"         ... and {counts[fault] - len(first)} more"


def _line(finding: Finding, found: Validation) -> str:
    where = f"{found.files[finding.file].source.name} {finding.where}".strip()
    audio = f"{finding.audio}: " if finding.audio and finding.audio not in finding.reason else ""
    return f"{where}: {audio}{finding.reason}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# -------------------------------------------------------------------------------------------------------------- JSON


def write_report(
    path: Path, found: Validation, limits: Limits, ignored: Sequence[str] = (), strict: bool = False
) -> None:
    """
    Writes everything that was found as one JSON object; the file appears complete or not at all.

    Its fields: `version`; `limits`, `ignored` and `strict` as given; `files`, each with `name`, `split`, `judged`, and
    its numbers; `hours`, `errors`, `warnings` and `counts` by fault; `faults`, each with `file` (name), `row` (place
    from 0, null for the file as a whole), `where`, `fault`, `severity`, `reason` and `audio` (or null), in the order of
    files and rows; `histograms`, each with `edges` and, by split, `counts`: of values below the first edge, between
    each two, and from the last on.
    """
    totals = count_severities(found, strict)
    head: dict[str, Any] = {
        "version": REPORT_VERSION,
        "limits": asdict(limits),
        "ignored": sorted(ignored),
        "strict": strict,
        "files": [
            {"name": file.source.name, "split": file.split, "judged": file.judged, **asdict(summary)}
            | {"hours": round(summary.hours, HOURS_DIGITS)}
            for file, summary in zip(found.files, found.summaries)
        ],
        "hours": round(sum(summary.hours for summary in found.summaries), HOURS_DIGITS),
        "errors": totals[ERROR],
        "warnings": totals[WARNING],
        "counts": found.index.counts(),
        "histograms": {
            name: {"edges": HISTOGRAM_EDGES[name], "counts": counts}
            for name, counts in sorted(found.histograms.items())
        },
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # A name that is no Unicode is written as JSON's own escape of it.
        with open(unfinished, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(_without_end(json.dumps(head, ensure_ascii=False, indent=2)) + ',\n  "faults": [')
            for number, finding in enumerate(found.index.findings()):
                entry = json.dumps(_entry(finding, found, strict), ensure_ascii=False)
                file.write(f"{',' if number else ''}\n    {entry}")
            file.write("\n  ]\n}\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _without_end(text: str) -> str:
    return text.removesuffix("\n}")


def _entry(finding: Finding, found: Validation, strict: bool) -> dict[str, Any]:
    return {
        "file": found.files[finding.file].source.name,
        "row": finding.row,
        "where": finding.where,
        "fault": finding.fault,
        "severity": severity_of(finding.fault, strict),
        "reason": finding.reason,
        "audio": finding.audio,
    }


# -------------------------------------------------------------------------------------------------------------- plot


def write_plot(path: Path, found: Validation, limits: Limits, strict: bool = False) -> None:
    """Draws durations, speech rate and word error by split, and the faults by kind; the file's ending says which format."""
    drawn = [name for name in HISTOGRAM_TEXTS if name in found.histograms]
    figure = Figure(figsize=(4.6 * (len(drawn) + 1), 3.9), dpi=PLOT_DPI, layout="constrained")
    panels = figure.subplots(1, len(drawn) + 1, squeeze=False)[0]
    bounds = {
        "duration_seconds": (limits.min_seconds, limits.max_seconds),
        "characters_per_second": (limits.min_characters_per_second, limits.max_characters_per_second),
        "word_error_percent": (limits.max_wer,),
    }
    for name, axes in zip(drawn, panels):
        _draw_histogram(axes, name, found, [bound for bound in bounds[name] if bound is not None])
    _draw_faults(panels[-1], found, strict)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # Without the date, so that the same findings make the same file.
        date = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(unfinished, format=kind, metadata={date[kind]: None})
        os.replace(unfinished, path)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def _draw_histogram(axes: Axes, name: str, found: Validation, bounds: Sequence[float]) -> None:
    title, unit, counted = HISTOGRAM_TEXTS[name]
    is_logarithmic = name == "duration_seconds"
    edges = np.array(HISTOGRAM_EDGES[name])
    splits = [split for split in found.splits if split in found.histograms[name]]
    # What lies beyond the edges is drawn in bins of its own.
    first, last = (
        (edges[0] ** 2 / edges[1], edges[-1] ** 2 / edges[-2]) if is_logarithmic else (0.0, 2 * edges[-1] - edges[-2])
    )
    outer = np.array([first, *edges, last])
    counts = {split: np.array(found.histograms[name][split]) for split in splits}
    filled = np.flatnonzero(sum(counts.values()))
    low, high = max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 2, len(outer) - 1)
    for number, split in enumerate(splits):
        colour = SPLIT_COLOURS[found.splits.index(split) % len(SPLIT_COLOURS)]
        label = f"{split}: {counts[split].sum():,}"
        shares = 100 * counts[split] / counts[split].sum()
        axes.stairs(
            shares[low:high], outer[low : high + 1], fill=True, color=colour, alpha=0.35 if len(splits) > 1 else 0.75
        )
        axes.stairs(
            shares[low:high], outer[low : high + 1], color=colour, linewidth=1.3, label=label, zorder=3 + number
        )
    if is_logarithmic:
        axes.set_xscale("log")
        ticks = [tick for tick in DURATION_TICKS if outer[low] <= tick <= outer[high]]
        axes.set_xticks(ticks, [DURATION_TICKS[tick] for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(outer[low], outer[high])
    for number, bound in enumerate(bound for bound in bounds if outer[low] < bound < outer[high]):
        axes.axvline(bound, color=GREY, linestyle=":", linewidth=1.2, label=None if number else "allowed", zorder=9)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set(title=title, xlabel=unit, ylabel=f"of the split's {counted}", ylim=(0, None))
    axes.legend(edgecolor="none", framealpha=0.8, fontsize="small")


def _draw_faults(axes: Axes, found: Validation, strict: bool) -> None:
    counts = found.index.counts()
    axes.set_title("Faults")
    if not counts:
        axes.text(0.5, 0.5, "none", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set_axis_off()
        return
    names = list(counts)[::-1]
    colours = [SEVERITY_COLOURS[severity_of(name, strict)] for name in names]
    bars = axes.barh([name.replace("_", " ") for name in names], [counts[name] for name in names], color=colours)
    axes.bar_label(bars, labels=[f"{counts[name]:,}" for name in names], padding=3, fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.set(xlabel="rows; red for errors", xlim=(0, 1.18 * max(counts.values())))
    axes.tick_params(axis="y", labelsize="small", length=0)


__all__ = ["count_severities", "printable", "severity_of", "summarize", "write_plot", "write_report"]
