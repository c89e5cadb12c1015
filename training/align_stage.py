"""Data of stage *align*: rows of one recording, whose response is its transcript."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from audiollm.corpora.examples import Example
from audiollm.corpora.normalisers import NORMALISERS
from audiollm.corpora.rows import ASSISTANT
from audiollm.corpora.sources import Examples, settle_problems
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from tqdm.auto import tqdm

from .arguments import TrainingError
from .encoding import EXAMPLE_ERRORS, ExampleEncoder
from .waveform_augment import recordings_below


@dataclass
class AlignArguments:
    """Options of stage align."""

    _argument_group_name = "stage align"

    transcript_normaliser: str = field(
        default="basic",
        metadata={
            "help": "What makes transcripts of responses: basic (any language with spaces: lower case, no punctuation), "
            "english (Whisper's normaliser, which also writes numbers as digits) or none."
        },
    )
    no_speech_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of recordings in which nobody speaks, such as noise, music and silence, of up to 30 s each: the "
            "projector learns to hear nothing in them."
        },
    )

    def __post_init__(self):
        if self.transcript_normaliser not in NORMALISERS:
            raise ValueError(
                f"--transcript_normaliser is {self.transcript_normaliser!r}; expected one of {', '.join(NORMALISERS)}."
            )
        self.without_speech()

    def without_speech(self) -> list[Example]:
        """
        Return an example for each recording of `no_speech_dir`, without a response.

        Raises:
            FileNotFoundError: there is no such folder, or no recording in it.
        """
        if self.no_speech_dir is None:
            return []
        paths = recordings_below(self.no_speech_dir, "--no_speech_dir")
        return [Example(AUDIO_PLACEHOLDER, (path,), "") for path in paths]


class TranscribedClips(Sequence[Any]):
    """
    The rows that the warm start can learn from, each read anew when it is asked for.

    Args:
        sources: opened data, whose responses are transcripts.
        normaliser: a name of `NORMALISERS`.

    Attributes:
        transcripts: normalised, one for each row.

    Raises:
        TrainingError: no row is left. Those that cannot serve are counted aloud.
    """

    def __init__(self, sources: Sequence[Examples], normaliser: str):
        self.transcripts: list[str] = []
        self._places: list[tuple[Examples, int]] = []
        left_out: Counter[str] = Counter()
        for source in sources:
            for index in range(len(source)):
                example = source[index]
                answers = [message["content"] for message in example.messages if message["role"] == ASSISTANT]
                transcript = NORMALISERS[normaliser](answers[-1])
                if len(example.recordings) != 1:
                    left_out["without audio" if not example.recordings else "with several recordings"] += 1
                elif len(answers) != 1:
                    left_out["of several turns"] += 1
                elif not any(map(str.isalnum, transcript)):
                    left_out["whose response has no words"] += 1
                else:
                    self._places.append((source, index))
                    self.transcripts.append(transcript)
        if left_out:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
            total = left_out.total() + len(self)
            print(f"The warm start leaves out {left_out.total()} of {total} rows: {counts}.")
        if not self._places:
            raise TrainingError(
                "No row can be aligned: the stage align needs rows of one recording whose response is what is said in "
                "it."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index):
        source, place = self._places[index]
        return source[place]

    def leave_out_undecodable(self, encoder: ExampleEncoder, skip_bad: bool, progress: bool = True) -> None:
        """
        Refuses recordings that cannot be used, all at once; with `skip_bad`, lists them and other bad rows, and goes on.

        Raises:
            ExamplesError: there are some, and they are not to be left out.
            TrainingError: nothing is left.
        """
        problems = {source.source.name: list(source.problems) for source, _ in self._places}
        usable = []
        for index in tqdm(range(len(self)), desc="Checking examples", unit="example", disable=not progress):
            clip = self[index]
            try:
                encoder.measure(clip.recordings[0])
            except EXAMPLE_ERRORS as error:
                problems[self._places[index][0].source.name].append((clip.where, str(error)))
            else:
                usable.append(index)
        settle_problems(list(problems.items()), skip_bad)
        self._places = [self._places[index] for index in usable]
        self.transcripts = [self.transcripts[index] for index in usable]
        if not usable:
            raise TrainingError("No row can be aligned: no recording can be decoded.")
