"""All that a report says, gathered once from a folder of scores: what JSON holds, and both pages are made of."""

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from audiollm.publishing.score_table import evaluation_command

from ..bootstrap import SAMPLES
from ..judging import JUDGE_FILE, JUDGEMENTS
from ..outputs import OUTPUTS
from ..run_answers import RunFolderError, read_lines
from ..scoring import ITEMS, RTFX, SCORES_FILE
from ..systems import MODEL, SYSTEM_TITLES, WRONG_AUDIO
from .alignment import DELETION, INSERTION, SUBSTITUTION, confusions
from .breakdown import (
    MAX_CATEGORIES,
    PARTS,
    SPELLED,
    duration_name,
    duration_names,
    error_histogram,
    error_kinds,
    grouped,
    histogram_names,
    paired_difference,
)
from .examples import example, order_told, worst_rows

TEXTS_FILE = Path(__file__).with_name("texts.yaml")
#: Mistakes of each kind that are shown, the most frequent ones.
CONFUSIONS_SHOWN = 10
#: Raise it when a field of the report changes its name or meaning.
REPORT_VERSION = 1

Row = Mapping[str, Any]


@lru_cache(maxsize=1)
def texts() -> dict[str, dict[str, Any]]:
    """What readers are told of systems, metrics and counts."""
    return yaml.safe_load(TEXTS_FILE.read_text(encoding="utf-8"))


def read_scores(folder: Path) -> dict[str, Any]:
    """
    A folder's `scores.json`.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    path = folder / SCORES_FILE
    if not path.is_file():
        raise RunFolderError(f"{folder} has no {SCORES_FILE}; run `audiollm score {folder}` first.")
    scores = read_json(path)
    if not isinstance(scores.get("tasks"), dict):
        raise RunFolderError(f"{path} holds no tasks; expected what `audiollm score` writes.")
    return scores


def read_json(path: Path) -> dict[str, Any]:
    """
    A file of a run that holds one JSON object.

    Raises:
        RunFolderError: it holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is no JSON: {error}. Run what wrote it again.") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"{path} is no JSON object. Run what wrote it again.")
    return found


def gather(folder: Path, worst: int) -> dict[str, Any]:
    """
    What a report says, as JSON.

    Its fields: `version`; `run` and `scoring` as in `scores.json`; `judge`, who gave marks; `command` to repeat it; `systems`, those there are;
    `tasks`, each with `kind`, `about`, `metric` (the one to look at), `systems` as in `scores.json`, `left_out`,
    `verdicts` (sentences), `differences` to the model, `by_duration`, `by_category`, `error_kinds`, `histogram`,
    `confusions` and `worst`; and `averages`.

    Args:
        folder: of `audiollm evaluate`, scored.
        worst: items of each task that are shown.

    Raises:
        RunFolderError: it is not scored, or a file in it is damaged.
    """
    scores = read_scores(folder)
    run = scores.get("run") or {}
    present = {system for entry in scores["tasks"].values() for system in entry["systems"]}
    systems = [system for system in [*SYSTEM_TITLES, *sorted(present - set(SYSTEM_TITLES))] if system in present]
    return {
        "version": REPORT_VERSION,
        "model": str(run.get("model") or "model"),
        "run": run,
        "scoring": scores.get("scoring") or {},
        "judge": read_json(folder / JUDGEMENTS / JUDGE_FILE) if (folder / JUDGEMENTS / JUDGE_FILE).is_file() else None,
        "command": command_of(run),
        "systems": systems,
        "tasks": {
            task: gather_task(
                folder, task, entry, scores, [each for each in systems if each in entry["systems"]], worst
            )
            for task, entry in scores["tasks"].items()
        },
        "averages": scores.get("averages") or {},
        "histogram_names": histogram_names(),
    }


def command_of(run: Mapping[str, Any]) -> str | None:
    """The command that repeats all tasks of a run; None where the run does not say how it was begun."""
    arguments = run.get("arguments")
    if not isinstance(arguments, dict):
        return None
    tasks = list(run.get("tasks", {})) if arguments.get("tasks") else []
    return evaluation_command({**run, "arguments": {**arguments, "tasks": tasks}}, shlex.quote(str(run.get("model"))))


