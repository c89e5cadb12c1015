"""What `make bench` leaves to be read: Markdown with the table, its misses and where each figure is from, and plots."""

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from bench_table import HERE, RESULTS, Judgement, Line, Measure, lines_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TABLE_FILE, BARS_FILE, GROWTH_FILE = "bench.md", "bench.png", "growth.png"
GROWTH_RESULT = "growth.json"
COLORS = ("#3b6fb6", "#d9822b", "#3a8f5c", "#8a5fa8", "#8a8a8a")
#: Figures below this are said with more decimals.
SMALL = 0.1
UNKNOWN = "unknown"


def write_report(measures: Sequence[Measure], runs: dict[str, Any], machine: dict[str, Any], results: Path) -> Path:
    """
    Writes the Markdown file and the plots from the result files that are there.

    Args:
        measures: of `bench.yaml`.
        runs: what is known of each measure's last run by `make bench`, by name.
        machine: what the figures were measured on.
        results: folder of the result files, which gets the report.
    """
    found = {measure.name: measure.data(results) for measure in measures}
    lines = [line for measure in measures for line in lines_of(measure, found[measure.name])]
    plot_ratios([line for line in lines if line.ratio], results / BARS_FILE)
    growth = next((found[measure.name] for measure in measures if measure.result == GROWTH_RESULT), None)
    if growth:
        plot_growth(growth["sweeps"], results / GROWTH_FILE)
    text = "\n".join([*_heading(machine), *_table(measures, lines), *_misses(lines), *_growth(growth), ""])
    text += "\n".join([*_sources(measures, runs, results), ""])
    (results / TABLE_FILE).write_text(text, encoding="utf-8")
    return results / TABLE_FILE


def _heading(machine: dict[str, Any]) -> list[str]:
    on = ", ".join(f"{name} {value}" for name, value in machine.items())
    return [
        "# AudioLLM beside its peers",
        "",
        "Written by `make bench`; `.venv/bin/python benchmarks/bench.py --table` writes it anew from the result files.",
        "Voxtral and Qwen2-Audio are transformers' own classes, Ultravox and SLAM those projects' recipes as",
        "`benchmarks/recipe_peers.py` says; all stand on the same two bases, hear the same clips, and take turns on the same",
        "machine. A ratio says how many times better AudioLLM is (below 1, worse); the target's issue stands in brackets.",
        "",
        f"Machine: {on}." if on else "",
        "",
    ]


def _table(measures: Sequence[Measure], lines: list[Line]) -> list[str]:
    text = []
    for measure in measures:
        chosen = [line for line in lines if line.measure == measure.name]
        if not chosen:
            continue
        text += [
            f"## {measure.title}",
            "",
            "| figure | ours | peer | peer's | ratio | target | |",
            "|---|---|---|---|---|---|---|",
        ]
        for line in chosen:
            figure = f"{line.figure}, {line.unit}" if line.unit else line.figure
            ratio = "" if line.ratio is None else f"{line.ratio:.2f}x"
            targets = "<br>".join(f"{each.text} ({each.issue})" for each in line.judgements)
            verdicts = "<br>".join(in_words(each) for each in line.judgements)
            cells = [figure, number(line.ours), line.peer, "" if not line.peer else number(line.theirs), ratio]
            text.append(f"| {' | '.join([*cells, targets, verdicts])} |")
        text.append("")
    return text


def _misses(lines: list[Line]) -> list[str]:
    judged = [(line, each) for line in lines for each in line.judgements if each.met is not None]
    missed = [(line, each) for line, each in judged if not each.met]
    text = ["## Targets", "", f"{len(judged) - len(missed)} of {len(judged)} are met.", ""]
    if not missed:
        return text
    text += ["Missed, and why:", ""]
    reasons: dict[str, list[str]] = {}
    for line, each in missed:
        name = f"{line.figure}{f', beside {line.peer}' if line.peer else ''} ({in_words(each)})"
        reasons.setdefault(each.why or "No explanation yet.", []).append(name)
    for why, names in reasons.items():
        text += [f"- {'; '.join(names)}: {why.strip()}"]
    return [*text, ""]


def _growth(growth: dict[str, Any] | None) -> list[str]:
    if not growth:
        return []
    text = [
        "## How cost grows",
        "",
        "Slopes in log-log: 1 grows in proportion, 0 not at all, 2 with the square.",
        "",
        "| with | from, to | what | at the smallest | at the largest | slope | slope of the upper half |",
        "|---|---|---|---|---|---|---|",
    ]
    for sweep in growth["sweeps"]:
        for name, curve in sweep["curves"].items():
            points = curve["values"]
            cells = [
                sweep["title"],
                f"{number(sweep['values'][0])}, {number(sweep['values'][-1])} {sweep['unit']}",
                name,
                f"{number(points[0])} {curve['unit']}",
                f"{number(points[-1])} {curve['unit']}",
                f"{curve['slope']:.2f}",
                f"{curve['slope_of_upper_half']:.2f}",
            ]
            text.append(f"| {' | '.join(cells)} |")
    return [*text, "", f"![Cost against size, log-log]({GROWTH_FILE})", ""]


