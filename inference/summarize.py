"""
`audiollm summarize`: ask about recordings that are longer than the model's context, part by part.

    audiollm summarize lecture.mp3
    audiollm summarize interviews/ --prompt "Which places are named?" --output_dir answers

The question is asked about each part. The answers are then joined, as text, until there is one. After an interruption the
same command with --output_dir goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from audiollm.checkpoints import fingerprint
from audiollm.command_line.files import NO_ROOM_ERRORS, sha256_of, write_json, write_whole
from audiollm.command_line.interruption import interruptible
from audiollm.command_line.option_parser import option
from tqdm.auto import tqdm

from .in_parts import JOIN_PROMPT, SUMMARY_PROMPT, InParts, WholeAnswer
from .options import AnswerArguments, LoadingArguments, OutputArguments, Source, run_over_recordings, tell
from .recordings import header_seconds, local_file, read_blocks
from .session import AnswerMemoryError
from .transcribing import Failure, PartialTranscript
from .transcripts import with_ending

PARTIAL_ENDING = "parts.partial.jsonl"
#: Answers about parts are read again, several at once; short ones need fewer rounds.
DEFAULT_MAX_NEW_TOKENS = 256
#: Raise it when a change here changes answers: answers about parts that were kept are then not used.
IN_PARTS_REVISION = 1
BAR = "{desc}: {n:.0f}/{total_fmt} s of audio [{elapsed}]"


@dataclass
class SummarizeArguments(OutputArguments, AnswerArguments):
    """Options of `audiollm summarize`."""

    GROUPS: ClassVar = {
        "question": ("prompt", "join_prompt", "part_seconds"),
        "output": ("output_dir", "overwrite", "progress"),
        **AnswerArguments.ANSWER_GROUP,
        **LoadingArguments.MODEL_GROUP,
    }
    PARTIAL_ENDING = PARTIAL_ENDING

    max_new_tokens: int = option(DEFAULT_MAX_NEW_TOKENS, "Bound on each answer, in tokens; says so when it is met.")
    prompt: str = option(SUMMARY_PROMPT, "The question about each part; <audio> stands for it.")
    join_prompt: str = option(
        JOIN_PROMPT, "The question about the answers, with {answers} and, if wanted, {question} in it."
    )
    part_seconds: float | None = option(
        None,
        "Longest part; by default the longest that the model's context can hold. A model hears parts best that are "
        "as long as its training data.",
    )

    def __post_init__(self):
        super().__post_init__()
        self.endings = ("txt", "json")


def run(sources: Sequence[Source], options: SummarizeArguments, several: bool) -> list[Failure]:
    """Answer about recordings, in files or on standard output, and return those that could not be used."""
    checkpoint, processor = options.find()
    model = options.load_model(checkpoint)
    asked = (options.prompt, options.join_prompt, options.part_seconds)
    in_parts = InParts(model, processor, *asked, system=options.system, **options.generate_options())
    made_with = {
        "weights": fingerprint(model.state_dict()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "revision": IN_PARTS_REVISION,
        "prompt": options.prompt,
        "system": options.system,
        "part_seconds": in_parts.part_seconds,
        "temperature": [options.temperature, options.top_p, options.seed],
        "max_new_tokens": options.max_new_tokens,
    }
    failures = []
    for source in interruptible(sources):
        try:
            whole = _answer(in_parts, source, made_with, options.progress)
        except (AnswerMemoryError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM_ERRORS:
                raise
            failures.append(Failure(source.location, str(error)))
            continue
        rate = processor.sampling_rate
        every = [one for answers in whole.rounds for one in answers]
        for reason, chosen in (
            ("stopped at the bound on new tokens", [one for one in every if one.is_cut_off]),
            ("silent, and not asked about", [one for one in every if one.reason]),
        ):
            if chosen:
                times = ", ".join(f"{one.start / rate:.1f}-{one.end / rate:.1f} s" for one in chosen)
                tell(f"{source.location}: {reason}: {times}")
        if source.stem is None:
            print(f"{source.location}: {whole.text}" if several else whole.text, flush=True)
        else:
            made = {**made_with, "join_prompt": options.join_prompt, "model": checkpoint}
            _write(source.stem, source.location, whole, rate, made)
    return failures


def _answer(in_parts: InParts, source: Source, made_with: dict[str, Any], progress: bool) -> WholeAnswer:
    """Return the answer about a recording, and keep those about its parts on disk meanwhile."""
    with local_file(source.location) as path:
        partial = None
        if source.stem is not None:
            journal = with_ending(source.stem, PARTIAL_ENDING)
            partial = PartialTranscript(journal, {"audio_sha256": sha256_of(path), **made_with})
        seconds = header_seconds(path)
        total = None if seconds is None else round(seconds, 1)
        blocks = read_blocks(path, in_parts.processor.sampling_rate, source.location)
        with tqdm(total=total, desc=source.location, unit="s", disable=not progress, bar_format=BAR) as bar:
            return in_parts.answer(blocks, partial, bar.update)


def _write(stem: Path, audio: str, whole: WholeAnswer, rate: int, made_with: dict[str, Any]) -> None:
    rounds = [
        [
            {"start_s": one.start / rate, "end_s": one.end / rate, "text": one.text}
            | {"is_cut_off": one.is_cut_off, "reason": one.reason}
            for one in answers
        ]
        for answers in whole.rounds
    ]
    content = {"audio": audio, "answer": whole.text, "rounds": rounds, "made_with": made_with}
    write_json(with_ending(stem, "json"), content)
    write_whole(with_ending(stem, "txt"), whole.text + "\n")
    with_ending(stem, PARTIAL_ENDING).unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm summarize`; exits with 1 if recordings failed, and with 2 if nothing was done."""
    run_over_recordings("summarize", SummarizeArguments, __doc__, run, "answered", argv)


if __name__ == "__main__":
    main()
