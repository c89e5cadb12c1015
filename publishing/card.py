"""
`audiollm card`: write or renew the model card of a checkpoint.

    audiollm card --model runs/mine
    audiollm card --model runs/mine --scores evaluation/scores.json --license mit --language en --repo you/my-audiollm

The card is README.md in the checkpoint's folder. It is made from the configuration, the training record and the scores.
Marked sections of an existing card are renewed; your own text and sections that you have edited stay.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from audiollm import AudioLlmConfig, __version__
from audiollm.base_models import EMBEDDED_PREFIX
from audiollm.command_line.embedded_bases import EMBEDDED_BASES
from audiollm.command_line.files import BLOCK_BYTES, write_whole
from audiollm.command_line.option_parser import option, parser_of
from huggingface_hub import CardData, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .record import MIB, CardError, read_record
from .score_table import (
    COUNTS,
    READING,
    SCORED_SYSTEM,
    SYSTEM_TITLES,
    evaluation_command,
    score_rows,
    systems_of,
    with_interval,
)

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).parent / "model_card.md"
ROLES = {"text": "language model", "audio": "audio encoder"}
MS_PER_FRAME = 20
EVALUATION = "evaluation"
#: Headings under which people describe what the training record does not hold, by the section that is about the same.
OWN_HEADINGS = {
    "data": re.compile(r"(?im)^#+ +(.*\b(?:data|dataset|corpus|corpora|trained on)\b.*?) *$"),
    "training": re.compile(
        r"(?im)^#+ +(.*\b(?:training|trained with|how .*(?:trained|made|make)|reproduc\w*)\b.*?) *$"
    ),
}
#: A section between two comments. The first comment has a digest of the text, by which an edited section is known.
SECTION = re.compile(r"<!-- audiollm:begin (\w+)(?: (\w+))? -->\n?(.*?)\n?<!-- audiollm:end \1 -->", re.DOTALL)
DIGEST_DIGITS = 12
BLANK_LINES = re.compile(r"\n{3,}")
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
HUB_TIMEOUT_SECONDS = 10.0
STAGES = {
    "align": "Align: the projector alone, by CTC on transcripts",
    "instruct": "Instruct: cross-entropy on responses",
    "distill": "Distill: to answer speech as the base answers its transcript",
    "prefer": "Prefer: one response to another, by DPO",
}
CITATION = """\
@software{audiollm,
  title = "{AudioLLM}: a {Llama} that listens, by a projector and routed {LoRA} on frozen bases",
  author = "{The AudioLLM authors}",
  version = "{version}",
  license = "MIT",
  year = 2026
}"""


@dataclass
class CardArguments:
    """Options of `audiollm card`."""

    GROUPS: ClassVar = {
        "checkpoint": ("model", "scores"),
        "facts that no file holds": ("repo", "license", "language", "datasets", "data_license"),
        "existing cards, and the Hub": ("append", "online"),
    }

    model: str = field(metadata={"help": "Folder of an AudioLLM checkpoint; its README.md is written or renewed."})
    scores: str | None = option(None, "scores.json of an evaluation of this checkpoint.")
    repo: str | None = option(None, "Its future id on the Hub, such as you/my-audiollm; --model by default.")
    license: str | None = option(None, "Licence of the weights, by the Hub's name: mit.")
    language: list[str] = option([], "Codes of the languages it hears: en de.")
    datasets: list[str] = option([], "Hub ids of training data, besides those that were read from there.")
    data_license: str | None = option(None, "Licence of the training data, in words.")
    append: bool = option(False, "Put the sections behind a card that somebody wrote without them.")
    online: bool = option(False, "Have the Hub validate the card as well, and ask it for licences.")


@dataclass
class Card:
    """A card that was made."""

    text: str  # the whole card
    remarks: list[str] = field(default_factory=list)  # sentences about what was left unchanged
    written: bool = True  # the card differs from the one that was there


def make_card(
    folder: str | os.PathLike,
    repo: str | None = None,
    scores: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    add_sections: bool = False,
    online: bool = False,
) -> Card:
    """
    Make or renew the card of a checkpoint; nothing is written.

    Args:
        folder: of the checkpoint, by whose future id `repo` on the Hub the card calls it.
        scores: of an evaluation of these weights. By default, scores in the card stay while the weights do.
        given: `license`, `language`, `datasets` and `data_license`, which no file holds.
        add_sections: put the sections behind a card that has none of them.
        online: ask the Hub for the licences of bases that lie there.

    CardError is raised if there is no checkpoint, or its card cannot be read or is somebody's own, or scores are missing.
    """
    folder, given = Path(folder), given or {}
    config, weights, runs = read_config(folder), weight_files(folder), read_record(folder)["runs"]
    path = folder / CARD_FILE
    earlier = read_card(path)
    old_text = earlier.text if earlier is not None and earlier.text.strip() else ""
    present = sections(old_text)
    if old_text and not present and not add_sections:
        raise CardError(f"{path} has none of this command's sections, and is left. --append puts them behind it.")
    hashed = hashlib.sha256()
    for file in weights:
        with file.open("rb") as content:
            while block := content.read(BLOCK_BYTES):
                hashed.update(block)
    digest = hashed.hexdigest()
    still_scored = scores is None and digest in present.get(EVALUATION, "")
    own_results = [] if earlier is None else [each for each in earlier.data.get("eval_results") or [] if is_own(each)]
    results = own_results if still_scored else []
    evaluation: dict[str, Any] = {}
    if scores is not None:
        if not isinstance(scores.get("tasks"), dict) or not scores["tasks"]:
            raise CardError("The scores have no tasks; expected the scores.json of `audiollm evaluate score`.")
        if SCORED_SYSTEM not in systems_of(scores):
            raise CardError(f"The scores are of {systems_of(scores)}; there are none of the model itself.")
        results = evaluation_results(scores)
        evaluation = {
            **{
                "scores": scores,
                "systems": systems_of(scores),
                "score_rows": score_rows(scores),
                "titles": SYSTEM_TITLES,
            },
            **{"reading": READING, "counts_told": COUNTS, "with_interval": with_interval},
            "evaluation_command": evaluation_command(scores.get("run", {}), repo or str(folder)),
        }
    named = {role: (getattr(config, f"{role}_model_id"), getattr(config, f"{role}_model_revision")) for role in ROLES}
    bases = {role: find_base(*base, online) for role, base in named.items()}
    name = (repo or folder.absolute().name).rpartition("/")[2]
    is_adapter = config.weight_format == "adapter"
    data_paths = [each["path"] for run in runs for each in run.get("data") or []]
    old_header = None if earlier is None else earlier.data
    header = make_header(name, is_adapter, bases, data_paths, results, given, old_header)
    own_text = SECTION.sub("", old_text)
    described = {section: heading.search(own_text) for section, heading in OWN_HEADINGS.items() if not runs}
    new = ModelCard.from_template(
        header,
        template_path=str(TEMPLATE),
        name=name,
        repo_id=repo or str(folder),
        bases=bases,
        config=config,
        whole=not is_adapter,
        embedded=is_adapter and any(str(model_id).startswith(EMBEDDED_PREFIX) for model_id, _ in named.values()),
        weight_mib=f"{sum(file.stat().st_size for file in weights) / MIB:.3g}",
        weights_digest=digest,
        ms_per_frame=MS_PER_FRAME,
        data_licence=given.get("data_license"),
        described={section: found[1] for section, found in described.items() if found},
        runs=runs,
        stages=STAGES,
        is_scored=scores is not None or still_scored,
        citation=CITATION.replace("{version}", __version__),
        **evaluation,
    )
    text = seal(new.text)
    remarks: list[str] = []
    if present:
        text, remarks = renew(old_text, text, frozenset([EVALUATION] if still_scored else []))
        if own_results and not results:
            remarks.append("The weights have changed since they were scored: the scores were taken out.")
    elif old_text:
        text = "\n\n".join([old_text.rstrip(), *(found[0] for found in SECTION.finditer(text))]) + "\n"
    card = str(ModelCard(f"---\n{header.to_yaml()}\n---\n{text}"))
    return Card(card, remarks, earlier is None or card != path.read_text(encoding="utf-8"))


def write_card(folder: str | os.PathLike, **options: Any) -> Card:
    """Make the card of a checkpoint and write it into its folder; `options` and errors are those of [`make_card`]."""
    card = make_card(folder, **options)
    if card.written:
        write_whole(Path(folder) / CARD_FILE, card.text)
    return card


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
        counts = system.get("counts", {})
        for metric, score in system.get("metrics", {}).items():
            # Other metrics, such as speed, depend on the machine.
            if metric not in (record.get("metrics") or [metric]) or score.get("value") is None:
                continue
            own = {**{name: score.get(name) for name in ("low", "high", "unit")}, "items": counts.get("scored")}
            result = EvalResult(
                task_type=TASK_TYPES.get(found.get("kind"), PIPELINE),
                dataset_type=source.get("hub") or task,
                dataset_name=source.get("title") or task,
                dataset_config=source.get("config"),
                dataset_split=source.get("split"),
                metric_type=METRIC_TYPES.get(metric, metric),
                metric_value=score["value"],
                metric_name=f"{metric} of {task} ({score.get('unit') or 'unit not recorded'})",
                metric_args=own,
            )
            results.append(result)
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
    Return a header with the known facts, over that of the card that is there.

    Facts that follow from the checkpoint are written anew; the rest stays, lists are extended, and `results` replace
    earlier ones of ours. Datasets of the Hub among `data_paths` are named.
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


def read_config(folder: Path) -> AudioLlmConfig:
    """Read a checkpoint's configuration; CardError if there is no AudioLLM checkpoint in the folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise CardError(f"{folder} is no checkpoint: there is no {path.name} in it. Give the folder of a saved model.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("model_type") != AudioLlmConfig.model_type:
            raise ValueError(f"its model_type is {found.get('model_type')!r}, not {AudioLlmConfig.model_type!r}")
        return AudioLlmConfig.from_pretrained(folder)
    except (ValueError, TypeError, AttributeError) as error:
        raise CardError(f"{path} is not that of an AudioLLM checkpoint: {error}.") from error


