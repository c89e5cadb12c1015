"""
Systems that answer a task's questions: the model, its control, and the baselines.

| system | what it is |
|---|---|
| `model` | the AudioLLM |
| `wrong_audio` | the same, given others' recordings: what it answers without listening |
| `whisper` | the same Whisper's own decoder: its transcript, or its translation into English |
| `cascade` | that transcript in the place of the recording, answered by the base language model |
| `deaf` | the base language model, given the question without the recording |
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.base_models import resolve_base
from audiollm.checkpoints import fingerprint
from audiollm.corpora.hypotheses import WhisperDecoder, locate_whisper
from audiollm.corpora.normalisers import is_english, language_of
from audiollm.inference.answering import ask
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from .generating import Generator, Reply, adapter_windows
from .measures import NEGATIVE_LOG_LIKELIHOOD, SAME_LOGITS, TOKENS
from .outputs import SystemOutputs
from .tasks import Item, Task

MODEL, WRONG_AUDIO, WHISPER, CASCADE, DEAF = "model", "wrong_audio", "whisper", "cascade", "deaf"
#: Systems that answer by default, by a task's kind.
DEFAULT_SYSTEMS = {
    "asr": (MODEL, WRONG_AUDIO, WHISPER),
    "translation": (MODEL, WRONG_AUDIO, WHISPER, CASCADE, DEAF),
    **dict.fromkeys(("choice", "chat", "summary"), (MODEL, WRONG_AUDIO, CASCADE, DEAF)),
    "no_speech": (MODEL, WHISPER),
    "text_retention": (MODEL, DEAF),
}
#: Systems that there is nothing to ask of where there are no recordings.
NEED_RECORDINGS = (WRONG_AUDIO, WHISPER, CASCADE)
#: Kinds whose answers are as long as what is said, and that Whisper's decoder itself can give.
HEARD_KINDS = ("asr", "no_speech", "translation")
TEXT_RETENTION, TRANSCRIPTION, TRANSLATION = "text_retention", "asr", "translation"


#: Answers items, given the decoded recordings of each and the bound on each answer in tokens.
System = Callable[[Sequence[Item], Sequence[Sequence[np.ndarray]], Sequence[int]], list[Reply]]


def listen(generator: Generator, items, waveforms, bounds) -> list[Reply]:
    """Answer by an AudioLLM, on items' own recordings or, as its control, on others'."""
    asked = [ask(item.prompt, *heard) for item, heard in zip(items, waveforms)]
    return generator.answer(asked, waveforms, bounds)


@dataclass
class WhisperSystem:
    """Whisper's own decoder; long recordings are cut where the AudioLLM's windows are, so that both hear the same."""

    decoder: WhisperDecoder
    processor: Any
    batch_size: int
    known: dict[str, tuple[str, float]] = field(default_factory=dict)  # transcripts and their seconds, by item

    def __call__(self, items, waveforms, bounds) -> list[Reply]:
        """Answer as a [`System`]; the bound is the decoder's own."""
        began = time.perf_counter()
        texts = iter(self.hear([waveform for heard in waveforms for waveform in heard]))
        answers = [" ".join(filter(None, [next(texts) for _ in heard])) for heard in waveforms]
        each = (time.perf_counter() - began) / len(answers)
        self.known.update((item.id, (text, each)) for item, text in zip(items, answers))
        return [Reply(text) for text in answers]

    def hear(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Return a transcript of each waveform `(samples,)`."""
        clips = [adapter_windows(self.processor, waveform) for waveform in waveforms]
        return self.decoder.hear(clips, self.batch_size)


@dataclass
class TextSystem:
    """The base language model, given Whisper's transcripts in the place of the recordings, or nothing there."""

    generator: Generator  # of the base
    whisper: WhisperSystem | None = None  # hears the recordings that it has not heard already; None for the deaf base

    def __call__(self, items, waveforms, bounds) -> list[Reply]:
        """Answer as a [`System`]; an answer's `extra` has the transcripts."""
        transcripts: list[list[str]] = []
        before: list[float] = []
        for item, heard in zip(items, waveforms):
            texts, seconds = [""] * len(heard), 0.0
            if self.whisper and len(heard) == 1 and item.id in self.whisper.known:
                texts[0], seconds = self.whisper.known[item.id]
            elif self.whisper:
                texts = self.whisper.hear(heard)
            transcripts.append(texts)
            before.append(seconds)
        prompts = [_written(item.prompt, texts) for item, texts in zip(items, transcripts)]
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = self.generator.answer(asked, [[]] * len(prompts), bounds)
        return [
            replace(one, prompt=prompt, extra={"transcripts": texts} if self.whisper else None, more_seconds=seconds)
            for one, prompt, texts, seconds in zip(answers, prompts, transcripts, before)
        ]


def _written(prompt: str, texts: Sequence[str]) -> str:
    """Return a prompt with a text in the place of each recording."""
    pieces = prompt.split(AUDIO_PLACEHOLDER)
    return "".join([pieces[0], *(text + piece for text, piece in zip(texts, pieces[1:], strict=True))]).strip()


def measure_text(model: Any, tokenizer: Any, base: Any | None, items, waveforms, bounds) -> list[Reply]:
    """
    Return empty answers whose `extra` has the tokens of a text, the sum of their negative log likelihoods in nats, and
    the difference of the logits from those of the base language model by itself, if it is given.
    """
    replies = []
    for item in items:
        ids = torch.tensor([tokenizer(item.prompt)["input_ids"]], device=model.device)
        logits = _logits(model, ids)
        nats = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:].cpu(), reduction="sum")
        measured = {TOKENS: max(ids.shape[1] - 1, 0), NEGATIVE_LOG_LIKELIHOOD: float(nats)}
        if base is not None:
            base_logits = _logits(base, ids)
            same = torch.equal(logits, base_logits)
            difference = 0.0 if same else float((logits.float() - base_logits.float()).abs().max())
            measured |= {SAME_LOGITS: same, "largest_logit_difference": difference}
        replies.append(Reply("", extra=measured))
    return replies


