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

from .answering import TRANSCRIBE_PROMPT
from .loading import CheckpointError, find_checkpoint, load_processor
from .options import INTERRUPTED_EXIT, AnswerArguments, LoadingArguments, parse, tell
from .session import AnswerMemoryError, ContextLengthError, Recording, Session, user_turn
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


def show(stream: AnswerStream, piecewise: bool) -> None:
    """Print an answer and a line's end, as it is written or as a whole."""
    if piecewise:
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
    else:
        print(stream.read(), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `audiollm generate` and `python -m audiollm.inference.generate`."""
    parser, options = parse(GenerateArguments, "generate", __doc__ or "", arguments)
    if options.prompt is None and len(options.audio) != 1:
        parser.error("give --prompt, with one <audio> per file, unless there is exactly one --audio file")
    if not options.prompt and not options.audio:
        parser.error("--prompt is empty, and there is no --audio; there is nothing to answer")
    text = TRANSCRIBE_PROMPT if options.prompt is None else options.prompt or None
    try:
        checkpoint = find_checkpoint(options.model)
        processor = load_processor(checkpoint, options.revision)
        # Before the model, which takes longer to load
        recordings = [Recording.load(path, processor) for path in options.audio]
        user_turn(text, *recordings)
        model = options.load_model(checkpoint)
        session = Session(model, processor, options.system, **options.generate_options())
        stream = session.stream(text, *recordings)
    except (CheckpointError, ContextLengthError) as error:
        sys.exit(f"audiollm generate: {error}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        with stream:
            show(stream, sys.stdout.isatty() and not options.no_stream)
    except KeyboardInterrupt:
        print(flush=True)
        sys.exit(INTERRUPTED_EXIT)
    except AnswerMemoryError as error:
        sys.exit(f"audiollm generate: {error}")
    if session.report is not None and session.report.finish_reason == "length":
        tell(f"The answer was cut at {session.report.new_tokens} tokens; --max_new_tokens sets another bound.")


if __name__ == "__main__":
    main()
