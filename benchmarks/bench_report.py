"""What `make bench` leaves to be read: Markdown with the table, its misses and where each figure is from, and plots."""

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from bench_table import HERE, Judgement, Line, Measure, lines_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

TABLE_FILE, BARS_FILE, GROWTH_FILE = "bench.md", "bench.png", "growth.png"
GROWTH_RESULT = "growth.json"
COLORS = ("#3b6fb6", "#d9822b", "#3a8f5c", "#8a5fa8", "#8a8a8a")
MARKERS = ("o", "D", "^")
#: Figures below this are said with more decimals.
SMALL = 0.1
UNKNOWN = "unknown"
MILLION = 1_000_000


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
    text = "\n".join([*_heading(machine), *_targets(lines), *_table(measures, lines), *_growth(growth), ""])
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
        "machine. A ratio says how many times better AudioLLM is (below 1, worse).",
        "",
        f"Machine: {on}." if on else "",
        "",
    ]


def _targets(lines: list[Line]) -> list[str]:
    """The targets of the issues, each beside what was seen, and why some are missed."""
    judged = [(line, each) for line in lines for each in line.judgements]
    seen = [each for _, each in judged if each.met is not None]
    text = [
        f"## Targets: {sum(bool(each.met) for each in seen)} of {len(seen)} met",
        "",
        "| issue | figure | beside | ours | peer's | ratio | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reasons: list[str] = []
    for line, each in sorted(judged, key=lambda pair: pair[1].issue):
        verdict = in_words(each)
        if each.met is False:
            why = each.why.strip() or "no explanation yet"
            if why not in reasons:
                reasons.append(why)
            verdict = f"**{verdict}** [{reasons.index(why) + 1}]"
        cells = [str(each.issue), _figure(line), line.peer, *_numbers(line), each.text, verdict]
        text.append(f"| {' | '.join(cells)} |")
    text.append("")
    if reasons:
        text += ["Why those are missed:", ""]
        text += [f"{number_of}. {why[0].upper()}{why[1:].rstrip('.')}." for number_of, why in enumerate(reasons, 1)]
        text.append("")
    return text


def _table(measures: Sequence[Measure], lines: list[Line]) -> list[str]:
    """All figures, a table per measure."""
    text = []
    for measure in measures:
        chosen = [line for line in lines if line.measure == measure.name]
        if not chosen:
            continue
        text += [f"## {measure.title}", "", "| figure | ours | peer | peer's | ratio |", "|---|---|---|---|---|"]
        for line in chosen:
            ours, theirs, ratio = _numbers(line)
            text.append(f"| {_figure(line)} | {ours} | {line.peer} | {theirs} | {ratio} |")
        text.append("")
    return text


def _figure(line: Line) -> str:
    return f"{line.figure}, {line.unit}" if line.unit else line.figure


def _numbers(line: Line) -> tuple[str, str, str]:
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}x"
    return number(line.ours), number(line.theirs) if line.peer else "", ratio


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
        if run.get("status") == "done":
            took, date, commit = f"{run['seconds'] / 60:.1f} min", run["ended"][:10], run["commit"]
        else:
            took, (date, commit) = "", last_change(results / measure.result)
            if run.get("status") == "failed":
                took = f"failed: {run['error']}"
        text.append(
            f"| {measure.title}{'' if measure.runs else ' (quoted)'} | `{measure.command}` | {took} | {date} | {commit} |"
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
    """How many times better ours is: a row per figure, a dot per peer, a tick per target."""
    if not lines:
        return
    peers = list(dict.fromkeys(line.peer for line in lines))
    figures = list(dict.fromkeys((line.measure, line.figure) for line in lines))
    drawing, axis = plt.subplots(figsize=(11, 1.6 + 0.22 * len(figures)), layout="constrained")
    for line in lines:
        assert line.ratio is not None
        row, peer = figures.index((line.measure, line.figure)), peers.index(line.peer)
        color, marker = COLORS[peer % len(COLORS)], MARKERS[peer // len(COLORS) % len(MARKERS)]
        axis.plot(line.ratio, row, color=color, marker=marker, markersize=6, linestyle="none", alpha=0.85)
        for target in (each for each in line.judgements if each.text.endswith("x")):
            axis.plot([float(target.text[2:-1])] * 2, [row - 0.45, row + 0.45], color="black")
    for row, (measure, _) in enumerate(figures):
        if row and measure != figures[row - 1][0]:
            axis.axhline(row - 0.5, color="#999999", linewidth=0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(figures)), [figure for _, figure in figures], fontsize=7)
    axis.set_ylim(len(figures) - 0.4, -0.6)
    axis.tick_params(axis="x", top=True, labeltop=True)
    axis.set_xlabel("times better than the peer (log scale); a black tick is a target")
    axis.grid(axis="both", color="#e4e4e4")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    handles = [
        plt.Line2D(
            [],
            [],
            linestyle="none",
            color=COLORS[peer % len(COLORS)],
            marker=MARKERS[peer // len(COLORS) % len(MARKERS)],
        )
        for peer in range(len(peers))
    ]
    drawing.legend(handles, peers, frameon=False, loc="outside upper center", ncols=min(5, len(peers)), fontsize=8)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


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
        axis.set_xticks(sizes, [f"{size / MILLION:.0f}M" if size >= MILLION else f"{size:g}" for size in sizes])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
