"""Options that the commands which answer have in common: which model, and how it chooses its words."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from audiollm.option_parser import HelpFormatter, OptionParser
from transformers import set_seed

from .loading_options import LoadingArguments
from .session import DEFAULT_MAX_NEW_TOKENS

#: Exit status of a command that Ctrl-C has ended, as shells have it.
INTERRUPTED_EXIT = 130


@dataclass
class AnswerArguments(LoadingArguments):
    """Which model answers, and how it chooses its words."""

    system: str | None = field(default=None, metadata={"help": "System message to begin with."})
    max_new_tokens: int = field(
        default=DEFAULT_MAX_NEW_TOKENS, metadata={"help": "Bound on each answer, in tokens; says so when it is met."}
    )
    temperature: float = field(
        default=0.0, metadata={"help": "Above 0, words are drawn, the more freely the higher; 0 takes the likeliest."}
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Draw from the likeliest tokens that make up this share; needs --temperature."}
    )
    seed: int | None = field(default=None, metadata={"help": "Makes draws repeatable; needs --temperature."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens is {self.max_new_tokens}; expected at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature is {self.temperature:g}; expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p:g}; expected more than 0, and at most 1.")
        drawing = {"--top_p": self.top_p != 1, "--seed": self.seed is not None}
        without_use = [name for name, given in drawing.items() if given and not self.temperature]
        if without_use:
            raise ValueError(f"{without_use[0]} does nothing where nothing is drawn; give --temperature above 0 too.")

    def generate_options(self) -> dict[str, Any]:
        """What `generate` is to be given; seeds the random numbers where that is asked for."""
        if self.seed is not None:
            set_seed(self.seed)
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:  # top_k: transformers' own default would cut the choice to 50 tokens
            options.update(temperature=self.temperature, top_p=self.top_p, top_k=0)
        return options


Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], command: str, description: str, arguments: Sequence[str] | None
) -> tuple[OptionParser, Arguments]:
    """The parser of a command and its options; ends with the usual message where they are wrong."""
    parser = OptionParser(
        kind,  # type: ignore[arg-type]  # a dataclass
        prog=f"audiollm {command}",
        description=description,
        formatter_class=HelpFormatter,
    )
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return parser, options


def tell(line: str) -> None:
    """Something about an answer rather than part of it: to standard error."""
    print(line, file=sys.stderr, flush=True)


__all__ = ["INTERRUPTED_EXIT", "AnswerArguments", "LoadingArguments", "parse", "tell"]
