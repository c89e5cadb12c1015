"""Scores for people: lines to print, and the one-file report of one's own data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .outputs import ERROR, SystemOutputs
from .run_record import read_run
from .systems import MODEL, SYSTEM_TITLES, WHISPER, WRONG_AUDIO
from .word_error import aligner_for, score_word_error

#: What a system's scores are called in the report of one's own data, and its answer beside a clip.
REPORT_KEYS = {
    MODEL: ("word_error", "hypothesis"),
    WRONG_AUDIO: ("wrong_audio_control", "wrong_audio_hypothesis"),
    WHISPER: ("whisper_own_decoder", "whisper_hypothesis"),
}


def score_lines(scores: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    """One line for each figure, and one for each thing that a reader of it should know."""
    for task in tasks:
        if len(tasks) > 1:
            yield f"{task}:"
        systems = scores["tasks"].get(task, {}).get("systems", {})
        for system in filter(systems.__contains__, SYSTEM_TITLES):
            scored = systems[system]
            counts = scored["counts"]
            for metric, figure in scored["metrics"].items():
                yield f"{metric.replace('_', ' ')} {_figure(figure)}  {SYSTEM_TITLES[system]}  ({counts['scored']} scored)"
            yield from _remarks(SYSTEM_TITLES[system], counts)


def _figure(figure: Mapping[str, Any]) -> str:
    if figure.get("value") is None:
        return "none"
    interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure.get("low") is not None else ""
    return f"{figure['value']:.3f}{interval}"


#: What is said of a count that is not zero.
REMARKS = {
    "skipped_empty_reference": "{count} clips were left out: their reference has no word.",
    "errors": "{system}: {count} could not be answered; the outputs say why.",
    "unparsable": "{system}: {count} answers could not be read.",
    "length_limited": "{system}: {count} answers were cut off at their bound.",
    "repeated": "{system}: {count} answers were stopped because they repeated themselves.",
    "unjudged": "{system}: {count} answers have no mark.",
}


def _remarks(system: str, counts: Mapping[str, int]) -> Iterator[str]:
    for name, text in REMARKS.items():
        if counts.get(name):
            yield text.format(system=system, count=counts[name])


def write_own_report(path: Path, folder: Path, task: str) -> None:
    """
    Word errors of one's own data, and every clip's reference beside what was heard, as one JSON file.

    Args:
        path: of the file.
        folder, task: where the outputs are.
    """
    found = {name: SystemOutputs(folder, task, name).read() for name in REPORT_KEYS}
    asked = next(found[name] for name in (MODEL, WHISPER, WRONG_AUDIO) if found[name])
    references = [row["references"][0] for row in asked.values()]
    record = read_run(folder)["tasks"][task]
    normaliser = record["normaliser"]
    report: dict[str, Any] = {"language": record["language"], "normaliser": normaliser}
    for name, (key, _) in REPORT_KEYS.items():
        rows = found[name]
        heard = [rows[one]["output"] or "" for one in asked] if rows else None
        scored = heard and score_word_error(references, heard, normaliser, aligner_for(normaliser))
        report[key] = scored.to_dict() if scored else None
    report["clips"] = [
        {
            "audio": row["audio"][0],
            "prompt": row["prompt"],
            "reference": row["references"][0],
            **{key: found[name][one]["output"] if found[name] else None for name, (_, key) in REPORT_KEYS.items()},
        }
        for one, row in asked.items()
    ]
    failed = {one: row["error"] for rows in found.values() for one, row in rows.items() if row["finish"] == ERROR}
    if failed:
        report["errors"] = failed
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


__all__ = ["REPORT_KEYS", "score_lines", "write_own_report"]
