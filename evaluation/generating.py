"""Answer in batches: each answer ends at its own bound, says how it ended, and does not depend on its batch."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from audiollm.corpora.normalisers import is_english
from audiollm.inference.answer_ends import generate_to_ends
from audiollm.inference.ctc_rescoring import CtcRescorer
from audiollm.inference.recording_encoder import RecordingEncoder

from .outputs import ERROR, LENGTH, REPEATED, STOP

#: Tokens a transcript may hold for each second of speech, and besides. Fast English takes about 5. Other languages take
#: more: a tokenizer made for English spends up to three tokens on a character (Hindi: 15 a second, read slowly).
ENGLISH_TOKENS_PER_SECOND, OTHER_TOKENS_PER_SECOND = 10.0, 60.0
SPARE_TOKENS = 8
Conversation = list[dict[str, Any]]
#: Token ids, waveforms in reading order, and the bound on the answer.
Prompt = tuple[list[int], Sequence[Any], int]
Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """Output of a system for one item."""

    text: str | None  # without special tokens or surrounding space; None where there is no answer
    finish: str = STOP  # `stop`, `length`, `repeated` or `error`
    error: str | None = None  # reason for which there is no answer
    prompt: str | None = None  # text given to the system, where that is not the item's prompt
    extra: dict[str, Any] | None = None  # further facts that are kept
    more_seconds: float = 0.0  # computing time that went into it before this batch


def failure(reason: object) -> Reply:
    """Return a missing answer with its reason."""
    return Reply(None, ERROR, str(reason))


def transcript_bound(seconds: float, language: str | None) -> int:
    """Return the bound in tokens on a transcript or translation, into a language if known, of so much speech."""
    rate = ENGLISH_TOKENS_PER_SECOND if language is not None and is_english(language) else OTHER_TOKENS_PER_SECOND
    return SPARE_TOKENS + int(seconds * rate)


def swapped(recordings: Sequence[Any]) -> list[Any]:
    """Return two recordings or more turned by half the list's length, so that none keeps its place."""
    half = len(recordings) // 2
    return [*recordings[half:], *recordings[:half]]


def adapter_windows(processor: Any, recording: Any) -> list[np.ndarray]:
    """Cut a recording's waveform, or a waveform, as the processor cuts it for the adapter."""
    waveform = processor.load_audio(recording)
    return np.split(waveform, np.cumsum(processor.window_lengths(len(waveform)))[:-1])


class Generator:
    """
    Greedy answers of a model to batches of conversations.

    The model is an AudioLLM, or for text alone any causal language model; the processor is the AudioLLM's. `ctc_weight` is
    that of n-best rescoring of transcripts; see [`audiollm.inference.ctc_rescoring`].
    """

    def __init__(self, model: Any, processor: Any, ctc_weight: float = 0.0):
        self.model, self.processor = model, processor
        self._rescorer = CtcRescorer(model, processor.tokenizer, ctc_weight) if ctc_weight else None
        self._encoder = RecordingEncoder(model, processor)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)

    def answer(
        self, conversations: Sequence[Conversation], waveforms: Sequence[Sequence[Any]], bounds: Sequence[int]
    ) -> list[Reply]:
        """
        Return one answer for each conversation with audio parts; a batch that is too large for the memory is halved.

        Args:
            waveforms: those `(samples,)` of each conversation in reading order.
            bounds: tokens that each answer may have; fewer where the context ends before.
        """
        rows: list[Prompt] = []
        failed: dict[int, Reply] = {}
        for number, prompt in enumerate(zip(conversations, waveforms, bounds, strict=True)):
            try:
                rows.append(self._prompt(*prompt))
            except ValueError as error:
                failed[number] = failure(error)
        generated = iter(in_halves(self._generate, rows, failure))
        return [failed.get(number) or next(generated) for number in range(len(conversations))]

    def _prompt(self, conversation: Conversation, heard: Sequence[Any], bound: int) -> Prompt:
        """Return a conversation's ids, its waveforms, and the bound on its answer, for which there must be room."""
        ids = self.processor.apply_chat_template(
            conversation, tokenize=True, add_generation_prompt=True, return_tensors=None, return_features=False
        )["input_ids"][0]
        if len(ids) + min(bound, SPARE_TOKENS) > self._context:
            raise ValueError(f"the question takes {len(ids)} tokens; with the answer, the model holds {self._context}")
        return ids, heard, min(bound, self._context - len(ids))

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Prompt]) -> list[Reply]:
        tokenizer, device = self.processor.tokenizer, self.model.device
        inputs = tokenizer.pad(
            {"input_ids": [ids for ids, _, _ in rows]}, padding=True, padding_side="left", return_tensors="pt"
        )
        if heard := [waveform for _, waveforms, _ in rows for waveform in waveforms]:
            inputs.update(self._encoder(heard))
        bounds = [bound for _, _, bound in rows]
        if self._rescorer is not None:
            # CTC gives no weight to a text of more pieces than audio tokens, so longer candidates are of no use.
            audio_tokens = [ids.count(self.processor.audio_token_id) for ids, _, _ in rows]
            bounds = [min(bound, SPARE_TOKENS + count) for bound, count in zip(bounds, audio_tokens)]
            best = self._rescorer.choose(**inputs.to(device), bounds=bounds)
            return [Reply(one.text, STOP if one.is_finished else LENGTH) for one in best]
        said = generate_to_ends(
            self.model, inputs.to(device), bounds, max_new_tokens=max(bounds), do_sample=False, num_beams=1
        )
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for row, bound in zip(said, bounds):
            finish = STOP if ends & set(row) else LENGTH if len(row) >= bound else REPEATED
            answers.append(Reply(tokenizer.decode(row, skip_special_tokens=True).strip(), finish))
        return answers


def in_halves(
    run: Callable[[Sequence[Row]], list[Result]], rows: Sequence[Row], give_up: Callable[[str], Result]
) -> list[Result]:
    """Return the results of `run` for all rows, or if memory lacks, of each half, and so on; `give_up` tells of a last row."""
    if not rows:
        return []
    try:
        return run(rows)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        reason = str(error).splitlines()[0]
    clear_device_cache(garbage_collection=True)  # outside, so that the error no longer holds the batch
    if len(rows) == 1:
        return [give_up(f"out of memory, even alone in its batch: {reason}")]
    half = -(-len(rows) // 2)
    print(f"A batch of {len(rows)} is too large for the memory; going on with {half}.", file=sys.stderr, flush=True)
    return [*in_halves(run, rows[:half], give_up), *in_halves(run, rows[half:], give_up)]
