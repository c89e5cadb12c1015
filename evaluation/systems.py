"""
What answers a task's questions: the model, and what its answers are to be held against.

| system | what it is |
|---|---|
| `model` | the AudioLLM |
| `wrong_audio` | the same, given others' recordings: what it answers without listening |
| `whisper` | the same Whisper's own decoder: its transcript, or its translation into English |
| `cascade` | that transcript in the place of the recording, answered by the base language model |
| `deaf` | the base language model, given the question without the recording |
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from audiollm.answering import ask
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.processing.conversations import AUDIO_PLACEHOLDER

from .generating import Answer, Generator, is_english
from .listening import adapter_windows
from .plan import Asking, Question, own_recordings

if TYPE_CHECKING:
    from .tasks import Item, Task

MODEL, WRONG_AUDIO, WHISPER, CASCADE, DEAF = "model", "wrong_audio", "whisper", "cascade", "deaf"
#: Every system, and what people call it.
SYSTEM_TITLES = {
    MODEL: "model",
    WRONG_AUDIO: "model, wrong recordings",
    WHISPER: "Whisper's decoder",
    CASCADE: "Whisper's decoder, then the base model on its text",
    DEAF: "base model without the recordings",
}
#: What is held beside the model, by a task's kind.
DEFAULT_SYSTEMS = {
    "asr": (MODEL, WRONG_AUDIO, WHISPER),
    "translation": (MODEL, WRONG_AUDIO, WHISPER, CASCADE, DEAF),
    "choice": (MODEL, WRONG_AUDIO, CASCADE, DEAF),
    "chat": (MODEL, WRONG_AUDIO, CASCADE, DEAF),
    "instruction": (MODEL, WRONG_AUDIO, CASCADE, DEAF),
    "summary": (MODEL, WRONG_AUDIO, CASCADE, DEAF),
    "description": (MODEL, WRONG_AUDIO, DEAF),
    "no_speech": (MODEL, WHISPER),
    "text_retention": (MODEL, DEAF),
}
#: Systems that there is nothing to ask of where there are no recordings, or only such as are all alike.
NEED_RECORDINGS = (WRONG_AUDIO, WHISPER, CASCADE)
#: Kinds whose answers Whisper's decoder itself can give.
HEARD_KINDS = ("asr", "no_speech", "translation")
#: The one language that Whisper translates into.
WHISPER_TARGET = "en"


class System(ABC):
    """Something that answers."""

    def questions(self, items: Sequence["Item"]) -> list[Question]:
        """What it is asked about items that are at hand together: each with its own recordings, unless it says otherwise."""
        return own_recordings(items)

    @abstractmethod
    def answer(
        self, questions: Sequence[Question], waveforms: Sequence[Sequence[np.ndarray]], bounds: Sequence[int]
    ) -> list[Answer]:
        """One answer each; `waveforms` are the decoded recordings of each question, `bounds` are in tokens."""


@dataclass
class ModelSystem(System):
    """The AudioLLM, on items' own recordings or, as its control, on others'."""

    generator: Generator
    asking: Asking = own_recordings

    def questions(self, items) -> list[Question]:
        """See [`System`]."""
        return self.asking(items)

    def answer(self, questions, waveforms, bounds) -> list[Answer]:
        """See [`System`]."""
        asked = [ask(question.item.prompt, *heard) for question, heard in zip(questions, waveforms)]
        return self.generator.answer(asked, waveforms, bounds)


@dataclass
class WhisperSystem(System):
    """
    Whisper's own decoder; long recordings are cut where the AudioLLM's windows are, so that both hear the same.

    Args:
        known: by an item's id, what was heard in it and the seconds that took; grows with what is answered.
    """

    decoder: WhisperDecoder
    processor: Any
    batch_size: int
    known: dict[str, tuple[str, float]] = field(default_factory=dict)

    def answer(self, questions, waveforms, bounds) -> list[Answer]:
        """See [`System`]; its bound is the decoder's own."""
        began = time.perf_counter()
        texts = self.hear([waveform for heard in waveforms for waveform in heard])
        answers = [Answer(" ".join(filter(None, (texts.pop(0) for _ in heard)))) for heard in waveforms]
        each = (time.perf_counter() - began) / len(answers)
        self.known.update((question.item.id, (str(one.text), each)) for question, one in zip(questions, answers))
        return answers

    def hear(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """A transcript of each waveform `(samples,)`."""
        clips = [adapter_windows(self.processor, waveform) for waveform in waveforms]
        return self.decoder.hear(clips, self.batch_size)


@dataclass
class CascadeSystem(System):
    """Whisper's transcripts in the place of recordings, and the base language model. What it has heard is not heard again."""

    whisper: WhisperSystem
    generator: Generator

    def answer(self, questions, waveforms, bounds) -> list[Answer]:
        """See [`System`]; an answer's `extra` has the transcripts."""
        transcripts: list[list[str]] = []
        before: list[float] = []
        for question, heard in zip(questions, waveforms):
            known = self.whisper.known.get(question.item.id) if len(heard) == 1 else None
            transcripts.append([known[0]] if known else self.whisper.hear(heard))
            before.append(known[1] if known else 0.0)
        prompts = [_written(question.item.prompt, texts) for question, texts in zip(questions, transcripts)]
        answers = self.generator.answer([_text_only(prompt) for prompt in prompts], [[]] * len(prompts), bounds)
        return [
            Answer(one.text, one.finish, one.error, prompt, {"transcripts": texts}, seconds)
            for one, prompt, texts, seconds in zip(answers, prompts, transcripts, before)
        ]


@dataclass
class DeafSystem(System):
    """The base language model, asked without the recordings."""

    generator: Generator

    def answer(self, questions, waveforms, bounds) -> list[Answer]:
        """See [`System`]."""
        prompts = [_written(question.item.prompt, [""] * len(question.item.recordings)) for question in questions]
        answers = self.generator.answer([_text_only(prompt) for prompt in prompts], [[]] * len(prompts), bounds)
        return [Answer(one.text, one.finish, one.error, prompt) for one, prompt in zip(answers, prompts)]


def _written(prompt: str, texts: Sequence[str]) -> str:
    """A prompt with a text in the place of each recording."""
    pieces = prompt.split(AUDIO_PLACEHOLDER)
    return "".join([pieces[0], *(text + piece for text, piece in zip(texts, pieces[1:], strict=True))]).strip()


def _text_only(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def spoken_language(task: "Task") -> str | None:
    """The language that is spoken in a task's recordings, where that is known: of a translation, not its answers'."""
    return task.source.get("source_language") if task.kind == "translation" else task.language


def why_not(task: "Task", system: str, whisper: str | None, is_multilingual: bool, has_recordings: bool) -> str | None:
    """
    What keeps a system from answering a task; None where nothing does.

    Args:
        whisper: the Whisper model, None where none is known.
        is_multilingual: whether it hears other languages than English.
        has_recordings: whether the task's questions have any.
    """
    if system in NEED_RECORDINGS and not has_recordings:
        return "its questions have no recordings"
    if system == WRONG_AUDIO and task.kind == "no_speech":
        return "one recording without speech is as good as another"
    if system not in (WHISPER, CASCADE):
        return None
    if whisper is None:
        return (
            "the checkpoint does not say which Whisper it was made of, or was made of another encoder; give --whisper"
        )
    if system == WHISPER and task.kind not in HEARD_KINDS:
        return f"a transcript is no answer to a question of the kind {task.kind}"
    spoken = spoken_language(task)
    if spoken is None and task.kind == "translation" and is_english(task.language or ""):
        spoken = "another language"
    if not is_multilingual and spoken is not None and not is_english(spoken):
        return f"{whisper} hears English only, and {spoken} is spoken; give a multilingual Whisper by --whisper"
    if system == WHISPER and task.kind == "translation":
        if task.language is None or not is_english(task.language):
            return f"Whisper translates into English only, not into {task.language}"
        if not is_multilingual:
            return f"{whisper} hears English only and does not translate; give a multilingual Whisper by --whisper"
    return None


__all__ = [
    "CASCADE",
    "DEAF",
    "DEFAULT_SYSTEMS",
    "MODEL",
    "SYSTEM_TITLES",
    "WHISPER",
    "WRONG_AUDIO",
    "CascadeSystem",
    "DeafSystem",
    "ModelSystem",
    "System",
    "WhisperSystem",
    "spoken_language",
    "why_not",
]
