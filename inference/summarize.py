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

    @property
    def endings(self) -> Sequence[str]:
        """Endings of the files that are written for each recording."""
        return ("txt", "json")


def answer(
    in_parts: InParts, recording: str, made_with: dict[str, Any], partial_path: Path | None, progress: bool
) -> WholeAnswer:
    """
    Return the answer about a recording, and keep those about its parts on disk meanwhile.

    Args:
        made_with: everything that decides the answers, beside the recording.

    Raises:
        AudioError: the recording cannot be used.
        OSError: it is not there, or `partial_path` cannot be written.
    """
    with local_file(recording) as path:
        partial = None
        if partial_path is not None:
            partial = PartialTranscript(partial_path, {"audio_sha256": sha256_of(path), **made_with})
        seconds = header_seconds(path)
        total = None if seconds is None else round(seconds, 1)
        blocks = read_blocks(path, in_parts.processor.sampling_rate, recording)
        with tqdm(total=total, desc=recording, unit="s", disable=not progress, bar_format=BAR) as bar:
            return in_parts.answer(blocks, partial, bar.update)


def run(sources: Sequence[Source], options: SummarizeArguments, several: bool) -> list[Failure]:
    """
    Answer about recordings one after the other, in files or on standard output; return those that could not be used.

    Raises:
        CheckpointError: the model is not there, or cannot be used.
        ValueError: an option contradicts the model.
        OSError: answers cannot be written.
    """
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
        partial_path = None if source.stem is None else with_ending(source.stem, PARTIAL_ENDING)
        try:
            whole = answer(in_parts, source.location, made_with, partial_path, options.progress)
        except (AnswerMemoryError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM_ERRORS:
                raise
            failures.append(Failure(source.location, str(error)))
            continue
        _warn(source.location, whole, processor.sampling_rate)
        if source.stem is None:
            print(f"{source.location}: {whole.text}" if several else whole.text, flush=True)
        else:
            made = {**made_with, "join_prompt": options.join_prompt, "model": checkpoint}
            _write(source.stem, source.location, whole, processor.sampling_rate, made)
    return failures


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


def _warn(audio: str, whole: WholeAnswer, rate: int) -> None:
    for reason, chosen in (
        ("stopped at the bound on new tokens", [one for answers in whole.rounds for one in answers if one.is_cut_off]),
        ("silent, and not asked about", [one for one in whole.rounds[0] if one.reason]),
    ):
        if chosen:
            times = ", ".join(f"{one.start / rate:.1f}-{one.end / rate:.1f} s" for one in chosen)
            tell(f"{audio}: {reason}: {times}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `audiollm summarize`; exits with 1 if recordings failed, and with 2 if nothing was done."""
    run_over_recordings("summarize", SummarizeArguments, __doc__, run, "answered", argv)


if __name__ == "__main__":
    main()