@torch.inference_mode()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return logits `(tokens, vocab_size)` of ids `(1, tokens)`, in the model's own precision, on the CPU."""
    return model(input_ids=ids.to(model.device)).logits[0].cpu()


def spoken_language(task: Task) -> str | None:
    """Return the language of a task's recordings, where it is known: of a translation, not its answers'."""
    return task.source.get("source_language") if task.kind == TRANSLATION else task.language


def why_not(task: Task, system: str, whisper: str | None, is_multilingual: bool, has_recordings: bool) -> str | None:
    """Return the reason for which a system cannot answer a task, or None. `whisper` is None if none is known."""
    if system in NEED_RECORDINGS and not has_recordings:
        return "its questions have no recordings"
    if system == WRONG_AUDIO and task.kind == "no_speech":
        return "one recording without speech is as good as another"
    if system not in (WHISPER, CASCADE):
        return None
    if whisper is None:
        return "the checkpoint does not say which Whisper it was made of, or has another encoder; give --whisper"
    if system == WHISPER and task.kind not in HEARD_KINDS:
        return f"a transcript is no answer to a question of the kind {task.kind}"
    spoken = spoken_language(task)
    if not is_multilingual and spoken is not None and not is_english(spoken):
        return f"{whisper} hears English only, and {spoken} is spoken; give a multilingual Whisper by --whisper"
    if system == WHISPER and task.kind == TRANSLATION:
        if task.language is None or not is_english(task.language):
            return f"Whisper translates into English only, not into {task.language}"
        if not is_multilingual:
            return f"{whisper} hears English only and does not translate; give a multilingual Whisper by --whisper"
    return None


def is_multilingual(whisper: str, revision: str | None) -> bool:
    """Return True if a Whisper hears other languages than English."""
    folder, _ = locate_whisper(whisper, revision)
    config = GenerationConfig.from_pretrained(folder, revision=revision or "main")
    return bool(getattr(config, "is_multilingual", False))


