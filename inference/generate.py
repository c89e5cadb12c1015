"""
`audiollm generate`: ask a question about one or several recordings.

    audiollm generate --audio a.wav --prompt "What is said?"
    audiollm generate --model you/your-model --audio a.wav b.wav --prompt "Is <audio> the same speaker as <audio>?"
    audiollm generate --audio question.wav --prompt ""

On a terminal the answer appears as it is written. With an empty prompt, the recording is the question.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from audiollm.command_line.option_parser import option

from .answering import TRANSCRIBE_PROMPT, ask
from .options import AnswerArguments, LoadingArguments, ending, parse, tell
from .session import Recording, Session
from .streaming import AnswerStream


@dataclass
class GenerateArguments(AnswerArguments):
    """Options of `audiollm generate`."""

    GROUPS: ClassVar = {
        "question": ("audio", "prompt", "no_stream"),
        **AnswerArguments.ANSWER_GROUP,
        **LoadingArguments.MODEL_GROUP,
    }

    audio: list[str] = option([], "Audio files or URLs, one per <audio> in the prompt.")
    prompt: str | None = option(
        None,
        'The question, by default for a transcript; "" has the speech itself answered. Recordings come first '
        "where there is no <audio> in it.",
    )
    no_stream: bool = option(False, "Show the answer when it is complete, as when the output is no terminal.")

    def __post_init__(self):
        super().__post_init__()
        if self.prompt is None and len(self.audio) != 1:
            raise ValueError("give --prompt, with one <audio> per file, unless there is exactly one --audio file")
        if not self.prompt and not self.audio:
            raise ValueError("--prompt is empty, and there is no --audio; there is nothing to answer")


def show(stream: AnswerStream, piecewise: bool) -> None:
    """Print an answer and a line's end, as it is written or as a whole."""
    if not piecewise:
        print(stream.read(), flush=True)
        return
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm generate` and `python -m audiollm.inference.generate`."""
    options = parse(GenerateArguments, "generate", __doc__, arguments)
    text = TRANSCRIBE_PROMPT if options.prompt is None else options.prompt or None
    with ending("generate"):
        checkpoint, processor = options.find()
        # Before the model, which takes longer to load
        recordings = [Recording.load(path, processor) for path in options.audio]
        ask(text, *recordings)
        session = Session(options.load_model(checkpoint), processor, options.system, **options.generate_options())
        with session.stream(text, *recordings) as stream:
            show(stream, sys.stdout.isatty() and not options.no_stream)
    if session.report is not None and session.report.finish_reason == "length":
        tell(f"The answer was cut at {session.report.new_tokens} tokens; --max_new_tokens sets another bound.")


if __name__ == "__main__":
    main()
