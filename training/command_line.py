"""The command line of `audiollm train`: recipes are files of options, which the command line's own come after."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from audiollm.option_parser import HelpFormatter, OptionParser

from .align_stage import AlignArguments
from .arguments import (
    DEFAULT_STAGE,
    SHORT_NAMES,
    AudioLlmTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
)
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
BATCH_SIZES = ("batch_size", "per_device_train_batch_size")
BATCH_BUDGETS = ("max_tokens_per_batch", "max_audio_seconds_per_batch")
#: Options that say the same: given on the command line, one takes the place of any of them in the recipe.
SYNONYMS = (
    *SHORT_NAMES.items(),
    ("use_wandb", "report_to"),
    *((size, budget) for size in BATCH_SIZES for budget in BATCH_BUDGETS),
    ("num_epochs", "max_steps"),
    ("num_train_epochs", "max_steps"),
)
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


class UniqueKeysLoader(yaml.SafeLoader):
    """YAML whose mappings may not name a key twice, of which one would be dropped without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """
        Raises:
            yaml.YAMLError: a key is there twice.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} is given more than once")
        return super().construct_mapping(node, deep)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """
    Reads recipe and command line; what neither the stage nor the Trainer knows is refused.

    Args:
        arguments: of the command line; those of this process when not given.

    Returns:
        `ModelArguments`, `DataArguments`, `AudioLlmTrainingArguments`, `StageArguments`, and the stage's own options
        where it has any: the arguments of `train`.

    Raises:
        ValueError: options are unknown, contradict each other, or have impossible values.
        FileNotFoundError: there is no such recipe.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--stage")
    chosen, _ = first.parse_known_args(arguments)
    path = recipe_path(chosen.config or chosen.stage or DEFAULT_STAGE)
    recipe = read_recipe(path)
    stage = recipe.get("stage", chosen.stage or DEFAULT_STAGE)
    if not isinstance(stage, str) or stage not in STAGE_OPTIONS:
        raise ValueError(f"--stage is {stage!r}; expected one of {', '.join(STAGE_OPTIONS)}.")
    if chosen.stage not in (None, stage):
        raise ValueError(f"--stage {chosen.stage} contradicts the recipe {path}, which is of stage {stage}.")
    groups = option_groups(stage)
    given = given_names(arguments)
    wants_help = "-h" in arguments or "--help" in arguments
    # Help without a stage shows the options of them all.
    shown = all_option_groups() if wants_help and chosen.stage is None and chosen.config is None else groups
    parser = OptionParser(
        shown,  # type: ignore[arg-type]  # transformers types dataclasses as a NewType of its own, which none is
        prog="audiollm train",
        usage="audiollm train --data_path DATA [--stage STAGE] [--config RECIPE] [options]",
        description="Trains a language model to listen, in stages that go on from each other's checkpoints.",
        epilog=EPILOG.format(recipes=", ".join(shipped_recipes()), folder=RECIPES),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    chosen_by_recipe = [] if wants_help else as_options(recipe, stage, path, given)
    own = [*chosen_by_recipe, f"--stage={stage}", *arguments]
    *parsed, unknown = parser.parse_args_into_dataclasses(own, return_remaining_strings=True)
    if unknown:
        raise ValueError(
            f"there is no option {' '.join(unknown)} in stage {stage}; `audiollm train --stage {stage} --help` lists "
            "them all."
        )
    by_type = {type(each): each for each in parsed}
    return tuple(by_type[group] for group in groups)


def option_groups(stage: str) -> list[type]:
    """The dataclasses whose fields are a stage's options, in the order of `train`'s arguments."""
    own = STAGE_OPTIONS[stage]
    return [ModelArguments, DataArguments, AudioLlmTrainingArguments, StageArguments, *([own] if own else [])]


def all_option_groups() -> list[type]:
    """Those of all stages, in an order to be read."""
    own = [group for group in STAGE_OPTIONS.values() if group is not None]
    return [StageArguments, ModelArguments, DataArguments, *own, AudioLlmTrainingArguments]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob(f"*{RECIPE_SUFFIX}"))


def recipe_path(config: str) -> Path:
    """
    File of a recipe, by its path or a shipped one's name.

    Raises:
        FileNotFoundError: it is neither.
    """
    path = Path(config)
    if path.is_file():
        return path
    shipped = RECIPES / f"{config}{RECIPE_SUFFIX}"
    if shipped.is_file():
        return shipped
    raise FileNotFoundError(
        f"there is no recipe {config!r}: expected a YAML file, or one of those shipped: {', '.join(shipped_recipes())}."
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """
    Options by name, of a YAML file.

    Raises:
        ValueError: it is not YAML, not a mapping, or names an option twice.
    """
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), UniqueKeysLoader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # no text, no YAML, no such date, or nested without end
        raise ValueError(f"the recipe {path} cannot be read: {error}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict) or not all(isinstance(name, str) for name in recipe):
        raise ValueError(f"the recipe {path} must be a mapping of option names to values, such as `batch_size: 8`.")
    return recipe


def given_names(arguments: Sequence[str]) -> set[str]:
    """Names of the options on a command line, as fields are named."""
    names = {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return names | {name.removeprefix("no_") for name in names}


def as_options(recipe: dict[str, Any], stage: str, path: Path, given: set[str]) -> list[str]:
    """
    A recipe as command line options, for the command line's own to come after.

    Args:
        recipe: options by name; None is an option that is not given.
        stage: whose options they are.
        path: where it came from, for errors.
        given: options of the command line, whose synonyms are left out.

    Raises:
        ValueError: the stage has no such option, or a value is of a kind that an option cannot have.
    """
    hints = {
        field.name: hint
        for group in option_groups(stage)
        for field, hint in ((field, get_type_hints(group)[field.name]) for field in fields(group))
        if field.init and field.name != "config"
    }
    unknown = sorted(set(recipe) - set(hints))
    if unknown:
        raise ValueError(f"the recipe {path} has {', '.join(unknown)}, which stage {stage} has no option for.")
    replaced = {other for pair in SYNONYMS for name, other in (pair, pair[::-1]) if name in given} - given
    options = []
    for name, value in recipe.items():
        takes_truth = hints[name] is bool or bool in get_args(hints[name])
        if value is None or name in replaced or name in given:
            continue
        if isinstance(value, bool) and not takes_truth:
            raise ValueError(
                f"the recipe {path} has {name}: {value}; YAML reads on, off, yes and no so: quote the word."
            )
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        else:
            options.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return options