def read_card(path: Path) -> ModelCard | None:
    """Read a card, if there is one; CardError if its header cannot be read."""
    if not path.is_file():
        return None
    try:
        return ModelCard.load(path)
    except Exception as error:  # yaml's own errors, and those of huggingface_hub about results
        raise CardError(f"The header of {path} cannot be read: {error}. Mend it, or move the file away.") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, in order; CardError if some are missing."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = [SAFE_WEIGHTS_NAME]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CardError(f"{folder} has no {', '.join(missing)}; save the model again.")
    return [folder / name for name in names]


def read_scores(path: str) -> dict[str, Any]:
    """Read the scores of an evaluation; CardError if the file is missing or holds no JSON object."""
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"--scores {path} cannot be read: {error}.") from error
    if not isinstance(scores, dict):
        raise CardError(f"--scores {path} holds no JSON object; expected the scores.json of an evaluation.")
    return scores


def sections(text: str) -> dict[str, str]:
    """Return the text of each section by its name."""
    return {name: body.strip() for name, _, body in SECTION.findall(text)}


def seal(text: str) -> str:
    """Write each section's digest into its opening comment."""

    def sealed(found: re.Match[str]) -> str:
        name, _, body = found.groups()
        body = BLANK_LINES.sub("\n\n", body).strip()
        return f"<!-- audiollm:begin {name} {_digest(body)} -->\n{body}\n<!-- audiollm:end {name} -->"

    return SECTION.sub(sealed, text)


