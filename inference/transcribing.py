"""
Transcripts of many recordings of any length: windows of all of them in batches of like length, in bounded memory.

Which windows share a batch follows from the recordings and settings alone, so that a run which was killed and given again
computes the same batches, and ends with the same bytes.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.checkpoints import fingerprint
from audiollm.interruption import check_interrupted
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, StoppingCriteriaList

from .answering import ask
from .audio_blocks import header_seconds, local_file, read_blocks
from .certainty import Certainty
from .ctc_rescoring import CtcRescorer, default_ctc_weight
from .long_audio import Window, cut_into_windows
from .partial_transcripts import PartialTranscript, content_checksum
from .session import model_lock
from .streaming import StopWhenSet
from .transcripts import Passage, Skipped, Transcript, add_skipped
from .voice_activity import RISE_DB

TRANSCRIBE_PROMPT = "<audio>\nTranscribe the speech."
#: Nobody speaks faster, in any script, so that a loop in a short window soon ends; what an answer may hold besides.
MAX_TOKENS_PER_SECOND, SPARE_TOKENS = 25, 16
#: Audio that is held, to be sorted by length: ten minutes are 38 MB. More where two batches are longer.
POOL_SECONDS, POOL_BATCHES = 600, 2
#: How much of what was said before is carried over.
CONTEXT_CHARACTERS = 200
CONTEXT_PROMPT = "Before this was said: {context}\n"
#: Why what the model was not sure of is left out.
UNSURE = "the model is not sure of any words"
#: Raise it when a change here changes what is written: partial transcripts are then begun anew.
TRANSCRIBING_REVISION = 1


@dataclass(frozen=True)
class TranscribingSettings:
    """
    What decides a transcript, beside model and recording.

    Attributes:
        prompt: the question about each window, with one `<audio>` or none.
        window_seconds: longest window. A model hears best what is as long as what it was trained on; of 69 prompts in a
            row the demo's model, trained on single ones, makes 0.26 word errors in windows of 5 s, 0.72 of 10 and 1.18 of 20.
        voice_activity: leave out what holds no voice; see [`voice_activity.detect_voice`] for `voice_rise_db`.
        batch_size: windows at a time.
        max_new_tokens: bound on what is written of one window, which for short ones is lower.
        carry_context: show the model the end of what was said in the window before. Only for models that were trained so:
            the demo's makes 0.97 word errors with it, on the same prompts.
        static_cache: keys and values in memory of a fixed size, with which transformers compiles the model on a GPU. On a
            CPU nothing is compiled, and nothing gained.
        min_logprob: leave out windows whose words the model was less sure of: the mean log-probability of their tokens. For
            what sounds like speech to the gate, and is none: `benchmarks/no_speech.py` says what it keeps out and costs.
        ctc_weight: weight of CTC beside the language model in n-best rescoring; 0 keeps the language model's greedy
            transcript. None is [`audiollm.inference.ctc_rescoring.default_ctc_weight`]: on where the checkpoint has CTC posteriors.
    """

    prompt: str = TRANSCRIBE_PROMPT
    window_seconds: float = 5.0
    voice_activity: bool = True
    voice_rise_db: float = RISE_DB
    batch_size: int = 8
    max_new_tokens: int = 448
    carry_context: bool = False
    static_cache: bool = False
    min_logprob: float | None = None
    ctc_weight: float | None = None


@dataclass(frozen=True)
class Failure:
    """A recording that cannot be transcribed, and why."""

    audio: str
    reason: str


class TranscribingStopped(RuntimeError):
    """Somebody has stopped it; what was done is kept where a partial transcript is."""


@dataclass(eq=False)
class _Job:
    """One recording on its way."""

    audio: str
    partial_path: Path | None
    made_with: dict[str, Any] = field(default_factory=dict)
    partial: PartialTranscript | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    heard: dict[tuple[int, int], tuple[str, bool]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    samples: int = 0
    is_read: bool = False
    error: str = ""

    @property
    def is_done(self) -> bool:
        return bool(self.error) or (self.is_read and len(self.heard) == len(self.spans))


class Transcriber:
    """
    Transcribes recordings, greedily or by CTC as well, with partial results on disk.

    Args:
        model, processor: a pair that belongs together.
        settings: see [`TranscribingSettings`].
        model_name: what the model is called in a transcript's settings.
        progress: shows a bar of audio seconds, with speed as a multiple of real time, and time left.

    Raises:
        ValueError: `ctc_weight` is above 0, and the model has no CTC posteriors.
    """

    def __init__(
        self,
        model,
        processor,
        settings: TranscribingSettings | None = None,
        model_name: str = "",
        progress: bool = True,
    ):
        self.model, self.processor, self.progress = model.eval(), processor, progress
        settings, self.model_name = settings or TranscribingSettings(), model_name
        if settings.ctc_weight is None:  # a cache of fixed size holds one answer a window
            weight = 0.0 if settings.static_cache else default_ctc_weight(model.config)
            settings = replace(settings, ctc_weight=weight)
        self.settings = settings
        self._made_with = {
            "weights": fingerprint(model.state_dict()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "revision": TRANSCRIBING_REVISION,
            **asdict(self.settings),
        }
        self._cache_options = {"cache_implementation": "static"} if self.settings.static_cache else {}
        ends = model.generation_config.eos_token_id
        self._end_ids = set(ends if isinstance(ends, (list, tuple)) else [ends])
        weight = self.settings.ctc_weight
        self._rescorer = CtcRescorer(model, processor.tokenizer, weight) if weight else None
        self._bar: Any = None
        self._jobs: list[_Job] = []
        self._began = self._seconds_heard = self._seconds_done = 0.0
        self._seconds_total: float | None = None
        self._on_progress: Callable[[float, float | None], None] | None = None
        self._on_passage: Callable[[Passage], None] | None = None
        self._num_told = 0
        self._stop = StopWhenSet(None)

    def transcribe(
        self,
        recordings: Sequence[str],
        partial_paths: Sequence[Path | None] | None = None,
        on_progress: Callable[[float, float | None], None] | None = None,
        stop: threading.Event | None = None,
        on_passage: Callable[[Passage], None] | None = None,
    ) -> Iterator[Transcript | Failure]:
        """
        A transcript for each recording, in the given order, as soon as it and those before are done; a [`Failure`] for
        one that cannot be used.

        Args:
            recordings: paths or URLs.
            partial_paths: where to keep what is done of each; see [`PartialTranscript`]. None keeps nothing.
            on_progress: called after each batch, and each stretch without a voice, with the seconds of audio that are done
                and all there are, or None where that is not known beforehand. What it raises ends the transcribing.
            stop: ends it within a token once it is set, from any thread.
            on_passage: called with each passage of a single recording, in order of time, as soon as its batch is done.
                Windows then go in that order, rather than those of ten minutes sorted by length.

        Raises:
            TranscribingStopped: `stop` is set.
            OSError: a partial transcript cannot be written.
        """
        paths = list(partial_paths) if partial_paths is not None else [None] * len(recordings)
        self._jobs = [_Job(audio, path) for audio, path in zip(recordings, paths, strict=True)]
        lengths = [header_seconds(audio) for audio in recordings]
        total = None if None in lengths else sum(filter(None, lengths))
        steps = self._with_context if self.settings.carry_context else self._sorted_by_length
        done = 0
        self._began, self._seconds_heard = time.monotonic(), 0.0
        self._seconds_done, self._seconds_total, self._on_progress = 0.0, total, on_progress
        self._stop, self._on_passage, self._num_told = StopWhenSet(stop), on_passage, 0
        with tqdm(total=total, desc="Transcribing", disable=not self.progress, bar_format=_bar_format(total)) as bar:
            self._bar = bar
            for _ in steps():
                while done < len(self._jobs) and self._jobs[done].is_done:
                    job, self._jobs[done] = self._jobs[done], _Job("", self._jobs[done].partial_path, error="done")
                    yield self._result(job)
                    done += 1

    def remove_partial(self) -> None:
        """Removes what was kept of the recordings, once nothing more is wanted of them."""
        for job in self._jobs:
            if job.partial_path is not None:
                job.partial_path.unlink(missing_ok=True)

    # ---- which windows go together -------------------------------------------------------------------------------

    def _sorted_by_length(self) -> Iterator[None]:
        """Windows of all recordings one after the other, those of ten minutes sorted by length."""
        settings, rate = self.settings, self.processor.sampling_rate
        pool_seconds = max(POOL_SECONDS, POOL_BATCHES * settings.batch_size * settings.window_seconds)
        pool: list[tuple[_Job, Window]] = []
        held = 0
        for job in self._jobs:
            for window in self._windows(job):
                pool.append((job, window))
                held += window.end - window.start
                if held >= pool_seconds * rate or (self._on_passage is not None and len(pool) == settings.batch_size):
                    yield from self._hear_pool(pool)
                    pool, held = [], 0
            yield
        yield from self._hear_pool(pool)

    def _hear_pool(self, pool: list[tuple[_Job, Window]]) -> Iterator[None]:
        pool = sorted(pool, key=lambda each: each[1].end - each[1].start)
        for first in range(0, len(pool), self.settings.batch_size):
            self._hear_batch(pool[first : first + self.settings.batch_size])
            yield

    def _with_context(self) -> Iterator[None]:
        """The next window of several recordings at a time, after what was said in their last ones."""
        for first in range(0, len(self._jobs), self.settings.batch_size):
            streams = [(job, self._windows(job)) for job in self._jobs[first : first + self.settings.batch_size]]
            while streams:
                batch = [(job, window, stream) for job, stream in streams if (window := next(stream, None))]
                if batch:  # none is left where all recordings end together
                    self._hear_batch([(job, window) for job, window, _ in batch])
                streams = [(job, stream) for job, _, stream in batch]
                yield

    def _windows(self, job: _Job) -> Iterator[Window]:
        """The windows of a recording in which something is to be heard; notes the others, and what is wrong with it."""
        settings, rate = self.settings, self.processor.sampling_rate
        try:
            with local_file(job.audio) as path:
                job.made_with = {"audio_sha256": content_checksum(path), **self._made_with}
                if job.partial_path is not None:
                    job.partial = PartialTranscript(job.partial_path, job.made_with)
                blocks = read_blocks(path, rate, job.audio)
                for window in cut_into_windows(
                    blocks, rate, settings.window_seconds, settings.voice_activity, settings.voice_rise_db
                ):
                    job.samples = window.end
                    if window.waveform is None:
                        add_skipped(job.skipped, Skipped(window.start_s, window.end_s, window.reason))
                        self._advance(window)
                        self._tell()
                        continue
                    job.spans.append((window.start, window.end))
                    yield window
            job.is_read = True
        except (ValueError, OSError) as error:  # AudioError is a ValueError
            job.error = str(error) or type(error).__name__

    # ---- hearing -------------------------------------------------------------------------------------------------

    def _hear_batch(self, batch: list[tuple[_Job, Window]]) -> None:
        """Hears windows, unless all of them are known: which ones share a batch must not depend on what is known."""
        check_interrupted()
        known = [_recall(job, window) for job, window in batch]
        if None in known:
            waveforms = [window.waveform for _, window in batch]
            contexts = [self._context(job) for job, _ in batch]
            heard = self._hear([each for each in waveforms if each is not None], contexts)
            known = [old or new for old, new in zip(known, heard)]
            self._seconds_heard += sum(window.end_s - window.start_s for _, window in batch)
        new_of: dict[_Job, dict[tuple[int, int], tuple[str, bool]]] = {}
        for (job, window), result in zip(batch, known):
            assert result is not None
            if _recall(job, window) is None:
                new_of.setdefault(job, {})[window.start, window.end] = result
            job.heard[window.start, window.end] = result
            self._advance(window)
        for job, new in new_of.items():
            if job.partial is not None:
                job.partial.add(new)
        self._tell_passages(batch[0][0])
        speed = self._seconds_heard / (time.monotonic() - self._began)
        self._bar.set_postfix_str(f"{speed:.1f} x real time")
        self._tell()

    def _tell_passages(self, job: _Job) -> None:
        """Call `on_passage` with what has been transcribed up to the first window that has not."""
        while self._on_passage is not None and self._num_told < len(job.spans):
            span = job.spans[self._num_told]
            if span not in job.heard:
                return
            rate = self.processor.sampling_rate
            self._on_passage(Passage(span[0] / rate, span[1] / rate, *job.heard[span]))
            self._num_told += 1

    def _refuse_when_stopped(self) -> None:
        if self._stop.is_set():
            raise TranscribingStopped("The transcription was stopped.")

    def _tell(self) -> None:
        self._refuse_when_stopped()
        if self._on_progress is not None:
            self._on_progress(self._seconds_done, self._seconds_total)

    def _advance(self, window: Window) -> None:
        self._seconds_done += window.end_s - window.start_s
        self._bar.update(window.end_s - window.start_s)

    def _context(self, job: _Job) -> str:
        if not self.settings.carry_context or len(job.spans) < 2:
            return ""
        return " ".join(job.heard[job.spans[-2]][0].split())[-CONTEXT_CHARACTERS:]

    @torch.inference_mode()
    def _hear(self, waveforms: list[np.ndarray], contexts: list[str]) -> list[tuple[str, bool]]:
        """Transcripts of waveforms `(samples,)`, and whether each was stopped at its bound on new tokens."""
        rate, settings = self.processor.sampling_rate, self.settings
        bounds = [
            min(settings.max_new_tokens, SPARE_TOKENS + MAX_TOKENS_PER_SECOND * len(waveform) // rate)
            for waveform in waveforms
        ]
        prompts = [_with_context(settings.prompt, context) for context in contexts]
        conversations = [ask(prompt, waveform) for prompt, waveform in zip(prompts, waveforms)]
        inputs = self.processor.apply_chat_template(
            conversations, tokenize=True, add_generation_prompt=True, padding_side="left"
        ).to(self.model.device)
        if self._rescorer is not None:
            return self._choose(inputs, bounds)
        options: dict[str, Any] = {"max_new_tokens": max(bounds), "do_sample": False, **self._cache_options}
        certainty = Certainty()
        with model_lock(self.model):
            output = self.model.generate(
                **inputs,
                stopping_criteria=StoppingCriteriaList([self._stop]),
                logits_processor=LogitsProcessorList([certainty]),
                **options,
            )
        self._refuse_when_stopped()
        results = []
        # Each by its own bound, so that what is written does not depend on what else is in the batch.
        for index, (row, bound) in enumerate(zip(output[:, inputs["input_ids"].shape[1] :].tolist(), bounds)):
            kept = row[:bound]
            length = next((place + 1 for place, token in enumerate(kept) if token in self._end_ids), len(kept))
            text = self.processor.decode(kept, skip_special_tokens=True).strip()
            is_cut_off = len(kept) == bound and not self._end_ids & set(kept)
            if settings.min_logprob is not None and certainty.mean_logprob(index, length) < settings.min_logprob:
                text, is_cut_off = "", False
            results.append((text, is_cut_off))
        return results

    def _choose(self, inputs, bounds: list[int]) -> list[tuple[str, bool]]:
        """As `_hear`, of what the language model and CTC find likeliest together."""
        assert self._rescorer is not None
        with model_lock(self.model):
            encoded, lengths = self.model.model.encode_audio(inputs["input_features"], inputs["input_features_mask"])
            best = self._rescorer.choose(
                inputs["input_ids"], inputs["attention_mask"], encoded, lengths, bounds, stop=self._stop
            )
        self._refuse_when_stopped()
        least = self.settings.min_logprob
        unsure = [least is not None and one.lm_logprob < least * one.num_tokens for one in best]
        return [("", False) if skip else (one.text, not one.is_finished) for one, skip in zip(best, unsure)]

    def _result(self, job: _Job) -> Transcript | Failure:
        if job.error:
            return Failure(job.audio, job.error)
        rate = self.processor.sampling_rate
        passages = [Passage(start / rate, end / rate, *job.heard[start, end]) for start, end in job.spans]
        skipped = job.skipped
        if self.settings.min_logprob is not None:
            unsure = [Skipped(one.start_s, one.end_s, UNSURE) for one in passages if not one.text]
            passages = [one for one in passages if one.text]
            skipped = []
            for one in sorted([*job.skipped, *unsure], key=lambda each: each.start_s):
                add_skipped(skipped, one)
        settings = {"model": self.model_name, **job.made_with}
        return Transcript(job.audio, job.samples / rate, passages, skipped, settings)


def _recall(job: _Job, window: Window) -> tuple[str, bool] | None:
    return None if job.partial is None else job.partial.get(window.start, window.end)


def _with_context(prompt: str, context: str) -> str:
    """The prompt after what was said before; `<audio>` in that is words, and stands for no recording."""
    if not context:
        return prompt
    question = prompt if "<audio>" in prompt else f"<audio>\n{prompt}"
    return CONTEXT_PROMPT.format(context=context.replace("<audio>", "")) + question


def _bar_format(total: float | None) -> str:
    if total is None:
        return "{desc}: {n:.0f} s of audio [{elapsed}, {postfix}]"
    return "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}, {postfix}]"


__all__ = ["TRANSCRIBE_PROMPT", "Failure", "Transcriber", "TranscribingSettings", "TranscribingStopped"]
