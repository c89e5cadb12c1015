"""
`audiollm evaluate`: what a model answers to the questions of benchmarks, or to your own, beside what else could answer them.

    audiollm evaluate --model runs/mine --tasks asr translation --output_dir runs/mine/evaluation
    audiollm evaluate --model runs/mine --tasks librispeech_clean --data LibriSpeech/test-clean --output_dir runs/mine/clean
    audiollm evaluate --model runs/mine --data_path test.json --audio_dir recordings --output report.json

Answers are on disk before they are scored; given again, the same command goes on where it was interrupted. On several GPUs
it is `accelerate launch --num_processes 4 -m audiollm.evaluation.evaluate` with the same options.
"""

import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from audiollm.disks import GOES_ON, naming_the_disk
from audiollm.interruption import ended_by_signals
from audiollm.option_parser import parser_of

from .arguments import EvaluateArguments
from .judging import judge_run
from .reporting import told_of_report
from .run import answer_all, locked, prepare
from .scoring import score_run
from .shown_scores import score_lines, write_own_report
from .tasks import task_table

#: How long processes wait for one that has more to do.
PATIENCE = timedelta(days=7)
#: Exit status of a command that Ctrl-C has ended, as shells have it.
INTERRUPTED_EXIT = 130


def parse_arguments(arguments: Sequence[str] | None = None) -> EvaluateArguments:
    """The options; ends with the usual message where they are wrong."""
    usage = "--model MODEL (--tasks TASK... --output_dir FOLDER | --data_path DATA) [options]"
    parser = parser_of(EvaluateArguments, "evaluate", usage, __doc__)
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return options


def evaluate(options: EvaluateArguments) -> None:
    """
    Answers, judges and scores what the options ask for, and prints the scores.

    Raises:
        ValueError, OSError: something cannot be done as asked.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    with tempfile.TemporaryDirectory(prefix="audiollm-evaluation-") as temporary:
        if options.output_dir is None and state.num_processes > 1:
            raise ValueError("several processes need an --output_dir that they share")
        run = prepare(options, options.output_dir or Path(temporary), state)
        unjudged: Exception | None = None
        with locked(run):
            answer_all(run)
            if not state.is_main_process:
                return
            names = [job.task.name for job in run.jobs]
            try:
                judge_run(run.folder, names, options)
            except (ValueError, ImportError) as error:  # the answers are worth their other scores
                unjudged = error
            for line in score_lines(score_run(run.folder), names):
                print(line)
            if options.output is not None:
                write_own_report(options.output, run.folder, names[0])
            if options.output_dir is not None:
                print(f"Outputs and scores are in {options.output_dir}.")
                if not options.no_report:
                    print(told_of_report(run.folder))
    if unjudged is not None:
        raise unjudged


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm evaluate` and `python -m audiollm.evaluation.evaluate`."""
    options = parse_arguments(arguments)
    if options.list_tasks:
        print(task_table())
        return
    try:
        disk = naming_the_disk(options.output_dir, GOES_ON) if options.output_dir else nullcontext()
        with ended_by_signals((signal.SIGINT,)), disk:
            evaluate(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"audiollm evaluate: {error}")
    except KeyboardInterrupt:
        again = " Given again, the same command goes on." if options.output_dir else ""
        print(f"\nInterrupted.{again}", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
