"""Answers to one batch: each ends at its own bound, says how it ended, and does not depend on what else is in the batch."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from audiollm.ctc_rescoring import CtcRescorer
from audiollm.recording_encoder import RecordingEncoder
from transformers import StoppingCriteria, StoppingCriteriaList

from .outputs import ERROR, LENGTH, STOP

Conversation = list[dict[str, Any]]
Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """
    What a system said.

    Attributes:
        text: without special tokens or surrounding space; None where there is no answer.
        finish: `stop`, `length` or `error`.
        error: why there is no answer.
        prompt: what the system was given as text, where that is not the item's prompt.
        extra: what else is kept of it.
        more_seconds: computing time that went into it before this batch.
    """

    text: str | None
    finish: str = STOP
    error: str | None = None
    prompt: str | None = None
    extra: dict[str, Any] | None = None
    more_seconds: float = 0.0


def failure(reason: object) -> Answer:
    """No answer, and why."""
    return Answer(None, ERROR, str(reason))


class RowBounds(StoppingCriteria):
    """Ends each row after as many new tokens as it may have."""

    def __init__(self, prompt_length: int, bounds: torch.Tensor):
        self.prompt_length = prompt_length
        self.bounds = bounds

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows `(batch,)` of `input_ids` `(batch, length)` are at their end."""
        return self.bounds <= input_ids.shape[1] - self.prompt_length


class Generator:
    """
    Greedy answers of a model to batches of conversations.

    Args:
        model: an AudioLLM, or for conversations of text alone any causal language model.
        processor: the AudioLLM's.
        ctc_weight: for transcripts: choose each by CTC as well, with this weight; see [`audiollm.ctc_rescoring`].

    Raises:
        ValueError: there is a `ctc_weight`, and the model has no CTC to ask.
    """

    def __init__(self, model: Any, processor: Any, ctc_weight: float = 0.0):
        self.model = model
        self._rescorer = CtcRescorer(model, processor.tokenizer, ctc_weight) if ctc_weight else None
        self.processor = processor
        self._encoder = RecordingEncoder(model, processor)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def prompt_ids(self, conversation: Conversation, bound: int) -> list[int]:
        """
        A conversation's ids, the opening of an answer included.

        Raises:
            ValueError: it is malformed, or with its answer longer than what the language model was made for.
        """
        ids = self.processor.apply_chat_template(
            conversation, tokenize=True, add_generation_prompt=True, return_tensors=None, return_features=False
        )["input_ids"][0]
        if self._context is not None and len(ids) + bound > self._context:
            raise ValueError(
                f"the question takes {len(ids)} tokens and its answer up to {bound}, but the language model holds "
                f"{self._context} in all"
            )
        return ids

    def answer(
        self, conversations: Sequence[Conversation], waveforms: Sequence[Sequence[np.ndarray]], bounds: Sequence[int]
    ) -> list[Answer]:
        """
        One answer for each conversation; a batch that is too large for the memory is halved, and this is said.

        Args:
            conversations: with the `waveforms` `(samples,)` of each as audio parts, in reading order.
            bounds: tokens that each answer may have.
        """
        rows: list[tuple[list[int], Sequence[np.ndarray], int]] = []
        answers: list[Answer | None] = []
        for conversation, heard, bound in zip(conversations, waveforms, bounds, strict=True):
            try:
                rows.append((self.prompt_ids(conversation, bound), heard, bound))
                answers.append(None)
            except ValueError as error:
                answers.append(failure(error))
        generated = iter(in_halves(self._generate, rows, lambda reason: failure(reason)))
        return [next(generated) if answer is None else answer for answer in answers]

    @torch.inference_mode()
    def _generate(self, rows: Sequence[tuple[list[int], Sequence[np.ndarray], int]]) -> list[Answer]:
        tokenizer, device = self.processor.tokenizer, self.model.device
        inputs = tokenizer.pad(
            {"input_ids": [ids for ids, _, _ in rows]}, padding=True, padding_side="left", return_tensors="pt"
        )
        heard = [waveform for _, waveforms, _ in rows for waveform in waveforms]
        if heard:
            inputs.update(self._encoder(heard))
        length = inputs["input_ids"].shape[1]
        bounds = [bound for _, _, bound in rows]
        if self._rescorer is not None:
            best = self._rescorer.choose(**inputs.to(device), bounds=bounds)
            return [Answer(one.text, STOP if one.is_finished else LENGTH) for one in best]
        criterion = RowBounds(length, torch.tensor(bounds, device=device))
        output = self.model.generate(
            **inputs.to(device),
            max_new_tokens=max(bounds),
            do_sample=False,
            num_beams=1,
            stopping_criteria=StoppingCriteriaList([criterion]),
        )
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for row, bound in zip(output[:, length:].tolist(), bounds):
            said = row[:bound]
            text = tokenizer.decode(said, skip_special_tokens=True).strip()
            answers.append(Answer(text, STOP if ends & set(said) else LENGTH))
        return answers


def in_halves(
    run: Callable[[Sequence[Row]], list[Result]], rows: Sequence[Row], give_up: Callable[[str], Result]
) -> list[Result]:
    """
    `run` on all rows, or, when that takes more memory than there is, on each half of them, and so on.

    Args:
        give_up: what stands for a row that does not even fit alone, given the reason.
    """
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


__all__ = ["Answer", "Generator", "RowBounds", "failure", "in_halves"]
