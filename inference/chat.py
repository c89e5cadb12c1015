"""
`audiollm chat`: hold a conversation in the terminal, in text and recordings.

    audiollm chat --model you/your-model
    printf '/audio a.wav\\nWhat is said?\\n' | audiollm chat

A turn of recordings alone is speech to be answered; with text as well it is a question about them. Answers go to standard
output, everything else to standard error. If the input is no terminal, the exit status is 1 after an error.
"""

import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .generate import show
from .options import AnswerArguments, LoadingArguments, ending, parse, tell
from .recordings import is_remote
from .session import Recording, Session

PROMPT = "> "
GREETING = "Write, or attach recordings with /audio. Ctrl-C stops an answer. /help lists the commands."
#: Commands with their arguments and meanings.
COMMANDS = {
    "/audio": ("FILE...", "attach recordings to your next message; an empty message sends them as what you say"),
    "/drop": ("", "let go of what is attached"),
    "/clear": ("", "start a new conversation"),
    "/help": ("", "this list"),
    "/quit": ("", "leave; so does Ctrl-D"),
}


@dataclass
class ChatArguments(AnswerArguments):
    """Options of `audiollm chat`."""

    GROUPS: ClassVar = {**AnswerArguments.ANSWER_GROUP, **LoadingArguments.MODEL_GROUP}


class Chat:
    """A conversation by lines of input, each from `read_line`, which raises EOFError after the last."""

    def __init__(self, session: Session, read_line: Callable[[], str], piecewise: bool = True):
        self.session = session
        self.read_line = read_line
        self.piecewise = piecewise
        self.attached: list[Recording] = []
        self.failures = 0

    def run(self) -> None:
        """Read lines until the end of the input, or /quit."""
        while True:
            try:
                line = self.read_line()
            except EOFError:
                break
            except KeyboardInterrupt:
                tell("\n/quit or Ctrl-D leaves.")
                continue
            try:
                if not self.take(line):
                    break
            except KeyboardInterrupt:
                tell("\n[stopped]")
            except (ValueError, OSError, RuntimeError) as error:
                self.failures += 1
                tell(f"! {error}")
        if self.attached:
            tell(f"What was attached has not been sent: {self._names()}.")

    def take(self, line: str) -> bool:
        """Carry out one line, and return True to go on."""
        text = line.strip()
        if not text.startswith("/"):
            if text or self.attached:
                self._send(text)
            return True
        name, _, rest = text.partition(" ")
        if name not in COMMANDS:
            raise ValueError(f"There is no {name}; /help lists the commands.")
        takes, _ = COMMANDS[name]
        if rest.strip() and not takes:
            raise ValueError(f"{name} takes nothing after it, got {rest.strip()!r}.")
        if name == "/quit":
            return False
        getattr(self, f"_{name[1:]}")(*([rest.strip()] if takes else []))
        return True

    def _send(self, text: str) -> None:
        before = len(self.session.messages)
        try:
            with self.session.stream(text or None, *self.attached) as stream:
                show(stream, self.piecewise)
        finally:
            if len(self.session.messages) > before:  # else the turn was taken back
                self.attached = []
        report = self.session.report
        if report is not None and report.finish_reason == "length":
            tell(f"[cut at {report.new_tokens} tokens; --max_new_tokens sets another bound]")

    def _audio(self, rest: str) -> None:
        try:
            paths = shlex.split(rest)
        except ValueError as error:
            raise ValueError(f"{rest!r} cannot be split into names: {error}. Quote names with blanks.") from error
        if not paths:
            raise ValueError("/audio needs files: /audio a.wav b.wav. Quote names with blanks.")
        sources = [path if is_remote(path) else os.path.expanduser(path) for path in paths]
        self.attached += [Recording.load(source, self.session.processor) for source in sources]
        tell(f"Attached: {self._names()}. Ask about it, or send an empty line for it to be answered.")

    def _drop(self) -> None:
        self.attached = []

    def _clear(self) -> None:
        self.session.reset()
        self.attached = []

    def _help(self) -> None:
        for name, (takes, what) in COMMANDS.items():
            tell(f"{name} {takes}".ljust(20) + what)

    def _names(self) -> str:
        return ", ".join(str(one.source) for one in self.attached)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm chat` and `python -m audiollm.inference.chat`."""
    options = parse(ChatArguments, "chat", __doc__, arguments)
    with ending("chat"):
        checkpoint, processor = options.find()
        model = options.load_model(checkpoint)
    interactive = sys.stdin.isatty()
    session = Session(model, processor, options.system, **options.generate_options())
    if interactive:
        with contextlib.suppress(ImportError):  # not on every system
            importlib.import_module("readline")  # gives `input` editing and history
        tell(GREETING)
    read_line = (lambda: input(PROMPT)) if interactive else input
    chat = Chat(session, read_line, piecewise=sys.stdout.isatty())
    chat.run()
    if chat.failures and not interactive:
        sys.exit(1)


if __name__ == "__main__":
    main()
