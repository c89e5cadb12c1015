"""Command lines made of dataclasses: transformers' own parser, with less to read in its help."""

import argparse
import re

from transformers import HfArgumentParser

#: What argparse and HfArgumentParser add to every option, and nobody reads: the other spelling, and that there is no
#: default.
OTHER_SPELLING = re.compile(r"^(  --\w+(?: \{[^}]*\}|[^,\n]*)), --\w+-[\w-]+.*$", re.MULTILINE)
NO_DEFAULT = re.compile(r"\s+\(default:\s+None\)")


class OptionParser(HfArgumentParser):
    """transformers' parser, with less to read in its help."""

    def format_help(self) -> str:
        """The help, each option by one name."""
        return NO_DEFAULT.sub("", OTHER_SPELLING.sub(r"\1", super().format_help()))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Options with their defaults; examples as they are written."""


__all__ = ["HelpFormatter", "OptionParser"]
