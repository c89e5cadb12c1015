"""
Live transcripts: words that appear while they are spoken, and become final about a second later.

Each new stretch of sound goes through the encoder with the few seconds before it, so that work and memory do not grow with the
length of a stream. What is encoded is always whole steps long: torch's libraries keep what they have prepared for each shape
that they have seen. A word is final once it lies behind the newest sound and two looks in a row agree on it, or once a pause
follows (local agreement, Liu et al. 2020, arXiv:2005.11185). Texts are chosen as in `audiollm transcribe`, by CTC and the
language model together, among those that begin with the last final words: all of a short list are about what is new.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from audiollm.command_line.machine import give_back_freed_memory
from audiollm.projector import LETTER_FRAMES, slot_counts

from .ctc_alignment import SECONDS_PER_FRAME, align_words, letter_log_probabilities, slot_log_probabilities
from .ctc_rescoring import DEFAULT_CTC_WEIGHT, CtcRescorer
from .session import model_lock
from .spoken_pieces import spoken_form
from .transcripts import Word
from .windows import HOP_SECONDS, detect_voice

#: New sound between two looks.
STEP_SECONDS = 0.64
#: Sound that a word must lie behind before it becomes final, and the pause that makes everything before it final.
SETTLING_SECONDS, PAUSE_SECONDS = 0.4, 0.6
#: Sound before the last final word that is encoded again, as context of what follows, and the end of it whose words every
#: text begins with.
BEFORE_SECONDS, REREAD_SECONDS = 16.0, 2.0
#: Sound since the last final word that is kept at most: where looks do not agree for so long, words become final without.
MAX_NEW_SECONDS = 8.0
#: Sound that is taken at a time.
MAX_TAKEN_SECONDS = 5.0
#: Texts that are chosen from at each look, and prefixes of the search for them. More cost time at each look.
NUM_TEXTS, NUM_PREFIXES = 16, 24
#: Final words that are remembered: those of the kept sound, and a dozen before it that the language model reads.
MAX_WORDS_SAID = 40


@dataclass(frozen=True)
class LiveUpdate:
    """
    Words that a look at the newest sound has made final, and those after them.

    Attributes:
        final: words that have become final, with times from the beginning of the stream.
        pending: the words after them, which may still change.
        seconds: length of the stream up to this look.
        is_pause: whether the speaker pauses: an utterance has ended.
    """

    final: tuple[Word, ...]
    pending: str
    seconds: float
    is_pause: bool


class LiveTranscriber:
    """
    Transcript of one stream of sound.

    Args:
        model, processor: a pair that belongs together, whose projector has CTC posteriors.
        context: names and terms that may be said; see [`context_words`].
        step_seconds: new sound between two looks.
        ctc_weight: of CTC beside the language model.

    Raises:
        ValueError: the model has no CTC posteriors, or the step is shorter than an audio token or longer than
            `MAX_TAKEN_SECONDS`.
    """

    def __init__(
        self,
        model,
        processor,
        context: Sequence[str] = (),
        step_seconds: float = STEP_SECONDS,
        ctc_weight: float = DEFAULT_CTC_WEIGHT,
    ):
        self.model, self.processor = model.eval(), processor
        self._rescorer = CtcRescorer(model, processor.tokenizer, ctc_weight, context)
        self._rate = processor.sampling_rate
        self._slot_seconds = SECONDS_PER_FRAME * model.config.stack_factor
        if not self._slot_seconds <= step_seconds <= MAX_TAKEN_SECONDS:
            raise ValueError(
                f"step_seconds is {step_seconds:g}; expected {self._slot_seconds:g} (an audio token) to {MAX_TAKEN_SECONDS:g}."
            )
        self._slot_samples = round(self._slot_seconds * self._rate)
        self._step_samples = round(step_seconds / self._slot_seconds) * self._slot_samples
        self._kept = self._new = np.zeros(0, dtype=np.float32)  # sound of this look, and what has come after it
        self._first = 0  # samples before the kept ones
        self._final_end = 0.0
        self._said: list[Word] = []  # the last final words of this utterance
        self._agreed: list[str] = []

    @property
    def seconds(self) -> float:
        """Length of the stream so far."""
        return self._heard + len(self._new) / self._rate

    @property
    def _heard(self) -> float:
        """Length of the stream up to the last look, in seconds."""
        return (self._first + len(self._kept)) / self._rate

    def transcribe(self, blocks: Iterable[np.ndarray]) -> Iterator[LiveUpdate]:
        """
        Yield an update for each step of a stream, and one at its end.

        Args:
            blocks: float32 waveforms `(samples,)` of any length, at the processor's rate.
        """
        for block in blocks:
            yield from self.feed(block)
        yield self.finish()

    def feed(self, waveform: np.ndarray) -> Iterator[LiveUpdate]:
        """
        Take new sound, and yield an update where a step is complete.

        A block of several steps is looked at as a whole, up to `MAX_TAKEN_SECONDS`: who has fallen behind gives
        all that has come in the meantime, and catches up. What is less than a step waits for more.

        Args:
            waveform: `(samples,)`, float32 at the processor's rate.

        Raises:
            ValueError: it has channels, or integers.
        """
        if waveform.ndim != 1 or waveform.dtype.kind != "f":
            given = f"{waveform.dtype} {waveform.shape}"
            raise ValueError(f"The sound is {given}; expected floating point, (samples,), at {self._rate} Hz.")
        step, most = self._step_samples, int(MAX_TAKEN_SECONDS * self._rate)
        self._new = np.concatenate([self._new, waveform])
        while len(self._new) >= step:
            yield self._look(max(min(len(self._new), most) // step, 1) * step)

    def finish(self) -> LiveUpdate:
        """Return the last update, after which every word is final."""
        return self._look(len(self._new), is_end=True)

    def _look(self, num_samples: int, is_end: bool = False) -> LiveUpdate:
        """Return what is heard with so many samples more."""
        self._kept, self._new = np.concatenate([self._kept, self._new[:num_samples]]), self._new[num_samples:]
        voice_end = self._voice_end()
        is_settled = voice_end <= self._final_end
        is_pause = is_end or self._heard - voice_end >= PAUSE_SECONDS
        words = [] if is_settled else self._new_words()
        count = len(words) if is_pause else self._num_final(words)
        final = [replace(one, start_s=round(one.start_s, 3), end_s=round(one.end_s, 3)) for one in words[:count]]
        if final and not self._said:
            final[0] = replace(final[0], text=final[0].text[:1].upper() + final[0].text[1:])
        pending = [one.text for one in words[count:]]
        self._agreed = pending
        if final:
            self._final_end = final[-1].end_s
            self._said = [*self._said, *final][-MAX_WORDS_SAID:]
        if is_pause:
            self._said = []
            self._final_end = max(self._final_end, voice_end)
            if final:
                give_back_freed_memory()
        self._forget()
        return LiveUpdate(tuple(final), " ".join(pending), self._heard, is_pause)

    def _voice_end(self) -> float:
        """Return when somebody last spoke, in seconds; minus infinity where no sound with a voice is kept."""
        if len(self._kept) < self._slot_samples:
            return -math.inf
        spoken = np.flatnonzero(detect_voice(self._kept, self._rate).active)
        return (self._first / self._rate + float(spoken[-1]) * HOP_SECONDS) if len(spoken) else -math.inf

    def _num_final(self, words: Sequence[Word]) -> int:
        """Return how many of the new words become final: those that lie far enough back and were heard by the last look too."""
        must = self._heard - max(self._final_end, self._first / self._rate) > MAX_NEW_SECONDS
        count = 0
        for word, before in zip(words, [*self._agreed, *[None] * len(words)]):
            agrees = must or word.text == before
            if not agrees or word.end_s > self._heard - SETTLING_SECONDS:
                break
            count += 1
        return count

    @torch.inference_mode()
    def _new_words(self) -> list[Word]:
        """Return the words after the last final one, as they are heard now."""
        sound = np.pad(self._kept, (0, -len(self._kept) % self._step_samples))  # the end of a stream is no whole step
        features = {name: one.to(self.model.device) for name, one in self.processor.batch_features([sound]).items()}
        stack = self.model.config.stack_factor
        with model_lock(self.model):
            before, again = self._final_words()
            known = self._rescorer.sayable(" ".join(one.text for one in again))
            begin = again[0].start_s if again else self._final_end
            first = max(0, int((begin - self._first / self._rate) / self._slot_seconds))
            begin = self._first / self._rate + first * self._slot_seconds
            frames, lengths = self.model.model.encode_audio(**features)
            counts = [int(slot_counts(lengths, stack).sum())]
            read = first - first % (self._step_samples // self._slot_samples)  # whole steps: few shapes
            scores = slot_log_probabilities(self.model, frames, lengths, counts, read)[0][first - read :].cpu()
            (letters,) = letter_log_probabilities(self.model, frames, lengths, counts)
            letters = None if letters is None else letters[first * stack // LETTER_FRAMES :]
            texts = (" ".join(one.text for one in before), letters, known)
            text = self._rescorer.text_of(scores, NUM_TEXTS, NUM_PREFIXES, *texts)
        words = align_words(self._rescorer.lexicon, scores, text, self._slot_seconds)
        timed = [replace(one, start_s=begin + one.start_s, end_s=min(begin + one.end_s, self._heard)) for one in words]
        num_spoken = np.cumsum([len(spoken_form(one.text).split()) for one in timed])
        return timed[int((num_spoken <= len(known.split())).sum()) :]

    def _final_words(self) -> tuple[list[Word], list[Word]]:
        """Return the final words of this utterance: those that the language model reads, and those that are heard again."""
        edge = max(self._final_end - REREAD_SECONDS, self._first / self._rate)
        return [one for one in self._said if one.start_s < edge], [one for one in self._said if one.start_s >= edge]

    def _forget(self) -> None:
        """Let go of the sound that no later look needs, so that whole steps are left."""
        rest = len(self._kept) % self._step_samples  # none but at the end
        needed = max(self._final_end - BEFORE_SECONDS, self._heard - MAX_NEW_SECONDS - BEFORE_SECONDS)
        steps = max((int(needed * self._rate) - self._first - rest) // self._step_samples, 0)
        forgotten = rest + steps * self._step_samples
        self._kept = self._kept[forgotten:]
        self._first += forgotten


__all__ = ["STEP_SECONDS", "LiveTranscriber", "LiveUpdate"]
