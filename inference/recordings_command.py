"""Commands that take many recordings: their line of arguments, and how they end."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from audiollm.disks import GOES_ON, naming_the_disk
from audiollm.interruption import ended_by_signals
from audiollm.option_parser import parser_of

from .loading import CheckpointError
from .memory import is_out_of_memory
from .options import INTERRUPTED_EXIT, tell
from .transcribing import Failure

FAILURES_EXIT, NOTHING_DONE_EXIT = 1, 2
KEPT = " What is done is kept: the same command goes on."
MEMORY_ADVICE = "Give a smaller --batch_size, shorter windows or parts, --dtype bfloat16, or --load_in_8bit."


def run_over_recordings(
    command: str,
    arguments_class: type[Any],
    description: str | None,
    run: Callable[[list[str], Any], list[Failure]],
    undone: str,
    argv: Sequence[str] | None = None,
) -> None:
    """
    Reads a command line of files and options, runs it, and says what failed.

    Ends with 1 where some recordings failed or memory ran out, with 2 where nothing was done, and with 130 when
    interrupted.

    Args:
        command: name after `audiollm`.
        arguments_class: dataclass of its options; has `output_dir`, without which nothing is kept.
        description: of the command, for `--help`.
        run: from the files, folders, patterns and URLs that were given, and the options, to what failed.
        undone: what could not be done with a recording, as a past participle.
        argv: the command line without the command; the process's own by default.
    """
    parser = parser_of(arguments_class, command, "AUDIO... [options]", description)
    parser.add_argument("audio", nargs="+", help="files, folders, patterns or URLs")
    options = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    given = options.pop("audio")
    kept = KEPT if options["output_dir"] else ""
    try:
        arguments = arguments_class(**options)
        disk = naming_the_disk(options["output_dir"], GOES_ON) if options["output_dir"] else nullcontext()
        with ended_by_signals((signal.SIGINT,)), disk:
            failures = run(given, arguments)
    except (CheckpointError, OSError, ValueError) as error:
        tell(f"audiollm {command}: {error}")
        sys.exit(NOTHING_DONE_EXIT)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tell(f"audiollm {command}: memory ran out. {MEMORY_ADVICE}{kept}")
        sys.exit(FAILURES_EXIT)
    except KeyboardInterrupt:
        tell(f"\nInterrupted.{kept}")
        sys.exit(INTERRUPTED_EXIT)
    if failures:
        tell(f"audiollm {command}: {len(failures)} could not be {undone}:")
        for failure in failures:
            tell(f"  {failure.audio}: {failure.reason}")
        sys.exit(FAILURES_EXIT)


__all__ = ["run_over_recordings"]