def gather_task(
    folder: Path, task: str, entry: Mapping[str, Any], scores: Mapping[str, Any], systems: Sequence[str], worst: int
) -> dict[str, Any]:
    """What a report says of one task; see [`gather`]."""
    record = (scores.get("run") or {}).get("tasks", {}).get(task, {})
    scoring = scores.get("scoring") or {}
    samples, seed = int(scoring.get("samples") or SAMPLES), int(scoring.get("seed") or 0)
    rows = {system: list(_rows(folder / ITEMS / task / f"{system}.jsonl")) for system in systems}
    outputs = (
        {each["id"]: each for each in _rows(folder / OUTPUTS / task / f"{_main(systems)}.jsonl")} if systems else {}
    )
    metrics = list(dict.fromkeys(name for each in entry["systems"].values() for name in each["metrics"]))
    main = next((name for name in metrics if name != RTFX), None)
    found: dict[str, Any] = {
        "kind": entry.get("kind"),
        "about": _about(record),
        "items": record.get("items"),
        "left_out": record.get("left_out") or {},
        "metric": main,
        "metrics": metrics,
        "systems": {system: entry["systems"][system] for system in systems},
        "main_system": _main(systems) if systems else None,
        "differences": {},
        "by_duration": [],
        "by_category": [],
        "error_kinds": {},
        "histogram": {},
        "confusions": None,
        "worst": [],
        "worst_order": order_told(main) if main else None,
    }
    if main is None or not systems:
        return found
    first = found["main_system"]
    if main in PARTS:
        # Of the item's own recording, also where a system was given another.
        lengths = {row["id"]: duration_name(row) for row in rows[first]}
        found["by_duration"] = grouped(rows, lambda row: lengths.get(row["id"]), duration_names(), main, samples, seed)
        categories = {one: (row.get("extra") or {}).get("category") for one, row in outputs.items()}
        names = sorted({str(name) for name in categories.values() if name})
        if 1 < len(names) <= MAX_CATEGORIES:
            found["by_category"] = grouped(
                rows, lambda row: _text(categories.get(row["id"])), names, main, samples, seed
            )
        if first == MODEL:
            differences = {
                system: paired_difference(rows[MODEL], rows[system], main, samples, seed)
                for system in systems
                if system != MODEL
            }
            found["differences"] = {system: each for system, each in differences.items() if each is not None}
    if main in SPELLED:
        kinds = {system: error_kinds(rows[system], main) for system in systems}
        found["error_kinds"] = {system: each for system, each in kinds.items() if each is not None}
        found["histogram"] = {system: error_histogram(rows[system], main) for system in found["error_kinds"]}
    if main == "word_error":
        found["confusions"] = _confusions(rows[first])
    by_id = {system: {row["id"]: row for row in rows[system]} for system in systems if system != first}
    for row in worst_rows(rows[first], main, worst):
        others = {system: each[row["id"]] for system, each in by_id.items() if row["id"] in each}
        found["worst"].append(example(row, main, others, _question(outputs.get(row["id"]))))
    return found


def _main(systems: Sequence[str]) -> str:
    """Whose mistakes are shown: the model's, or, without it, those of the first system that is no control."""
    own = [system for system in systems if system != WRONG_AUDIO] or systems
    return MODEL if MODEL in systems else own[0]


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise RunFolderError(f"There is no {path}; run `audiollm score` on its folder again.")
    return list(read_lines(path))


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    source = record.get("source")
    source = source if isinstance(source, Mapping) else {}
    kept = ("title", "hub", "config", "split", "licence", "citation", "note")
    settings = record.get("settings") or {}
    return {
        **{name: str(source[name]) for name in kept if source.get(name)},
        **{name: record[name] for name in ("language", "normaliser", "group") if record.get(name)},
        **{name: settings[name] for name in ("limit", "max_new_tokens") if settings.get(name)},
    }


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _question(row: Mapping[str, Any] | None) -> str | None:
    """What an item asks in words: of items that only say what to do with the recording, nothing."""
    extra = (row or {}).get("extra") or {}
    question = extra.get("question")
    if not question:
        return None
    choices = extra.get("choices") or {}
    return "\n".join([str(question), *(f"{letter}. {text}" for letter, text in choices.items() if text)])


def _confusions(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    pairs = [(row["normalised_reference"], row["normalised_output"]) for row in rows if row.get("errors")]
    found = confusions(pairs)
    return {
        kind: [
            {"said": said, "written": written, "count": count}
            for (said, written), count in sorted(found[kind].items(), key=lambda each: (-each[1], each[0]))[
                :CONFUSIONS_SHOWN
            ]
        ]
        for kind in (SUBSTITUTION, DELETION, INSERTION)
    }


__all__ = ["REPORT_VERSION", "command_of", "gather", "gather_task", "read_scores", "texts"]
