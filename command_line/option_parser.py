"""Command lines made of dataclasses: transformers' own parser, with a shorter help."""

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from transformers import HfArgumentParser
else:
    # This file imports nothing else of transformers, whose import takes longer than the rest of `--help`.
    _found = importlib.util.find_spec("transformers")
    _file = Path(_found.submodule_search_locations[0]) / "hf_argparser.py"
    _spec = importlib.util.spec_from_file_location("_audiollm_hf_argparser", _file)
    _module = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    HfArgumentParser = _module.HfArgumentParser

#: Parts of the help that are left out: the second spelling, empty defaults, the values of flags, Python's list syntax.
OTHER_SPELLING = re.compile(r"^(  --\w+(?: \{[^}]*\}|[^,\n]*)), --\w+-[\w-]+.*$", re.MULTILINE)
NO_DEFAULT = re.compile(r"\s+\(default:\s+(?:None|False|\[\])?\)")
FLAG_VALUE = re.compile(r"^(  --\w+) \[[A-Z0-9_]+\]", re.MULTILINE)
DEFAULT_LIST, LIST_ITEM = re.compile(r"\(default:\s+\[([^\]]+)\]\)"), re.compile(r"[^\s,'\"]+")


def option(default: Any, help: str, **more: Any) -> Any:
    """Return the field of a dataclass of options: its default, what the help says of it, and more, such as `choices`."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **more})
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Expected:
    """Values that an option may have, in words; annotates the option's type."""

    words: str
    allows: Callable[[Any], bool]


def one_of(values: Iterable[str]) -> Expected:
    """Return the expectation of one of some names."""
    return Expected(f"one of {', '.join(values)}", tuple(values).__contains__)


POSITIVE = Expected("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = Expected("a number of 0 or more", lambda value: 0 <= value < float("inf"))
SHARE = Expected("a number from 0 to 1", lambda value: 0 <= value <= 1)


class CheckedOptions:
    """Base of dataclasses of options. Raises ValueError for a value that its option's type does not expect."""

    def __post_init__(self):
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for expected in (each for part in (hint, *get_args(hint)) for each in getattr(part, "__metadata__", ())):
                if value is not None and not expected.allows(value):
                    shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else repr(value)
                    raise ValueError(f"--{name} is {shown}; expected {expected.words}.")


class OptionParser(HfArgumentParser):
    """transformers' parser, with a shorter help."""

    def format_help(self) -> str:
        text = OTHER_SPELLING.sub(r"\1", super().format_help())
        text = FLAG_VALUE.sub(r"\1", NO_DEFAULT.sub("", text))
        return DEFAULT_LIST.sub(lambda match: f"(default: {' '.join(LIST_ITEM.findall(match[1]))})", text)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formats options with their defaults, and the description as it is written."""


def parser_of(options: Any, command: str, usage: str, description: str | None) -> OptionParser:
    """
    Return the parser of one command.

    Args:
        options: dataclass or dataclasses whose fields are the options; `GROUPS` may name them by titles of the help.
        command: as in `audiollm COMMAND`.
        usage: arguments in the usage line.
        description: text above the options, usually a module's docstring.
    """
    parser = OptionParser(
        options,
        prog=f"audiollm {command}",
        usage=f"audiollm {command} {usage}",
        description=(description or "").strip(),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    for each in options if isinstance(options, (list, tuple)) else [options]:
        for title, names in getattr(each, "GROUPS", {}).items():
            group = parser.add_argument_group(title)
            for action in [action for name in names for action in parser._actions if action.dest == name]:
                for other in parser._action_groups:
                    if action in other._group_actions:
                        other._group_actions.remove(action)
                group._group_actions.append(action)
    return parser
