"""
Evaluate a model: word error on your own recordings, or benchmarks, beside controls and baselines, with 95 % intervals.

    audiollm evaluate --model runs/mine --data_path test.json --audio_dir recordings
    audiollm evaluate --model runs/mine --data_path hindi.json --language hi --output_dir runs/mine/hindi
    audiollm evaluate --model runs/mine --tasks asr fleurs:de --output_dir runs/mine/evaluation
    audiollm evaluate --model runs/mine --tasks librispeech_clean --data LibriSpeech/test-clean --output_dir runs/mine/clean

What to do with the results (each has a --help of its own):

    audiollm evaluate score runs/mine/evaluation      score again, without the model
    audiollm evaluate report runs/mine/evaluation     write the page for people again
    audiollm evaluate compare runs/mine/evaluation runs/before/evaluation

Answers are on disk before they are scored, and the same command goes on where it was interrupted. On several GPUs:
`accelerate launch --num_processes 4 -m audiollm.evaluation.evaluate` with the same options.
"""

import importlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from audiollm.command_line.files import GOES_ON, naming_the_disk
from audiollm.command_line.interruption import ended_by_signals, exit_status
from audiollm.command_line.option_parser import parser_of

from .arguments import EvaluateArguments

#: First words besides `run`, which may be left out.
SUBCOMMANDS = ("score", "report", "compare")
#: Limit of the wait for a process that has more to do.
PATIENCE = timedelta(days=7)


def evaluate(options: EvaluateArguments) -> None:
    """Answer, judge and score as the options ask, and print the scores."""
    from .judge import judge_run
    from .report import told_of_report
    from .run import answer_all, locked, prepare
    from .score import score_run, score_table

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
            print(score_table(score_run(run.folder), names))
            if options.output_dir is not None:
                print(f"Outputs and scores are in {options.output_dir}.")
                if not options.no_report:
                    print(told_of_report(run.folder))
    if unjudged is not None:
        raise unjudged


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `audiollm evaluate`, or what its first word names."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in SUBCOMMANDS:
        importlib.import_module(f".{given[0]}", __package__).main(given[1:])
        return
    usage = "[run] --model MODEL (--data_path DATA | --tasks TASK... --output_dir FOLDER) [options]"
    parser = parser_of(EvaluateArguments, "evaluate", usage, __doc__)
    try:
        own = given[1:] if given[:1] == ["run"] else given
        (options,) = parser.parse_args_into_dataclasses(own, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    if options.list_tasks:
        from .tasks import task_table

        print(task_table())
        return
    try:
        disk = naming_the_disk(options.output_dir, GOES_ON) if options.output_dir else nullcontext()
        with ended_by_signals((signal.SIGINT,)), disk:
            evaluate(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"audiollm evaluate: {error}")
    except KeyboardInterrupt as interrupt:
        again = " The same command goes on." if options.output_dir else ""
        print(f"\nInterrupted.{again}", file=sys.stderr)
        sys.exit(exit_status(interrupt))
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
