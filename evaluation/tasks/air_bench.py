"""AIR-Bench in its own format: a JSON list of questions beside a folder of recordings for each part."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from audiollm.corpora.examples import RowChecker
from huggingface_hub.errors import HfHubHTTPError

from .benchmarks import benchmark
from .settings import Settings
from .tables import LETTERS, fill
from .task import Item, Problem, TaskDataError, TaskError

#: List of questions in each part's folder.
META_FILES = {"Foundation": "Foundation_meta.json", "Chat": "Chat_meta.json"}
COMMON_FIELDS = ("path", "question", "answer_gt", "task_name", "dataset_name", "uniq_id")
FOUNDATION_FIELDS = (*COMMON_FIELDS, "choice_a", "choice_b")
CHAT_FIELDS = (*COMMON_FIELDS, "meta_info")
CHOICE_FIELDS = {letter: f"choice_{letter.lower()}" for letter in LETTERS}
#: A part whose recordings end otherwise than its list says (Inference_Foundation.py).
FLAC_TASK, FLAC_SUFFIX = "Audio_Grounding", ".flac"
#: What the chat benchmark's leaderboard puts together (cal_score.py); "mixed" is the mean of the last two.
CHAT_CATEGORIES = {
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "speech_and_sound_QA": "speech_and_sound",
    "speech_and_music_QA": "speech_and_music",
}


def air_bench_foundation(
    name: str, settings: Settings, data: str | None, limit: int | None
) -> Iterator[Item | Problem]:
    """Single choices; the reference is the right answer's letter."""
    for row, recording in _rows(name, settings, data, limit, FOUNDATION_FIELDS):
        choices = {letter: row[field] for letter, field in CHOICE_FIELDS.items() if row.get(field) is not None}
        letter = next(letter for letter, text in choices.items() if text == row["answer_gt"])
        shown = {"question": row["question"], **{field: row.get(field) for field in CHOICE_FIELDS.values()}}
        extra = {
            **{"question": row["question"], "choices": choices, "answer": row["answer_gt"]},
            **{"category": row["task_name"], "dataset": row["dataset_name"]},
        }
        yield Item(_identity(row), fill(settings.prompt, shown), [recording], [letter], extra)


def air_bench_chat(name: str, settings: Settings, data: str | None, limit: int | None) -> Iterator[Item | Problem]:
    """Open questions; `meta_info` describes the recording to the judge."""
    for row, recording in _rows(name, settings, data, limit, CHAT_FIELDS):
        extra = {
            **{"question": row["question"], "meta_info": row["meta_info"], "part": row["task_name"]},
            **{"category": CHAT_CATEGORIES.get(row["task_name"], row["task_name"]), "dataset": row["dataset_name"]},
        }
        prompt = fill(settings.prompt, {"question": row["question"]})
        yield Item(_identity(row), prompt, [recording], [row["answer_gt"]], extra)


def _identity(row: Mapping[str, Any]) -> str:
    return f"{row['task_name']}_{row['dataset_name']}/{row['uniq_id']}"


def _rows(
    name: str, settings: Settings, data: str | None, limit: int | None, fields: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], str]]:
    """
    Rows and where their recordings are.

    Raises:
        TaskError: there is no list, or it is none.
        TaskDataError: rows lack fields or recordings; all are named, before the first row is given.
    """
    (source,) = settings.sources
    meta, root = _places(name, source.corpus, source.split, data)
    try:
        rows = json.loads(meta.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TaskError(f"Task {name!r}: {meta} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise TaskError(f"Task {name!r}: {meta} holds a {type(rows).__name__}; expected a list of questions.")
    checker = None if data is None else RowChecker(root, root)
    problems, found = [], []
    for index, row in enumerate(rows[:limit]):
        reasons = _row_problems(row, fields)
        recording = "" if reasons else _recording(row)
        if not reasons and checker is not None:
            reasons = [reason for reason in [checker.path_problem(recording)] if reason]
            recording = checker.locate(recording)
        problems += [(f"{meta.name} row {index}", reason) for reason in reasons]
        found.append((row, recording if checker is not None else f"{root}/{recording}"))
    if problems:
        raise TaskDataError(name, problems)
    yield from found


def _row_problems(row: Any, fields: tuple[str, ...]) -> list[str]:
    if not isinstance(row, dict):
        return [f"is a {type(row).__name__}; expected an object"]
    missing = [field for field in fields if row.get(field) is None and field != "meta_info"]
    if missing:
        return [f"lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}"]
    texts = [field for field in fields if field not in ("uniq_id", "meta_info") and not isinstance(row[field], str)]
    if texts:
        return [f"{texts[0]!r} is {row[texts[0]]!r}; expected text"]
    if "choice_a" in fields and row["answer_gt"] not in [row.get(field) for field in CHOICE_FIELDS.values()]:
        return [f"its answer {row['answer_gt']!r} is none of its choices"]
    return []


def _recording(row: Mapping[str, Any]) -> str:
    path = str(row["path"])
    if row["task_name"] == FLAC_TASK:
        path = str(Path(path).with_suffix(FLAC_SUFFIX))
    return f"{row['task_name']}_{row['dataset_name']}/{path}"


def _places(name: str, corpus: str, part: str, data: str | None) -> tuple[Path, str]:
    """The list of questions, and the folder or address that recordings lie below."""
    file = META_FILES[part]
    if data is not None:
        given = Path(data)
        candidates = [given] if given.is_file() else [given / file, given / part / file]
        meta = next((path for path in candidates if path.is_file()), None)
        if meta is None:
            raise TaskError(f"Task {name!r}: there is no {file} in {data!r}, nor in a folder {part} there.")
        return meta, str(meta.parent)
    hub = str(benchmark(corpus).hub)
    try:
        meta = Path(huggingface_hub.hf_hub_download(hub, f"{part}/{file}", repo_type="dataset"))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise TaskError(
            f"Task {name!r}: {part}/{file} of {hub} cannot be downloaded: {' '.join(str(error).split())} Give a copy "
            "with --data."
        ) from error
    return meta, f"hf://datasets/{hub}/{part}"


__all__ = ["air_bench_chat", "air_bench_foundation"]