@dataclass
class SystemBuilder:
    """Makes systems of one model, each part when it is first needed."""

    model: Any  # under evaluation
    processor: Any  # of the model
    whisper: str | None  # the Whisper whose decoder answers
    revision: str | None  # of that Whisper
    folder: Path  # of the run, where the decoder's transcripts may be already
    batch_size: int  # windows at a time in Whisper
    ctc_weight: float = 0.0  # of CTC, when the model's transcripts are chosen; other answers are not
    #: The latest task's transcripts, for its cascade.
    _heard: tuple[str, WhisperSystem] | None = None

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, self.processor)

    @cached_property
    def _transcriber(self) -> Generator:
        return Generator(self.model, self.processor, self.ctc_weight) if self.ctc_weight else self._generator

    @cached_property
    def _text_generator(self) -> Generator:
        return Generator(base_text_model(self.model), self.processor)

    @cached_property
    def _base_alone(self) -> Any:
        return load_text_model(self.model)

    @cached_property
    def _decoder(self) -> WhisperDecoder:
        assert self.whisper is not None  # why_not has refused it
        return WhisperDecoder(self.whisper, self.revision, self.model.device)

    def build(self, task: Task, name: str) -> System:
        """Return the system of that name, for one task."""
        if task.kind == TEXT_RETENTION:
            measured, base = (self.model, self._base_alone) if name == MODEL else (self._base_alone, None)
            return partial(measure_text, measured, self.processor.tokenizer, base)
        if name in (MODEL, WRONG_AUDIO):
            return partial(listen, self._transcriber if task.kind == TRANSCRIPTION else self._generator)
        if name == DEAF:
            return TextSystem(self._text_generator)
        if name == WHISPER and task.kind == TRANSLATION:
            return self._whisper_system(task, task="translate")
        if self._heard is None or self._heard[0] != task.name:
            hearing = self._whisper_system(task)
            if task.kind != TRANSLATION:  # else a translation is on disk
                rows = SystemOutputs(self.folder, task.name, WHISPER).read().values()
                hearing.known = {
                    row["id"]: (row["output"], row["seconds"]) for row in rows if row["output"] is not None
                }
            self._heard = (task.name, hearing)
        return TextSystem(self._text_generator, self._heard[1]) if name == CASCADE else self._heard[1]

    def _whisper_system(self, asked: Task, **options: str) -> WhisperSystem:
        """Return Whisper's decoder in the language of a task's recordings, with options of its `generate`."""
        decoder = copy.copy(self._decoder)
        spoken = spoken_language(asked)
        knows = getattr(decoder.model.generation_config, "is_multilingual", False)
        if knows and spoken is not None and language_of(spoken) in LANGUAGES:  # else Whisper finds it out
            options["language"] = language_of(spoken)
        decoder.options = {**decoder.options, **options}
        return WhisperSystem(decoder, self.processor, self.batch_size)


def holds_its_base(model: Any) -> bool:
    """Return True if the weights that answer text are those of the base."""
    tied = model.config.get_text_config().tie_word_embeddings
    prefixes = ("model.language_model.",) if tied else ("model.language_model.", "lm_head.")
    held = {
        key.replace(".base_layer.", "."): value
        for key, value in model.state_dict().items()
        if key.startswith(prefixes) and ".lora_" not in key
    }
    return model.config.base_fingerprint.get("text") == fingerprint(held)


def load_text_model(model: Any) -> Any:
    """Load the base language model that an AudioLLM was made from, by itself."""
    config = model.config
    if not config.text_model_id:
        raise ValueError("The checkpoint does not say which language model it was made from.")
    folder, revision = resolve_base(config.text_model_id, "text"), config.text_model_revision or "main"
    known = {"dtype": model.get_input_embeddings().weight.dtype, "trust_remote_code": False, "use_safetensors": True}
    return AutoModelForCausalLM.from_pretrained(folder, revision=revision, **known).eval().to(model.device)


def base_text_model(model: Any) -> Any:
    """Return a model that answers text as the base does: the AudioLLM, or the base if training has changed it."""
    return model if holds_its_base(model) else load_text_model(model)
