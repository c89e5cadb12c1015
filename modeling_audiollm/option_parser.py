"""Command lines made of dataclasses: transformers' own parser, with less to read in its help."""

import argparse
import re

from transformers import HfArgumentParser

#: What argparse and HfArgumentParser add to options, and nobody reads: the other spelling; that there is no default, or
#: that a list or a flag is not given by default; that a flag takes true and false as well; lists as Python writes them.
OTHER_SPELLING = re.compile(r"^(  --\w+(?: \{[^}]*\}|[^,\n]*)), --\w+-[\w-]+.*$", re.MULTILINE)
NO_DEFAULT = re.compile(r"\s+\(default:\s+(?:None|False|\[\])\)")
FLAG_VALUE = re.compile(r"^(  --\w+) \[[A-Z0-9_]+\]", re.MULTILINE)
DEFAULT_LIST, LIST_ITEM = re.compile(r"\(default:\s+\[([^\]]+)\]\)"), re.compile(r"[^\s,'\"]+")


class OptionParser(HfArgumentParser):
    """transformers' parser, with less to read in its help."""

    def format_help(self) -> str:
        """The help, each option by one name."""
        text = OTHER_SPELLING.sub(r"\1", super().format_help())
        text = FLAG_VALUE.sub(r"\1", NO_DEFAULT.sub("", text))
        return DEFAULT_LIST.sub(lambda match: f"(default: {' '.join(LIST_ITEM.findall(match[1]))})", text)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Options with their defaults; examples as they are written."""


__all__ = ["HelpFormatter", "OptionParser"]
