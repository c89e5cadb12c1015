"""Stage *align* as a command: rows of one recording, whose response is what is said in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from audiollm.corpora.examples import Example
from audiollm.processing.normalisers import NORMALISERS

from .errors import TrainingError


@dataclass
class AlignArguments:
    """What the projector learns to spell."""

    _argument_group_name = "stage align"

    transcript_normaliser: str = field(
        default="basic",
        metadata={
            "help": "What makes transcripts of responses: basic (any language with spaces: lower case, no punctuation), "
            "english (Whisper's normaliser, which also writes numbers as digits) or none."
        },
    )

    def __post_init__(self):
        if self.transcript_normaliser not in NORMALISERS:
            raise ValueError(
                f"--transcript_normaliser is {self.transcript_normaliser!r}; expected one of {', '.join(NORMALISERS)}."
            )


def transcribed_clips(examples: Sequence[Example], normaliser: str) -> tuple[list[str], list[str]]:
    """
    Recordings and what is said in them; rows that cannot serve are counted aloud.

    Args:
        examples: their responses are transcripts.
        normaliser: a name of `NORMALISERS`.

    Returns:
        Paths and normalised transcripts.

    Raises:
        TrainingError: no row is left.
    """
    left_out: Counter[str] = Counter()
    paths, transcripts = [], []
    for example in examples:
        transcript = NORMALISERS[normaliser](example.response)
        if len(example.audio_paths) != 1:
            left_out["without audio" if not example.audio_paths else "with several recordings"] += 1
        elif not any(map(str.isalnum, transcript)):
            left_out["whose response has no words"] += 1
        else:
            paths.append(example.audio_paths[0])
            transcripts.append(transcript)
    if left_out:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        print(f"The warm start leaves out {left_out.total()} of {len(examples)} rows: {counts}.")
    if not paths:
        raise TrainingError(
            "No row can be aligned: the stage align needs rows of one recording whose response is what is said in it."
        )
    return paths, transcripts
