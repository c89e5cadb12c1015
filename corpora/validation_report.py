"""Findings of `audiollm validate`, for people (a summary) and for programs (JSON)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from audiollm.files import written

from .faults import ERROR, FAULTS, WARNING, Limits
from .validation import HISTOGRAM_EDGES, Finding, Validation

#: Raised when a field of the report changes its name or meaning.
REPORT_VERSION = 1
HOURS_DIGITS = 6


def severity_of(fault: str, strict: bool = False) -> str:
    """Return the severity of a fault; with `strict` every fault is an error."""
    return ERROR if strict else FAULTS[fault].severity


def count_severities(found: Validation, strict: bool = False) -> dict[str, int]:
    """Return the numbers of errors and warnings."""
    totals = {ERROR: 0, WARNING: 0}
    for fault, count in found.counts().items():
        totals[severity_of(fault, strict)] += count
    return totals


def summarize(found: Validation, shown: int, strict: bool = False) -> str:
    """
    Return the findings as lines of text, without characters that command a terminal.

    Args:
        shown: Rows of each fault that are named.
        strict: Take warnings for errors.
    """
    text = "\n".join(line.replace("\n", " ") for line in _summary_lines(found, shown, strict))
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)


def _summary_lines(found: Validation, shown: int, strict: bool) -> Iterator[str]:
    for file, summary in zip(found.files, found.summaries):
        numbers = [_counted(summary.rows, "row"), _counted(summary.recordings, "recording")]
        numbers += [f"{summary.hours:.2f} h", _counted(summary.transcripts, "transcript")]
        role = f"split {file.split}" if file.judged else f"split {file.split}, compared with only"
        yield f"{file.source.name} ({role}): {', '.join(numbers)}"
        if summary.not_compared:
            yield f"  {_counted(summary.not_compared, 'row')} not compared with others: unusable, too long or silent"
    counts = found.counts()
    if not counts:
        yield "No faults."
        return
    totals = count_severities(found, strict)
    errors, warnings = _counted(totals[ERROR], "error"), _counted(totals[WARNING], "warning")
    yield f"{errors} and {warnings} in {_counted(found.count_rows(), 'row')}:"
    for fault in sorted(counts, key=lambda name: severity_of(name, strict) != ERROR):
        yield ""
        yield f"{severity_of(fault, strict):7}  {fault}: {counts[fault]} ({FAULTS[fault].meaning})"
        for finding in found.findings(fault, shown):
            where = f"{found.files[finding.file].source.name} {finding.where}".strip()
            audio = f"{finding.audio}: " if finding.audio and finding.audio not in finding.reason else ""
            yield f"         {where}: {audio}{finding.reason}"
        if counts[fault] > shown:
            yield f"         ... and {counts[fault] - shown} more"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def write_report(
    path: Path, found: Validation, limits: Limits, ignored: Sequence[str] = (), strict: bool = False
) -> None:
    """
    Write everything that was found as one JSON object, whole or not at all.

    Its fields: `version`; `limits`, `ignored` and `strict` as given; `files`, each with `name`, `split`, `judged` and its
    counts; `hours`, `errors`, `warnings` and `counts` by fault; `histograms`, each with `edges` and, by split, `counts`
    of values below the first edge, between each two, and from the last on; and `faults`, in the order of files and rows,
    each with `file` (name), `row` (from 0, null for the whole file), `where`, `fault`, `severity`, `reason` and `audio`.
    """
    totals = count_severities(found, strict)
    head: dict[str, Any] = {
        "version": REPORT_VERSION,
        "limits": {each.name: getattr(limits, each.name) for each in fields(Limits)},
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
        "counts": found.counts(),
        "histograms": {
            name: {"edges": HISTOGRAM_EDGES[name], "counts": counts}
            for name, counts in sorted(found.histograms.items())
        },
    }
    # A name that is no Unicode is written as JSON's own escape of it.
    with written(path, errors="backslashreplace") as file:
        file.write(json.dumps(head, ensure_ascii=False, indent=2).removesuffix("\n}") + ',\n  "faults": [')
        for number, finding in enumerate(found.findings()):
            entry = json.dumps(_entry(finding, found, strict), ensure_ascii=False)
            file.write(f"{',' if number else ''}\n    {entry}")
        file.write("\n  ]\n}\n")


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
