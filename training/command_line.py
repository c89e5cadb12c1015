"""The command line of `audiollm train`: the options of a recipe, and after them those that are given."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from audiollm.command_line.option_parser import parser_of

from .align import AlignArguments
from .arguments import DEFAULT_STAGE, AudioLlmTrainingArguments, DataArguments, ModelArguments, StageArguments
from .distill import DistillArguments
from .prefer import PreferArguments
from .read import ReadArguments

RECIPES = Path(__file__).parent / "recipes"
RECIPE_SUFFIX = ".yaml"
#: Options that only one stage has.
STAGE_OPTIONS: dict[str, type | None] = {
    "align": AlignArguments,
    "read": ReadArguments,
    "instruct": None,
    "distill": DistillArguments,
    "prefer": PreferArguments,
}
EPILOG = """\
examples:
  audiollm train --data_path data.json --audio_dir recordings --output_dir runs/mine
  audiollm train --stage align --data_path transcripts.json --output_dir runs/aligned
  audiollm train --stage read --model_path runs/aligned --text_path texts.txt --output_dir runs/read
  audiollm train --model_path runs/aligned --data_path data.json --output_dir runs/mine
  audiollm train --config my_recipe.yaml --learning_rate 1e-4

Options of transformers' TrainingArguments are taken as well: --output_dir, --learning_rate, --max_steps, --save_steps, --bf16,
--report_to and all others, which `python -m audiollm.training.train --help` lists.

recipes that are shipped: {recipes}. They lie in {folder}; copy one and change it.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """
    Read recipe and command line, by default that of this process.

    Returns `ModelArguments`, `DataArguments`, `AudioLlmTrainingArguments`, `StageArguments`, and the stage's own options
    where it has any: the arguments of `train`. Raises ValueError for options that are unknown, contradict each other or
    have impossible values, and FileNotFoundError where there is no such recipe.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--stage")
    chosen, _ = first.parse_known_args(arguments)
    config = chosen.config or chosen.stage or DEFAULT_STAGE
    recipe = read_recipe(config)
    stage = recipe.get("stage", chosen.stage or DEFAULT_STAGE)
    if not isinstance(stage, str) or stage not in STAGE_OPTIONS:
        raise ValueError(f"--stage is {stage!r}; expected one of {', '.join(STAGE_OPTIONS)}.")
    if chosen.stage not in (None, stage):
        raise ValueError(f"--stage {chosen.stage} contradicts the recipe {config}, which is of stage {stage}.")
    wants_help = "-h" in arguments or "--help" in arguments
    # Help without a stage shows the options of them all.
    shows_all = wants_help and chosen.stage is None and chosen.config is None
    shown = option_groups(STAGE_OPTIONS if shows_all else [stage])
    usage = "--data_path DATA [--stage STAGE] [--config RECIPE] [options]"
    description = "Trains a language model to listen, in stages that go on from each other's checkpoints."
    parser = parser_of(shown, "train", usage, description)
    parser.epilog = EPILOG.format(recipes=", ".join(shipped_recipes()), folder=RECIPES)
    own = [*([] if wants_help else as_options(recipe)), f"--stage={stage}", *arguments]
    *parsed, unknown = parser.parse_args_into_dataclasses(own, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"there is no option {' '.join(unknown)} in stage {stage}; --stage {stage} --help lists all.")
    by_type = {type(each): each for each in parsed}
    groups = ModelArguments, DataArguments, AudioLlmTrainingArguments, StageArguments, STAGE_OPTIONS[stage]
    return tuple(by_type[group] for group in groups if group is not None)


def option_groups(stages: Iterable[str]) -> list[type]:
    """Return the dataclasses whose fields are the options of these stages, in the order of the help."""
    own = [options for stage in stages if (options := STAGE_OPTIONS[stage]) is not None]
    return [StageArguments, ModelArguments, DataArguments, *own, AudioLlmTrainingArguments]


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob(f"*{RECIPE_SUFFIX}"))


def read_recipe(config: str) -> dict[str, Any]:
    """
    Return the options of a recipe, the path of a YAML file or a shipped one's name.

    Raises FileNotFoundError for neither, and ValueError if it is not YAML, or not a mapping.
    """
    found = [path for path in (Path(config), RECIPES / f"{config}{RECIPE_SUFFIX}") if path.is_file()]
    if not found:
        shipped = ", ".join(shipped_recipes())
        raise FileNotFoundError(
            f"there is no recipe {config!r}: expected a YAML file, or one of those shipped: {shipped}."
        )
    try:
        recipe = yaml.safe_load(found[0].read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"the recipe {config} cannot be read: {error}") from error
    if not isinstance(recipe, dict) or not all(isinstance(name, str) for name in recipe):
        raise ValueError(f"the recipe {config} must be a mapping of option names to values, such as `batch_size: 8`.")
    return recipe


def as_options(recipe: dict[str, Any]) -> list[str]:
    """Return a recipe as command line options; a value of None is an option that is not given."""
    options = []
    for name, value in recipe.items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        elif name == "feature_cache" and value is False:  # how YAML reads `off`
            options.append("--feature_cache=off")
        elif value is not None:
            options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return options
