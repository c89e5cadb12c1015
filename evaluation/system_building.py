"""Builds what answers, each when it is first needed: the model, Whisper's decoder by language, the base language model."""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiollm.corpora.hypotheses import WhisperDecoder, locate_whisper
from transformers import GenerationConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from .generating import Generator
from .outputs import SystemOutputs
from .plan import wrong_recordings
from .retention import RetentionSystem
from .running import Job, with_systems
from .systems import (
    CASCADE,
    DEAF,
    DEFAULT_SYSTEMS,
    MODEL,
    WHISPER,
    WRONG_AUDIO,
    CascadeSystem,
    DeafSystem,
    ModelSystem,
    System,
    WhisperSystem,
    spoken_language,
    why_not,
)
from .text_base import base_text_model, load_text_model

if TYPE_CHECKING:
    from .tasks import Task

TEXT_RETENTION, TRANSCRIPTION, TRANSLATION = "text_retention", "asr", "translation"


class SystemsError(ValueError):
    """Systems that were asked for cannot answer a task; the message says why."""


def is_multilingual(whisper: str, revision: str | None) -> bool:
    """
    Whether a Whisper hears other languages than English.

    Raises:
        WhisperModelError: there is no such Whisper here.
    """
    folder, _ = locate_whisper(whisper, revision)
    return bool(
        getattr(GenerationConfig.from_pretrained(folder, revision=revision or "main"), "is_multilingual", False)
    )


def choose_systems(
    job: Job, asked: Sequence[str], without: Sequence[str], whisper: str | None, multilingual: bool
) -> Job:
    """
    What answers a task: what was asked for, or what its kind has by default and can answer it.

    Args:
        asked: names; empty for the default.
        without: names that are not to answer.
        whisper, multilingual: see [`why_not`].

    Raises:
        SystemsError: what was asked for cannot answer.
    """
    chosen, left_out = [], []
    for name in asked or DEFAULT_SYSTEMS[job.task.kind]:
        if name in without:
            continue
        reason = why_not(job.task, name, whisper, multilingual, bool(job.num_recordings))
        if reason is None:
            chosen.append(name)
        elif asked:
            raise SystemsError(f"--systems {name} cannot answer {job.task.name}: {reason}.")
        else:
            left_out.append((name, reason))
    return with_systems(job, chosen, left_out)


def check_control(job: Job, asked: Sequence[str]) -> None:
    """
    Refuses the wrong-audio control where there is no second recording.

    Raises:
        SystemsError: it was to answer, and there is none.
    """
    names = tuple(asked) or DEFAULT_SYSTEMS[job.task.kind]
    if WRONG_AUDIO in names and job.num_recordings == 1:
        others = ",".join(name for name in names if name != WRONG_AUDIO)
        raise SystemsError(
            f"{job.task.name} gives {len(job.ids)} clips of one recording; the wrong-audio control needs two different ones "
            f"or more. Take more, or leave it out by --systems {others}."
        )


class SystemBuilder:
    """
    Makes systems of one model.

    Args:
        model, processor: what is evaluated.
        whisper, revision: the Whisper whose decoder answers.
        folder: of the run, where the decoder's transcripts may be already.
        batch_size: windows at a time in Whisper.
        ctc_weight: of CTC, when the model's transcripts are chosen; other answers are not.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        whisper: str | None,
        revision: str | None,
        folder: Path,
        batch_size: int,
        ctc_weight: float = 0.0,
    ):
        self.model, self.processor = model, processor
        self._whisper, self._revision = whisper, revision
        self._folder, self._batch_size, self._ctc_weight = folder, batch_size, ctc_weight
        #: The latest language's decoder, and the latest task's transcripts.
        self._decoder: tuple[str | None, WhisperDecoder] | None = None
        self._heard: tuple[str, WhisperSystem] | None = None

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, self.processor)

    @cached_property
    def _transcriber(self) -> Generator:
        """Writes transcripts."""
        return Generator(self.model, self.processor, self._ctc_weight) if self._ctc_weight else self._generator

    @cached_property
    def _text_generator(self) -> Generator:
        return Generator(base_text_model(self.model), self.processor)

    @cached_property
    def _base_alone(self) -> Any:
        dtype = self.model.get_input_embeddings().weight.dtype
        return load_text_model(self.model.config, dtype, self.model.device)

    def build(self, job: Job, name: str) -> System:
        """
        The system of that name, for one task.

        Raises:
            WhisperModelError, ValueError, OSError: Whisper or the base language model cannot be loaded.
        """
        if job.task.kind == TEXT_RETENTION and name == MODEL:
            return RetentionSystem(self._generator, self._base_alone)
        if job.task.kind == TEXT_RETENTION and name == DEAF:
            return RetentionSystem(Generator(self._base_alone, self.processor))
        generator = self._transcriber if job.task.kind == TRANSCRIPTION else self._generator
        if name == MODEL:
            return ModelSystem(generator)
        if name == WRONG_AUDIO:
            return ModelSystem(generator, wrong_recordings)
        if name == DEAF:
            return DeafSystem(self._text_generator)
        hearing = self._hearing(job.task)
        if name == CASCADE:
            return CascadeSystem(hearing, self._text_generator)
        if job.task.kind != TRANSLATION:
            return hearing
        decoder = copy.copy(hearing.decoder)
        decoder.options = {**decoder.options, "task": "translate"}
        return WhisperSystem(decoder, self.processor, self._batch_size)

    def _hearing(self, task: "Task") -> WhisperSystem:
        """Whisper's transcripts of a task's recordings, those that are on disk already among them; one for all that ask."""
        if self._heard is not None and self._heard[0] == task.name:
            return self._heard[1]
        assert self._whisper is not None  # why_not has refused it
        multilingual = is_multilingual(self._whisper, self._revision)
        language = whisper_language(spoken_language(task)) if multilingual else None
        if self._decoder is None or self._decoder[0] != language:
            decoder = WhisperDecoder(self._whisper, self._revision, self.model.device, language=language)
            self._decoder = (language, decoder)
        known = {}
        if task.kind != TRANSLATION:
            rows = SystemOutputs(self._folder, task.name, WHISPER).read().values()
            known = {row["id"]: (row["output"], row["seconds"]) for row in rows if row["output"] is not None}
        self._heard = (task.name, WhisperSystem(self._decoder[1], self.processor, self._batch_size, known))
        return self._heard[1]


def whisper_language(language: str | None) -> str | None:
    """A language's code as Whisper knows it; None, which lets Whisper find out, where it does not."""
    if language is None:
        return None
    code = language.lower().replace("_", "-").split("-")[0]
    code = TO_LANGUAGE_CODE.get(code, code)
    return code if code in LANGUAGES else None


__all__ = [
    "TRANSCRIPTION",
    "SystemBuilder",
    "SystemsError",
    "check_control",
    "choose_systems",
    "is_multilingual",
    "whisper_language",
]
