"""The YAML header of a card, made with huggingface_hub's classes, which have the Hub check it before anything is sent."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.command_line.embedded_bases import EMBEDDED_BASES
from huggingface_hub import CardData, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError

HUB_URL = "https://huggingface.co/"
#: A dataset of the Hub in training options: `hub:org/name?split=train`.
HUB_DATASET = re.compile(r"hub:([^?]+)")
PIPELINE = "audio-text-to-text"
TAGS = ("audiollm", "speech", "custom_code")
#: The Hub's names of tasks and metrics, by ours; others keep their own.
TASK_TYPES = {"asr": "automatic-speech-recognition"}
METRIC_TYPES = {"word_error": "wer", "character_error": "cer", "no_speech_rate": "hallucination_rate"}
#: Arguments of a metric by which results of ours are told from those that somebody else wrote into a card.
OWN_ARGUMENTS = frozenset(("low", "high", "unit", "items"))
SCORED_SYSTEM = "model"
HUB_TIMEOUT_SECONDS = 10.0


class CardError(ValueError):
    """A card that cannot be made. The message says why, and what to do."""


@dataclass(frozen=True)
class Base:
    """Known facts about a base model."""

    name: str  # short name
    shown: str  # id in Markdown, with its source
    hub_id: str | None = None  # id on the Hub; None for a folder on somebody's disk
    licence: str | None = None  # SPDX or the Hub's name; None where it is not known


def find_base(model_id: str | None, revision: str | None = None, online: bool = True) -> Base:
    """Return the known facts about a base model, by its id in a configuration; `online` asks the Hub for its licence."""
    if not model_id:
        return Base("a base that is not named", "not recorded")
    embedded = EMBEDDED_BASES.get(model_id.removeprefix(EMBEDDED_PREFIX))
    if model_id.startswith(EMBEDDED_PREFIX) and embedded is not None:
        hub_id = embedded.hub_id
        wheels = " and ".join(f"{each.distribution} {each.version}" for each in embedded.wheels)
        shown = f"`{model_id}`: [{hub_id}]({HUB_URL}{hub_id}), from PyPI ({wheels}), SHA-256 `{embedded.sha256}`"
        return Base(hub_id.rpartition("/")[2], shown, hub_id, embedded.licence)
    data: Any = None
    if os.path.isabs(model_id) or os.path.isdir(model_id):
        name, card = Path(model_id).name, Path(model_id) / "README.md"
        with contextlib.suppress(OSError, ValueError):
            data = ModelCard.load(card, ignore_metadata_errors=True).data if card.is_file() else None
        return Base(name, f"`{name}`, a folder that has no Hub id", None, data and data.get("license"))
    with contextlib.suppress(HTTPError, OSError, ValueError):
        if online:
            data = HfApi().model_info(model_id, revision=revision, timeout=HUB_TIMEOUT_SECONDS).card_data
    licence = data and (data.get("license_name") or data.get("license"))
    return Base(model_id.rpartition("/")[2], f"[{model_id}]({HUB_URL}{model_id})", model_id, licence)


def evaluation_results(scores: Mapping[str, Any]) -> list[EvalResult]:
    """Return the model's scores as entries of the Hub's `model-index`, with their intervals."""
    results = []
    for task, found in scores.get("tasks", {}).items():
        record = scores.get("run", {}).get("tasks", {}).get(task, {})
        system, source = found.get("systems", {}).get(SCORED_SYSTEM, {}), record.get("source") or {}
        for metric, score in system.get("metrics", {}).items():
            # Other metrics, such as speed, depend on the machine.
            is_wanted = metric in (record.get("metrics") or [metric])
            if not is_wanted or not isinstance(score.get("value"), (int, float)):
                continue
            results.append(
                EvalResult(
                    task_type=TASK_TYPES.get(found.get("kind") or record.get("kind"), PIPELINE),
                    dataset_type=source.get("hub") or task,
                    dataset_name=source.get("title") or source.get("benchmark") or task,
                    dataset_config=source.get("config"),
                    dataset_split=source.get("split"),
                    metric_type=METRIC_TYPES.get(metric, metric),
                    metric_value=score["value"],
                    metric_name=f"{metric} of {task} ({score.get('unit') or 'unit not recorded'})",
                    metric_args={
                        **{name: score.get(name) for name in ("low", "high", "unit")},
                        "items": system.get("counts", {}).get("scored"),
                    },
                )
            )
    return results


def is_own(result: EvalResult) -> bool:
    """Return True for an entry that `evaluation_results` has made."""
    return isinstance(result.metric_args, dict) and result.metric_args.keys() == OWN_ARGUMENTS


def make_header(
    name: str,
    is_adapter: bool,
    bases: Mapping[str, Base],
    data_paths: list[str],
    results: list[EvalResult],
    given: Mapping[str, Any],
    earlier: CardData | None = None,
) -> ModelCardData:
    """
    Return a header with the known facts, over the one that a card already has.

    Facts that follow from the checkpoint are written anew; the rest of an earlier header stays, and lists are extended.

    Args:
        name: of the model.
        is_adapter: the checkpoint lacks the weights of its bases.
        bases: by role.
        data_paths: of the training data, as its options name it; datasets of the Hub are named.
        results: the model's scores; they replace results of ours in the earlier header.
        given: `license`, `language`, `datasets`, from the command line.
        earlier: the header of the card that is there.
    """
    old: dict[str, Any] = {} if earlier is None else {k: v for k, v in vars(earlier).items() if v is not None}
    on_hub = [HUB_DATASET.match(path) for path in data_paths]
    old_results = old.get("eval_results") or []
    gone = {result.metric_type for result in old_results if is_own(result)}
    kept = [metric for metric in _joined(old.get("metrics")) if metric not in gone]
    fields: dict[str, Any] = {
        **old,
        "license": given.get("license") or old.get("license"),
        "language": _joined(old.get("language"), given.get("language")),
        "library_name": "transformers",
        "pipeline_tag": PIPELINE,
        "datasets": _joined(old.get("datasets"), [each[1] for each in on_hub if each], given.get("datasets")),
        "tags": _joined(old.get("tags"), TAGS, ["lora"] if is_adapter else []),
        "metrics": _joined(kept, [result.metric_type for result in results]),
        "eval_results": [*(result for result in old_results if not is_own(result)), *results],
        "model_name": old.get("model_name") or name,
    }
    if base_ids := [base.hub_id for base in bases.values() if base.hub_id]:
        fields.update(base_model=base_ids, base_model_relation="adapter" if is_adapter else "finetune")
    return ModelCardData(**{key: value for key, value in fields.items() if value not in (None, [])})


def _joined(*lists: Any) -> list[str]:
    """Return lists, or single words, one after the other, each entry once."""
    return list(dict.fromkeys(word for each in lists for word in ([each] if isinstance(each, str) else each or [])))
