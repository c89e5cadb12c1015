"""
`audiollm prepare`: from raw speech to examples to train on.

    audiollm prepare librispeech --splits dev-clean train-clean-100 --output data/librispeech
    audiollm prepare huggingface --dataset org/name --max_wer 5.0
    audiollm prepare folder recordings
    audiollm prepare lhotse cuts.jsonl.gz
    audiollm prepare synthesize sentences.txt
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiollm.command_line.downloads import DownloadError
from audiollm.command_line.files import is_inside
from audiollm.command_line.interruption import TerminatedError, ended_by_signals, exit_status
from audiollm.command_line.option_parser import parser_of

from .catalogue import describe_catalogue
from .clips import STATE_FOLDER, ClipSource, CorpusError
from .examples import ExamplesError
from .preparing import PrepareArguments, Prepared, prepare
from .respond import SelfInstructArguments, self_instructed
from .tasks import Task, known_tasks
from .word_error import WordErrorArguments, WordErrorFilter

ADVICE = (
    "No examples were written; clips that are done are kept. --on_bad_example skip leaves out those above; --retry_bad "
    "tries them again once they are mended."
)


@dataclass(frozen=True)
class SourceKind:
    """A kind of corpus that can be prepared."""

    module: str  # of this room; has `open_source`
    arguments: str  # name of its dataclass of options
    positional: str  # the option that can be given first, without its name
    about: str  # a line for --help


SOURCES = {
    "librispeech": SourceKind("librispeech", "LibriSpeechArguments", "", "LibriSpeech, downloaded or at hand"),
    "huggingface": SourceKind(
        "huggingface", "HuggingFaceArguments", "dataset", "a dataset of the Hub or on disk, or a ready corpus"
    ),
    "folder": SourceKind("folder", "FolderArguments", "folder", "a folder of audio with transcripts"),
    "lhotse": SourceKind("lhotse_cuts", "LhotseArguments", "cuts", "cuts of Lhotse, and every corpus that it reads"),
    "synthesize": SourceKind("synthesize", "SynthesizeArguments", "texts", "text, read by synthetic voices"),
}


def run(kind: str, arguments: Sequence[str]) -> Prepared:
    """Prepare a corpus of one of the `SOURCES` as the command line says; raises as [`prepare`], and ValueError."""
    source_kind = SOURCES[kind]
    module = importlib.import_module(f".{source_kind.module}", __package__)
    if source_kind.positional and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{source_kind.positional}", *arguments]
    groups = [getattr(module, source_kind.arguments), PrepareArguments, WordErrorArguments, SelfInstructArguments]
    usage = f"{source_kind.positional.upper()} [options]".strip()
    parser = parser_of(groups, f"prepare {kind}", usage, module.__doc__)
    parsed = parser.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    options, shared, word_error, responses, unknown = parsed
    if unknown:
        raise ValueError(f"there is no option {' '.join(unknown)}; `audiollm prepare {kind} --help` lists them all.")
    output = Path(shared.output or f"data/{kind}")
    source: ClipSource = module.open_source(options)
    if source.summary:
        print(source.summary)
    _check_output(source, output)
    if word_error.max_wer is not None and source.wer_doubt:
        raise CorpusError(source.wer_doubt)
    kept = WordErrorFilter(word_error, output, source.wer_unit)
    source = self_instructed(source, responses, output / STATE_FOLDER / "responses")
    return prepare(source, output, choose_tasks(source.tasks, shared.tasks), shared, kept.settle, kept.is_kept)


def _check_output(source: ClipSource, output: Path) -> None:
    """Refuse to write where the next run would read what this one wrote as a part of the corpus."""
    if source.folder is None:
        return
    output, folder = output.resolve(), Path(source.folder).resolve()
    if output == folder or (source.reads_all_below and is_inside(output, folder)):
        raise CorpusError(f"--output {output} is in the folder that is read, {folder}; give a folder outside of it.")


def choose_tasks(own: Sequence[Task | str], names: Sequence[str] | None) -> list[Task]:
    """Return the tasks of these names, in the corpus' own wordings where it has some; without names all of its own."""
    known = known_tasks()
    tasks = {task.name: task for task in (one if isinstance(one, Task) else known[one] for one in own)}
    return [tasks.get(name) or known[name] for name in dict.fromkeys(tasks if names is None else names)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    kind = arguments[0] if arguments else "--help"
    if kind in ("-h", "--help"):
        print("usage: audiollm prepare CORPUS [options]\n\ncorpora:")
        for name, source_kind in SOURCES.items():
            print(f"  {name:12} {source_kind.about}")
        print("\n`audiollm prepare CORPUS --help` shows its options, `audiollm prepare corpora` the ready corpora.")
        sys.exit(0)
    if kind == "corpora":
        print(describe_catalogue())
        return
    if kind not in SOURCES:
        sys.exit(f"audiollm prepare: there is no {kind!r}; expected one of {', '.join(SOURCES)}.")
    try:
        with ended_by_signals():
            print(run(kind, arguments[1:]).describe())
    except ExamplesError as error:
        sys.exit(f"audiollm prepare {kind}: {error}\n{ADVICE}")
    except (CorpusError, DownloadError, OSError, ValueError) as error:
        sys.exit(f"audiollm prepare {kind}: {error}")
    except KeyboardInterrupt as interrupt:
        how = "Ended" if isinstance(interrupt, TerminatedError) else "Interrupted"
        # A progress bar that was interrupted while it was made raises in its __del__, which Python would print below.
        sys.unraisablehook = lambda _: None
        print(f"\n{how}. What is done is kept: the same command goes on.", file=sys.stderr)
        sys.exit(exit_status(interrupt))