def _sources(measures: Sequence[Measure], runs: dict[str, Any], results: Path) -> list[str]:
    text = [f"![Times better than each peer]({BARS_FILE})", "", "## Where each figure is from", ""]
    text += ["| measure | command | took | date | commit |", "|---|---|---|---|---|"]
    for measure in measures:
        run = runs.get(measure.name, {})
        command = f"`benchmarks/{measure.script}{' ' + measure.arguments if measure.arguments else ''}`"
        if run.get("status") == "done":
            took, date, commit = f"{run['seconds'] / 60:.1f} min", run["ended"][:10], run["commit"]
        else:
            took, (date, commit) = "", last_change(results / measure.result)
            if run.get("status") == "failed":
                took = f"failed: {run['error']}"
        text.append(
            f"| {measure.title}{'' if measure.runs else ' (quoted)'} | {command} | {took} | {date} | {commit} |"
        )
    return [
        *text,
        "",
        "A quoted measure is not part of `make bench`: its result file is that of the commit named. Where `make bench` ran one,",
        "the commit is the one that was measured.",
    ]


def in_words(judgement: Judgement) -> str:
    """Met, or by how much not."""
    if judgement.met is None:
        return "not measured"
    if judgement.met:
        return "met"
    return "missed" if judgement.missed_by is None else f"missed by {judgement.missed_by:.0%}"


def number(value: Any) -> str:
    """A figure with three digits or so."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if value == 0 or isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < SMALL else f"{value:.2f}"


def last_change(path: Path) -> tuple[str, str]:
    """Date and commit of a file's last change in git."""
    command = ["git", "log", "-1", "--format=%cs %h", "--", str(path)]
    try:
        said = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        said = []
    return (said[0], said[1]) if len(said) == 2 else (UNKNOWN, UNKNOWN)


def plot_ratios(lines: Sequence[Line], path: Path) -> None:
    """Bars of how many times better ours is, one per line that has a peer, with its targets as ticks."""
    if not lines:
        return
    peers = list(dict.fromkeys(line.peer for line in lines))
    figure, axis = plt.subplots(figsize=(11, 1.2 + 0.24 * len(lines)), layout="constrained")
    for position, line in enumerate(lines):
        assert line.ratio is not None
        color = COLORS[peers.index(line.peer) % len(COLORS)]
        axis.barh(position, math.log10(line.ratio), color=color, height=0.75)
        for target in (each for each in line.judgements if each.text.endswith("x")):
            axis.plot([math.log10(float(target.text[2:-1]))] * 2, [position - 0.45, position + 0.45], color="black")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(lines)), [f"{line.figure} | {line.peer}" for line in lines], fontsize=7)
    axis.invert_yaxis()
    axis.margins(y=0.005)
    low = min(0.0, *(math.log10(line.ratio) for line in lines if line.ratio)) - 0.05
    high = max(math.log10(line.ratio) for line in lines if line.ratio)
    marks = [mark for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low - 0.3 <= math.log10(mark) <= high + 0.3]
    axis.set_xticks([math.log10(mark) for mark in marks], [f"{mark:g}x" for mark in marks])
    axis.tick_params(axis="x", top=True, labeltop=True)
    axis.set_xlabel("times better than the peer (log scale); a black tick is a target")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[index % len(COLORS)]) for index in range(len(peers))]
    figure.legend(handles, peers, frameon=False, loc="outside upper center", ncols=len(peers))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_growth(sweeps: Sequence[dict[str, Any]], path: Path) -> None:
    """One log-log picture per sweep: each curve is divided by its first value, so that slopes can be compared."""
    columns = 3
    rows = math.ceil(len(sweeps) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(13, 3.8 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(sweeps) :]:
        axis.set_visible(False)
    for axis, sweep in zip(axes.flat, sweeps):
        sizes = sweep["values"]
        for index, (name, curve) in enumerate(sweep["curves"].items()):
            values = [value / curve["values"][0] for value in curve["values"]]
            label = f"{name}: slope {curve['slope']:.2f}"
            axis.plot(sizes, values, marker="o", markersize=4, color=COLORS[index % len(COLORS)], label=label)
        axis.plot(sizes, [size / sizes[0] for size in sizes], color="#bbbbbb", linestyle=":", label="in proportion")
        axis.set(xscale="log", yscale="log", title=sweep["title"], xlabel=sweep["unit"], ylabel="times the first")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


__all__ = ["RESULTS", "write_report"]