def renew(old: str, new: str, keep: frozenset[str] = frozenset()) -> tuple[str, list[str]]:
    """
    Put the sections of a new, sealed card into an old one, and leave everything else of it, and the sections in `keep`.

    Returns:
        The card, and remarks about sections that people have edited or taken out, which stay so.
    """
    fresh = {found[1]: found[0] for found in SECTION.finditer(new)}
    remarks = []

    def chosen(found: re.Match[str]) -> str:
        name, sealed_as, body = found.groups()
        if sealed_as != _digest(body):
            remarks.append(f"The section {name!r} was edited by hand and is left as it is.")
            return found[0]
        return found[0] if name in keep or name not in fresh else fresh[name]

    text = SECTION.sub(chosen, old)
    gone = [name for name in fresh if name not in sections(old)]
    return text, [*remarks, *(f"The section {name!r} was taken out and stays out." for name in gone)]


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:DIGEST_DIGITS]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm card`."""
    (options,) = parser_of(CardArguments, "card", "--model FOLDER [options]", __doc__).parse_args_into_dataclasses(
        sys.argv[1:] if arguments is None else list(arguments)
    )
    try:
        scores = read_scores(options.scores) if options.scores else None
        scored = (scores or {}).get("run", {}).get("model")
        if isinstance(scored, str) and os.path.abspath(scored) != os.path.abspath(options.model):
            print(f"Note: the scores are of {scored}, not of {options.model}.", file=sys.stderr)
        card = write_card(
            options.model,
            repo=options.repo,
            scores=scores,
            given={name: getattr(options, name) for name in ("license", "language", "datasets", "data_license")},
            add_sections=options.append,
            online=options.online,
        )
        if options.online:
            ModelCard(card.text).validate()
    except (CardError, OSError, ValueError) as error:
        sys.exit(f"audiollm card: {error}")
    for remark in card.remarks:
        print(f"Note: {remark}", file=sys.stderr)
    print(f"{Path(options.model) / CARD_FILE}: {'written' if card.written else 'nothing has changed'}")
