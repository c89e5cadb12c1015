"""
Questions about recordings that are longer than the language model's context.

The question is asked about each part, and the answers are joined, as text, until there is one. Only silence is left out,
and listed.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from .session import ContextLengthError, Session, context_length
from .transcribing import PartialTranscript, Phrase
from .windows import MIN_LEVEL_DBFS, Window, cut_into_windows, detect_voice

SUMMARY_PROMPT = "<audio>\nSummarise what is said."
#: Question about the answers. It holds no recordings, so the unchanged base answers it.
JOIN_PROMPT = (
    'Somebody listened to a recording part by part, and answered the question "{question}" about each part. These are '
    "the answers, in order:\n\n{answers}\n\nGive one answer to the question for the whole recording."
)
#: A shorter part would hold no phrase.
MIN_PART_SECONDS = 1.0
#: Answers that must fit into the context beside the new one, so that joining ends.
ANSWERS_AT_ONCE = 2
#: Text that is read again may be some tokens longer: times before answers, other word pieces.
SPARE_TOKENS_PER_ANSWER = 16


@dataclass(frozen=True)
class PartAnswer:
    """Answer about a stretch of the recording, from sample to sample, or the reason why nothing was asked."""

    start: int
    end: int
    text: str
    is_cut_off: bool = False  # at the bound on new tokens
    reason: str = ""


@dataclass(frozen=True)
class WholeAnswer:
    """Answer about a whole recording; `rounds`: answers about parts, then those about several of these, and so on."""

    text: str
    rounds: list[list[PartAnswer]]


class InParts:
    """
    Ask about a recording of any length, part by part.

    Args:
        prompt: the question about each part, with one `<audio>` or none.
        join_prompt: the question about the answers, with `{answers}` and, if wanted, `{question}`.
        part_seconds: longest part; by default the longest that the language model's context can hold.
        max_new_tokens: bound on each answer, those about parts and those about answers.
        system, generate_options: of each [`Session`].

    Raises:
        ContextLengthError: the context cannot hold a part and its answer, or two answers and a third.
        ValueError: a prompt lacks what it must have.
    """

    def __init__(
        self,
        model,
        processor,
        prompt: str = SUMMARY_PROMPT,
        join_prompt: str = JOIN_PROMPT,
        part_seconds: float | None = None,
        max_new_tokens: int = 256,
        system: str | None = None,
        **generate_options: Any,
    ):
        if "{answers}" not in join_prompt:
            raise ValueError(f"The prompt that joins answers has no {{answers}} in it: {join_prompt!r}.")
        if prompt.count("<audio>") > 1:
            raise ValueError(f"The prompt has {prompt.count('<audio>')} <audio>; expected one, or none.")
        self.model, self.processor = model, processor
        self.prompt, self.join_prompt = prompt, join_prompt
        self.max_new_tokens, self.system, self.options = max_new_tokens, system, generate_options
        self._limit = context_length(model)
        self._check_joining()
        self.part_seconds = self._part_seconds(part_seconds)

    # ---- asking --------------------------------------------------------------------------------------------------

    def answer(
        self,
        blocks: Iterable[np.ndarray],
        partial: PartialTranscript | None = None,
        on_part: Callable[[float], object] = lambda seconds: None,
    ) -> WholeAnswer:
        """
        Return the answer about a recording.

        Args:
            blocks: its waveforms `(samples,)` at the processor's rate, one after the other.
            partial: keeps the answers about parts, and has those of an earlier run.
            on_part: called with the length of each part as soon as it is answered.

        Raises:
            AudioError, ContextLengthError: the recording cannot be read, or answers are too long to be joined.
        """
        parts = []
        for window in cut_into_windows(blocks, self.processor.sampling_rate, self.part_seconds, voice_activity=False):
            parts.append(self._ask_part(window, partial))
            on_part(window.end_s - window.start_s)
        answers, rounds = [one for one in parts if not one.reason], [parts]
        while len(answers) > 1:
            answers = [
                PartAnswer(group[0].start, group[-1].end, *self._ask(self._joining(group))) if group[1:] else group[0]
                for group in self._groups(answers)
            ]
            rounds.append(answers)
        return WholeAnswer(answers[0].text if answers else "", rounds)

    def _ask_part(self, window: Window, partial: PartialTranscript | None) -> PartAnswer:
        span = window.start, window.end
        known = None if partial is None else partial.get(*span)
        if known is not None:
            return PartAnswer(*span, *known[0][:2])
        assert window.waveform is not None  # without a gate nothing is skipped
        activity = detect_voice(window.waveform, window.sampling_rate)
        if activity.peak_dbfs <= MIN_LEVEL_DBFS:
            return PartAnswer(*span, "", reason=activity.describe())
        text, is_cut_off = self._ask(self.prompt, window.waveform)
        if partial is not None:
            partial.add({span: [Phrase(text, is_cut_off)]})
        return PartAnswer(*span, text, is_cut_off)

    def _ask(self, prompt: str, *recordings: np.ndarray) -> tuple[str, bool]:
        session = Session(self.model, self.processor, self.system, max_new_tokens=self.max_new_tokens, **self.options)
        with session.stream(prompt, *recordings) as stream:  # so that Ctrl-C stops it within a token
            text = stream.read()
        assert session.report is not None
        return text, session.report.finish_reason == "length"

    # ---- what fits -----------------------------------------------------------------------------------------------

    def _groups(self, answers: Sequence[PartAnswer]) -> list[list[PartAnswer]]:
        """Return the answers, in order, in groups that fit into the context together."""
        groups: list[list[PartAnswer]] = [[]]
        for one in answers:
            if groups[-1] and not self._fits(self._joining([*groups[-1], one])):
                groups.append([])
            groups[-1].append(one)
        if len(groups) == len(answers):
            raise ContextLengthError(
                f"The language model can hold {self._limit} tokens, and not two of its answers at once. "
                f"Give a smaller bound on them than {self.max_new_tokens} tokens."
            )
        return groups

    def _joining(self, answers: Sequence[PartAnswer]) -> str:
        rate = self.processor.sampling_rate
        lines = [
            f"{timedelta(seconds=one.start // rate)} to {timedelta(seconds=one.end // rate)}: {_plain(one.text)}"
            for one in answers
        ]
        question = _plain(self.prompt)
        return self.join_prompt.replace("{question}", question).replace("{answers}", "\n".join(lines))

    def _fits(self, text: str) -> bool:
        return self._limit is None or self._tokens(text) + self.max_new_tokens <= self._limit

    def _tokens(self, text: str, slots: Sequence[int] = ()) -> int:
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        segments = self.processor.conversation_segments(messages, add_generation_prompt=True)
        return len(self.processor.encode_segments(segments, list(slots))[0])

    def _check_joining(self) -> None:
        needed = self._tokens(self._joining([])) + (ANSWERS_AT_ONCE + 1) * self.max_new_tokens
        needed += ANSWERS_AT_ONCE * SPARE_TOKENS_PER_ANSWER
        if self._limit is not None and needed > self._limit:
            most = self.max_new_tokens - (needed - self._limit + ANSWERS_AT_ONCE) // (ANSWERS_AT_ONCE + 1)
            advice = f"at most {most}" if most > 0 else "shorter prompts"
            raise ContextLengthError(
                f"Two answers of {self.max_new_tokens} tokens and what is made of them come to {needed} tokens, but the "
                f"language model can hold {self._limit}. Give a smaller bound on new tokens: {advice}."
            )

    def _part_seconds(self, asked: float | None) -> float:
        """Return the longest part that the context can hold with its answer, or the given length if it fits."""
        fitting = float("inf")
        if self._limit is not None:
            with_audio = self.prompt if "<audio>" in self.prompt else f"<audio>\n{self.prompt}"
            room = self._limit - self.max_new_tokens - self._tokens(with_audio, [0])
            fitting = seconds_of_slots(self.processor, room)
        if fitting < MIN_PART_SECONDS or (asked is not None and asked > fitting):
            raise ContextLengthError(
                f"A part of {asked or MIN_PART_SECONDS:g} s with its question and an answer of {self.max_new_tokens} tokens "
                f"does not fit: the language model can hold {self._limit} tokens, which leaves room for {fitting:.1f} s."
            )
        if asked is not None and asked < MIN_PART_SECONDS:
            raise ValueError(f"Parts of {asked:g} s are too short; expected {MIN_PART_SECONDS:g} or more.")
        if asked is not None:
            return asked
        return fitting if self._limit is not None else self.processor.window_samples / self.processor.sampling_rate


def seconds_of_slots(processor, slots: int) -> float:
    """Return the longest recording, to a tenth of a second, that has at most so many audio tokens."""
    step, window = processor.sampling_rate // 10, processor.window_samples
    most = (1 + max(0, slots + 1) * window // processor.num_audio_slots(window)) // step + 1
    fitting = bisect_right(range(most), slots, key=lambda tenths: processor.num_audio_slots(tenths * step))
    return max(0, fitting - 1) / 10


def _plain(text: str) -> str:
    """Return text on one line, without any `<audio>` that the model may have written."""
    return " ".join(text.replace("<audio>", "").split())
