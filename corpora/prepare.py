"""
`audiollm prepare`: from raw speech to examples to train on.

    audiollm prepare librispeech --splits dev-clean train-clean-100 --output data/librispeech
    audiollm prepare huggingface --dataset org/name --max_wer 5.0
    audiollm prepare folder recordings
    audiollm prepare synthesize sentences.txt
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import HfArgumentParser

from .clips import CorpusError
from .examples import ExamplesError
from .prepare_arguments import PrepareArguments
from .preparing import Prepared, prepare
from .tasks import tasks_named


@dataclass(frozen=True)
class SourceKind:
    """
    A kind of corpus that can be prepared.

    Attributes:
        module: of this room; has `open_source`, `DEFAULT_TASKS` and `DEFAULT_OUTPUT`.
        arguments: name of its dataclass of options.
        positional: the option that can be given without its name, first.
        about: a line for `--help`.
    """

    module: str
    arguments: str
    positional: str | None
    about: str


SOURCES = {
    "librispeech": SourceKind("librispeech", "LibriSpeechArguments", None, "LibriSpeech, downloaded or at hand"),
    "huggingface": SourceKind(
        "huggingface", "HuggingFaceArguments", "dataset", "a dataset of the Hub or on disk, or a ready corpus"
    ),
    "folder": SourceKind("folder", "FolderArguments", "folder", "a folder of audio with transcripts"),
    "synthesize": SourceKind("synthesize", "SynthesizeArguments", "texts", "text, read by synthetic voices"),
}
LIST_COMMAND = "corpora"
INTERRUPTED_EXIT = 130
USAGE_EXIT = 2


def run(kind: str, arguments: Sequence[str]) -> Prepared:
    """
    Prepares a corpus as the command line says.

    Args:
        kind: a name of `SOURCES`.
        arguments: what follows it.

    Raises:
        CorpusError, ExamplesError, ValueError, OSError: as [`prepare`], or by the corpus' own options.
    """
    source_kind = SOURCES[kind]
    module = importlib.import_module(f".{source_kind.module}", __package__)
    if source_kind.positional and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{source_kind.positional}", *arguments]
    parser = HfArgumentParser(
        [getattr(module, source_kind.arguments), PrepareArguments],
        prog=f"audiollm prepare {kind}",
        description=(module.__doc__ or "").strip(),
        allow_abbrev=False,
    )
    options, shared = parser.parse_args_into_dataclasses(list(arguments))
    source = module.open_source(options)
    tasks = tasks_named(shared.tasks or module.DEFAULT_TASKS)
    return prepare(source, shared.output or module.DEFAULT_OUTPUT, tasks, shared.settings())


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    kind = arguments[0] if arguments else "--help"
    if kind in ("-h", "--help"):
        print("usage: audiollm prepare CORPUS [options]\n\ncorpora:")
        for name, source_kind in SOURCES.items():
            print(f"  {name:12} {source_kind.about}")
        print("\n`audiollm prepare CORPUS --help` shows its options.")
        return
    if kind not in SOURCES:
        sys.exit(f"audiollm prepare: there is no {kind!r}; expected one of {', '.join(SOURCES)}.")
    try:
        print(run(kind, arguments[1:]).describe())
    except (CorpusError, ExamplesError, OSError, ValueError) as error:
        sys.exit(f"audiollm prepare {kind}: {error}")
    except KeyboardInterrupt:
        print("Interrupted. What is done is kept: the same command goes on.", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT)


if __name__ == "__main__":
    main()
