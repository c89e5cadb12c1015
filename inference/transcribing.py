"""
Transcripts of recordings of any length, in bounded memory: windows of all of them in batches of like length.

The recordings and settings alone decide which windows share a batch. A run that was killed and started again computes the
same batches, and ends with the same bytes.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from audiollm.checkpoints import fingerprint
from audiollm.command_line.files import Journal, sha256_of
from audiollm.command_line.interruption import check_interrupted
from audiollm.command_line.machine import give_back_freed_memory
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import logging

from .answer_ends import generate_to_ends
from .answering import TRANSCRIBE_PROMPT, ask
from .ctc_alignment import (
    SECONDS_PER_FRAME,
    align_words,
    check_readout,
    spoken_lexicon,
)
from .ctc_rescoring import STORED_SETTINGS, WRITTEN_CANDIDATE, CtcRescorer, default_ctc_weight, writes_candidates
from .phrases import WINDOW_STEP, Heard, Span, hear_phrases, padded_to_step, phrase_bound, phrase_inputs, write_phrases
from .recordings import header_seconds, local_file, read_blocks
from .session import model_lock
from .streaming import StopWhenSet
from .transcripts import SEGMENT, TIMESTAMPS, WORD, Passage, Skipped, Transcript, Word, add_skipped
from .windows import RISE_DB, Window, cut_into_windows

logger = logging.get_logger(__name__)

#: Audio that is held to be sorted by length: ten minutes are 38 MB. More where two batches are longer.
POOL_SECONDS, POOL_BATCHES = 600, 2
#: Longest window by default: of a model that has CTC posteriors, and of one that has none.
WINDOW_SECONDS, SHORT_WINDOW_SECONDS = 25.0, 5.0
#: Audio that the encoder hears in one pass.
ENCODED_SECONDS = 60.0
#: Shorter windows would hold no phrase.
MIN_WINDOW_SECONDS = 1.0
#: Reason for leaving out a window below `min_logprob`.
UNSURE = "the model is not sure of any words"
#: Raise it when a change here changes transcripts: partial transcripts are then begun anew.
TRANSCRIBING_REVISION = 7
#: The settings that a checkpoint's generation configuration may hold, and their kinds.
STORED_KINDS: dict[str, type | tuple[type, ...]] = {
    "prompt": str,
    "window_seconds": (int, float),
    "max_new_tokens": int,
    WRITTEN_CANDIDATE: bool,
}
#: Tokens of the Whispers that know other languages than English; those that do not have fewer.
MULTILINGUAL_VOCABULARY = 51_865
#: Setting of former versions, which is passed over.
FORMER_SETTING = "carry_context"


class Phrase(NamedTuple):
    """
    Text of a part of a window.

    Attributes:
        is_cut_off: whether it was stopped at its bound on new tokens.
        start_s, end_s: seconds from the window's beginning; the end is None where it is that of the window.
        words: with times from the window's beginning.
    """

    text: str
    is_cut_off: bool
    start_s: float = 0.0
    end_s: float | None = None
    words: tuple[Word, ...] = ()

    def retold(self, text: str) -> "Phrase":
        """Return the phrase with other marks and capitals."""
        words = self.words
        if len(words) == len(text.split()):
            words = tuple(replace(word, text=form) for word, form in zip(words, text.split()))
        return self._replace(text=text, words=words)

    def later(self, start_s: float, end_s: float | None) -> "Phrase":
        """Return the phrase of a window in which it begins and ends at these times."""
        words = (replace(one, start_s=start_s + one.start_s, end_s=start_s + one.end_s) for one in self.words)
        return self._replace(start_s=start_s, end_s=end_s, words=tuple(words))


@dataclass(frozen=True)
class TranscribingSettings:
    """
    Settings that decide a transcript, beside model and recording.

    Attributes:
        prompt: the question about each window, with one `<audio>` or none.
        language: of the speech, a name or a code such as "de", which is said in the question.
        window_seconds: longest window. A checkpoint may hold its own value; see [`stored_settings`]. None is
            [`default_window_seconds`].
        voice_activity: leave out stretches without a voice; see [`windows.detect_voice`] for `voice_rise_db`.
        batch_size: windows at a time.
        max_new_tokens: bound on the text of one phrase; that of short ones is lower.
        min_logprob: leave out windows whose tokens have a lower mean log-probability (with `ctc_weight`, CTC's of their word
            pieces): sounds that the gate takes for speech.
        ctc_weight: weight of CTC in n-best rescoring of candidates of the language model and of CTC; 0 decodes greedily.
            None is `ctc_rescoring.default_ctc_weight`: on where the checkpoint has CTC posteriors.
        context: words and phrases that may be said, such as names, to favour where they are heard; see [`context_words`]. Only
            with `ctc_weight`.
        timestamps: "segment" for the times of windows, "word" for those of words as well, with their confidence, by CTC.
    """

    prompt: str = TRANSCRIBE_PROMPT
    language: str | None = None
    window_seconds: float | None = None
    voice_activity: bool = True
    voice_rise_db: float = RISE_DB
    batch_size: int = 8
    max_new_tokens: int = 448
    min_logprob: float | None = None
    ctc_weight: float | None = None
    timestamps: str = SEGMENT
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected 1 or more windows at a time.")


def default_window_seconds(config) -> float:
    """
    Return the longest window of a model with this configuration: long where CTC finds the phrases in it, or else short.

    Without, a model hears windows best that are as long as its training data; see [`stored_settings`].
    """
    return WINDOW_SECONDS if config.projector_readout == "pieces" else SHORT_WINDOW_SECONDS


def stored_settings(generation_config: Any) -> dict[str, Any]:
    """
    Return the settings of transcription that a checkpoint brings along.

    They are the field `audiollm_transcribe` of its generation configuration, such as `{"window_seconds": 30}`, with any
    of `prompt`, `window_seconds`, `max_new_tokens` and `written_candidate`; the last is none of [`TranscribingSettings`] and is
    left out here, see [`ctc_rescoring.writes_candidates`].

    Raises:
        ValueError: the field holds something else.
    """
    stored = getattr(generation_config, STORED_SETTINGS, None) or {}
    if not isinstance(stored, Mapping):
        raise ValueError(f"{STORED_SETTINGS} of the generation configuration is {stored!r}; expected an object.")
    stored = {name: value for name, value in stored.items() if name != FORMER_SETTING}
    for name, value in stored.items():
        kind = STORED_KINDS.get(name)
        if kind is None:
            known = ", ".join(STORED_KINDS)
            raise ValueError(
                f"{STORED_SETTINGS} of the generation configuration has {name!r}; expected some of {known}."
            )
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{STORED_SETTINGS} of the generation configuration: {name} cannot be {value!r}.")
    return {name: value for name, value in stored.items() if name != WRITTEN_CANDIDATE}


@dataclass(frozen=True)
class Failure:
    """A recording that cannot be transcribed, and the reason."""

    audio: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """Seconds of audio that are done, and of all; None where that is not known beforehand."""

    done_s: float
    total_s: float | None


class TranscribingStopped(RuntimeError):
    """Somebody has stopped the transcribing. What was done is kept where there is a partial transcript."""


class PartialTranscript:
    """
    Journal of one recording's windows, from which a killed command goes on.

    Its first line says what decides the transcript, `made_with`, with the recording's checksum; a journal of others is begun
    anew. Two processes may share it: lines are appended whole, and the first to finish removes it.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]):
        self.journal = Journal(path)
        self._header: dict[str, Any] = {"made_with": json.loads(json.dumps(made_with))}
        self._entries: dict[tuple[int, int], dict[str, Any]] = {}
        for line in self.journal.lines() if self._is_begun() else ():
            if line.entry is not None and _is_window(line.entry):
                self._entries[line.entry["start"], line.entry["end"]] = line.entry

    def _is_begun(self) -> bool:
        """Return whether there is a file of this recording and these settings; another process may have begun it."""
        first = next(self.journal.lines(), None)
        return first is not None and first.entry == self._header

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, start: int, end: int) -> list[Phrase] | None:
        """Return the phrases of the window between two samples; None if they are not known."""
        entry = self._entries.get((start, end))
        if entry is None:
            return None
        return [
            Phrase(text, is_cut_off, start_s, end_s, tuple(Word(*word) for word in words))
            for text, is_cut_off, start_s, end_s, words in entry["phrases"]
        ]

    def add(self, windows: Mapping[tuple[int, int], Sequence[Phrase]]) -> None:
        """Write windows by their first and last sample; they are on disk when this returns."""
        new: list[dict[str, Any]] = []
        for (start, end), phrases in windows.items():
            told = [[*one[:-1], [list(astuple(word)) for word in one.words]] for one in phrases]
            new.append({"start": start, "end": end, "phrases": told})
            self._entries[start, end] = new[-1]
        if not self._is_begun():
            self.journal.path.unlink(missing_ok=True)
            new.insert(0, self._header)
        self.journal.append(new)


def _is_window(entry: dict[str, Any]) -> bool:
    kinds = {"start": int, "end": int, "phrases": list}
    return all(isinstance(entry.get(name), kind) for name, kind in kinds.items())


class Certainty(LogitsProcessor):
    """
    Record the log-probability of the likeliest token at each step, which greedy decoding takes.

    `output_scores` would keep that of each token of the vocabulary.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores `(batch, vocab_size)` as they are."""
        self._steps.append(scores.float().log_softmax(dim=-1).amax(dim=-1))
        return scores

    def mean_logprob(self, row: int, tokens: int) -> float:
        """Return the mean over the first tokens of a row."""
        return float(torch.stack(self._steps[:tokens])[:, row].mean())


@dataclass(eq=False)
class _Job:
    """One recording on its way."""

    audio: str
    partial_path: Path | None
    made_with: dict[str, Any] = field(default_factory=dict)
    partial: PartialTranscript | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    heard: dict[tuple[int, int], Sequence[Phrase]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    samples: int = 0
    told: int = 0
    is_read: bool = False
    error: str = ""

    @property
    def is_done(self) -> bool:
        return bool(self.error) or (self.is_read and len(self.heard) == len(self.spans))


class Transcriber:
    """
    Transcribe recordings, greedily or with CTC rescoring, with partial results on disk.

    Args:
        model, processor: a pair that belongs together.
        settings: those of the checkpoint by default.
        model_name: name of the model in a transcript's settings.
        progress: show a bar of audio seconds, with speed as a multiple of real time, and time left.

    Raises:
        ValueError: the model has no CTC posteriors and the settings need them, or windows are shorter than a phrase or longer
            than the encoder's.
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
        settings = settings or TranscribingSettings(**stored_settings(model.generation_config))
        if settings.ctc_weight is None:
            settings = replace(settings, ctc_weight=default_ctc_weight(model.config))
        longest_window_s = processor.window_samples / processor.sampling_rate
        self._window_s = (
            settings.window_seconds
            if settings.window_seconds is not None
            else min(default_window_seconds(model.config), longest_window_s)
        )
        settings = replace(settings, window_seconds=self._window_s)
        check_window(self._window_s, longest_window_s)
        check_timestamps(settings.timestamps, model.config)
        self.settings = settings
        self.model_name = model_name
        self._made_with = {
            "weights": fingerprint(model.state_dict()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "revision": TRANSCRIBING_REVISION,
            WRITTEN_CANDIDATE: writes_candidates(model.generation_config),
            **asdict(self.settings),
        }
        ends = model.generation_config.eos_token_id
        self._end_ids = set(ends if isinstance(ends, (list, tuple)) else [ends])
        chosen = self.settings.ctc_weight
        if self.settings.context and not chosen:
            raise ValueError(
                "Context words need CTC posteriors and a ctc_weight above 0: they are favoured in rescoring."
            )
        rescorer = CtcRescorer(model, processor.tokenizer, chosen, self.settings.context) if chosen else None
        self._rescorer = rescorer
        self._question = settings.prompt
        if settings.language is not None:
            self._question += f" The language is {language_name(settings.language, model.config).title()}."
        usual = stored_settings(model.generation_config).get("prompt", TRANSCRIBE_PROMPT)
        if rescorer is not None and not writes_candidates(model.generation_config) and self._question != usual:
            logger.warning_once(
                "prompt and language change nothing here: the checkpoint's transcripts are what CTC hears. With ctc_weight 0, "
                "the language model writes them."
            )
        self._lexicon = spoken_lexicon(model, processor.tokenizer) if self.settings.timestamps == WORD else None
        self._bar: Any = None
        self._jobs: list[_Job] = []
        self._began = self._seconds_heard = self._seconds_done = 0.0
        self._stop = StopWhenSet(None)

    def transcribe(
        self,
        recordings: Sequence[str],
        partial_paths: Sequence[Path | None] | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Transcript | Failure]:
        """
        Yield a transcript for each recording, in the given order, or a [`Failure`] for one that cannot be used.

        Args:
            recordings: paths or URLs.
            partial_paths: where to keep the windows of each; see [`PartialTranscript`]. None keeps nothing.
            stop: ends it within a token once it is set, from any thread.

        Raises:
            TranscribingStopped: `stop` is set.
            OSError: a partial transcript cannot be written.
        """
        for event in self.events(recordings, partial_paths, stop):
            if isinstance(event, (Transcript, Failure)):
                yield event

    def events(
        self,
        recordings: Sequence[str],
        partial_paths: Sequence[Path | None] | None = None,
        stop: threading.Event | None = None,
        in_order: bool = False,
    ) -> Iterator[Progress | Passage | Transcript | Failure]:
        """
        Yield what [`transcribe`] does, and in between passages and, after each batch, the progress.

        Passages of a recording come in order of time, up to the first window that is not transcribed yet.

        Args:
            in_order: take windows in order of time, so that passages come early, instead of sorting those of ten minutes by
                length.

        Raises: as [`transcribe`].
        """
        paths = list(partial_paths) if partial_paths is not None else [None] * len(recordings)
        self._jobs = [_Job(audio, path) for audio, path in zip(recordings, paths, strict=True)]
        lengths = [header_seconds(audio) for audio in recordings]
        total = None if None in lengths else sum(filter(None, lengths))
        done = 0
        self._began, self._seconds_heard, self._seconds_done = time.monotonic(), 0.0, 0.0
        self._stop = StopWhenSet(stop)
        with tqdm(total=total, desc="Transcribing", disable=not self.progress, bar_format=_bar_format(total)) as bar:
            self._bar = bar
            for _ in self._sorted_by_length(in_order):
                self._refuse_when_stopped()
                yield Progress(self._seconds_done, total)
                while done < len(self._jobs):
                    job = self._jobs[done]
                    yield from self._new_passages(job)
                    if not job.is_done:
                        break
                    self._jobs[done] = _Job("", job.partial_path, error="done")  # lets its windows go
                    yield self._result(job)
                    done += 1

    def remove_partial(self) -> None:
        """Remove the partial transcripts of all recordings."""
        for job in self._jobs:
            if job.partial_path is not None:
                job.partial_path.unlink(missing_ok=True)

    # ---- batches -------------------------------------------------------------------------------------------------

    def _sorted_by_length(self, in_order: bool) -> Iterator[None]:
        """Transcribe windows of all recordings one after the other; those of ten minutes are sorted by length."""
        settings, rate = self.settings, self.processor.sampling_rate
        pool_seconds = max(POOL_SECONDS, POOL_BATCHES * settings.batch_size * self._window_s)
        most = settings.batch_size if in_order else int(pool_seconds * rate)
        pool: list[tuple[_Job, Window]] = []
        held = 0
        for job in self._jobs:
            for window in self._windows(job):
                pool.append((job, window))
                held += window.end - window.start
                if held >= pool_seconds * rate or len(pool) >= most:
                    yield from self._hear_pool(pool)
                    pool, held = [], 0
            yield
        yield from self._hear_pool(pool)

    def _hear_pool(self, pool: list[tuple[_Job, Window]]) -> Iterator[None]:
        pool = sorted(pool, key=lambda each: each[1].end - each[1].start)
        for first in range(0, len(pool), self.settings.batch_size):
            self._hear_batch(pool[first : first + self.settings.batch_size])
            give_back_freed_memory()
            yield

    def _windows(self, job: _Job) -> Iterator[Window]:
        """Yield the windows of a recording that may hold speech; note stretches without, and faults of the recording."""
        settings, rate = self.settings, self.processor.sampling_rate
        try:
            with local_file(job.audio) as path:
                job.made_with = {"audio_sha256": sha256_of(path), **self._made_with}
                if job.partial_path is not None:
                    job.partial = PartialTranscript(job.partial_path, job.made_with)
                blocks = read_blocks(path, rate, job.audio)
                for window in cut_into_windows(
                    blocks, rate, self._window_s, settings.voice_activity, settings.voice_rise_db
                ):
                    job.samples = window.end
                    if window.waveform is None:
                        add_skipped(job.skipped, Skipped(window.start_s, window.end_s, window.reason))
                        self._advance(window)
                        self._refuse_when_stopped()
                        continue
                    job.spans.append((window.start, window.end))
                    yield window
            job.is_read = True
        except (ValueError, OSError) as error:  # AudioError is a ValueError
            job.error = str(error) or type(error).__name__

    # ---- one batch -----------------------------------------------------------------------------------------------

    def _hear_batch(self, batch: list[tuple[_Job, Window]]) -> None:
        """Transcribe windows, unless all are known: what is known must not decide which windows share a batch."""
        check_interrupted()
        known = [_recall(job, window) for job, window in batch]
        if None in known:
            heard = self._hear([window.waveform for _, window in batch if window.waveform is not None])
            known = [old or new for old, new in zip(known, heard)]
            self._seconds_heard += sum(window.end_s - window.start_s for _, window in batch)
        new_of: dict[_Job, dict[tuple[int, int], Sequence[Phrase]]] = {}
        for (job, window), result in zip(batch, known):
            assert result is not None
            if _recall(job, window) is None:
                new_of.setdefault(job, {})[window.start, window.end] = result
            job.heard[window.start, window.end] = result
            self._advance(window)
        for job, new in new_of.items():
            if job.partial is not None:
                job.partial.add(new)
        speed = self._seconds_heard / (time.monotonic() - self._began)
        self._bar.set_postfix_str(f"{speed:.1f} x real time", refresh=False)

    def _new_passages(self, job: _Job) -> Iterator[Passage]:
        """Yield passages that have not been given, up to the first window that is not transcribed yet."""
        while job.told < len(job.spans) and job.spans[job.told] in job.heard:
            yield from self._passages(job, job.spans[job.told])
            job.told += 1

    def _passages(self, job: _Job, span: tuple[int, int]) -> list[Passage]:
        """Return the phrases of a window with times from the recording's beginning."""
        begin_s, window_end_s = (sample / self.processor.sampling_rate for sample in span)
        passages = []
        for text, is_cut_off, start_s, phrase_end_s, words in job.heard[span]:
            end_s = window_end_s if phrase_end_s is None else begin_s + phrase_end_s
            timed = (
                replace(one, start_s=round(begin_s + one.start_s, 3), end_s=round(min(begin_s + one.end_s, end_s), 3))
                for one in words
            )
            passages.append(Passage(begin_s + start_s, end_s, text, is_cut_off, tuple(timed)))
        return passages

    def _refuse_when_stopped(self) -> None:
        if self._stop.is_set():
            raise TranscribingStopped("The transcription was stopped.")

    def _advance(self, window: Window) -> None:
        self._seconds_done += window.end_s - window.start_s
        self._bar.update(window.end_s - window.start_s)

    @torch.inference_mode()
    def _hear(self, waveforms: list[np.ndarray]) -> list[list[Phrase]]:
        """Return the phrases of windows, waveforms `(samples,)`: the first ones of all together, then the second ones."""
        conversations = [ask(self._question, waveform) for waveform in waveforms]
        inputs = self.processor.apply_chat_template(
            conversations, tokenize=True, add_generation_prompt=True, padding_side="left"
        ).to(self.model.device)
        with model_lock(self.model):
            most = self.model.model.audio_tower.max_input_frames
            features = padded_to_step(inputs["input_features"], 2, WINDOW_STEP, most)
            mask = padded_to_step(inputs["input_features_mask"], 1, WINDOW_STEP, most)
            each = max(
                1, int(ENCODED_SECONDS / self._window_s)
            )  # intermediate results of 200 s would be half a gigabyte
            parts = zip(features.split(each), mask.split(each))
            encoded, lengths = map(torch.cat, zip(*(self.model.model.encode_audio(*part) for part in parts)))
            spans, heard_by_ctc = hear_phrases(self.model, encoded, lengths)
        stack = self.model.config.stack_factor
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]

        def write(windows: list[int], parts: list[Span], before: list[list[Phrase]]) -> list[Phrase]:
            frames = [encoded[window, first:end] for window, (first, end) in zip(windows, parts)]
            texts = [" ".join(one.text for one in phrases if one.text) for phrases in before]
            parts_heard = None
            if heard_by_ctc:
                parts_heard = [heard_by_ctc[window].part(span, stack) for window, span in zip(windows, parts)]
            written = self._write([prompts[window] for window in windows], frames, texts, parts_heard)
            self._refuse_when_stopped()
            return [
                phrase.later(
                    first * SECONDS_PER_FRAME, None if end == spans[window][-1][1] else end * SECONDS_PER_FRAME
                )
                for window, (first, end), phrase in zip(windows, parts, written)
            ]

        heard = write_phrases(spans, write)
        return heard if self._rescorer is None else self._punctuated(heard)

    def _punctuated(self, heard: list[list[Phrase]]) -> list[list[Phrase]]:
        """Return the phrases of windows with the marks and capitals that the language model expects."""
        assert self._rescorer is not None
        with model_lock(self.model):
            texts = self._rescorer.punctuated([[one.text for one in phrases] for phrases in heard], self._stop)
        self._refuse_when_stopped()
        return [[one.retold(text) for one, text in zip(*each)] for each in zip(heard, texts)]

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        frames: Sequence[torch.Tensor],
        before: Sequence[str],
        heard: Sequence[Heard] | None,
    ) -> list[Phrase]:
        """
        Return phrases with times from their own beginning.

        Args:
            prompts: token ids, with any number of audio tokens in one place.
            frames: encoder frames `(frames, d_model)`.
            before: text before each phrase, of the same window.
            heard: what CTC hears in each phrase; None of a model without CTC posteriors.
        """
        inputs = phrase_inputs(self.model, self.processor.tokenizer, prompts, frames)
        bounds = [min(self.settings.max_new_tokens, phrase_bound(one)) for one in frames]
        rescores = self._rescorer is not None
        found = self._rescored(inputs, bounds, before, heard) if rescores else self._greedy(inputs, bounds)
        if self._lexicon is None or heard is None:
            return found
        seconds = SECONDS_PER_FRAME * self.model.config.stack_factor
        return [
            one._replace(words=align_words(self._lexicon, row.pieces, one.text, seconds))
            for one, row in zip(found, heard)
        ]

    def _greedy(self, inputs: dict[str, Any], bounds: list[int]) -> list[Phrase]:
        """Return the transcripts that the language model writes."""
        settings = self.settings
        options: dict[str, Any] = {"max_new_tokens": max(bounds), "do_sample": False}
        certainty = Certainty()
        options |= {"stopping_criteria": [self._stop], "logits_processor": LogitsProcessorList([certainty])}
        with model_lock(self.model):  # each row to its own bound, so that its text does not depend on other rows
            rows = generate_to_ends(self.model, inputs, bounds, **options)
        self._refuse_when_stopped()
        results = []
        for index, kept in enumerate(rows):
            length = next((place + 1 for place, token in enumerate(kept) if token in self._end_ids), len(kept))
            text = self.processor.decode(kept, skip_special_tokens=True).strip()
            is_cut_off = not self._end_ids & set(kept)  # at its bound, or in a loop
            if settings.min_logprob is not None and certainty.mean_logprob(index, length) < settings.min_logprob:
                text, is_cut_off = "", False
            results.append(Phrase(text, is_cut_off))
        return results

    def _rescored(
        self, inputs: dict[str, Any], bounds: list[int], before: Sequence[str], heard: Sequence[Heard] | None
    ) -> list[Phrase]:
        """Return the transcripts that the language model and CTC together find likeliest."""
        assert self._rescorer is not None
        with model_lock(self.model):
            best = self._rescorer.best(**inputs, bounds=bounds, stop=self._stop, before=before, heard=heard)
        least = self.settings.min_logprob
        unsure = [least is not None and one.mean_ctc_logprob < least for one in best]
        return [
            Phrase("", False) if skip else Phrase(one.text, not one.is_finished) for one, skip in zip(best, unsure)
        ]

    def _result(self, job: _Job) -> Transcript | Failure:
        if job.error:
            return Failure(job.audio, job.error)
        passages = [passage for span in job.spans for passage in self._passages(job, span)]
        skipped = job.skipped
        if self.settings.min_logprob is not None:
            unsure = [Skipped(one.start_s, one.end_s, UNSURE) for one in passages if not one.text]
            passages = [one for one in passages if one.text]
            skipped = []
            for one in sorted([*job.skipped, *unsure], key=lambda each: each.start_s):
                add_skipped(skipped, one)
        settings = {"model": self.model_name, **job.made_with}
        seconds = job.samples / self.processor.sampling_rate
        return Transcript(job.audio, seconds, passages, skipped, settings, self.settings.timestamps)


def _recall(job: _Job, window: Window) -> Sequence[Phrase] | None:
    return None if job.partial is None else job.partial.get(window.start, window.end)


def check_window(window_seconds: float, longest_window_s: float, name: str = "window_seconds") -> None:
    """
    Raise ValueError where the window is shorter than a phrase, or longer than the encoder's.

    Args:
        name: what the user has set, an option or a field of the settings.
    """
    if not MIN_WINDOW_SECONDS <= window_seconds <= longest_window_s:
        raise ValueError(
            f"{name} is {window_seconds:g}; expected {MIN_WINDOW_SECONDS:g} to {longest_window_s:g}, the longest "
            "that the encoder takes."
        )


def language_name(asked: str, config) -> str:
    """
    Return Whisper's name of a language, such as "german".

    Args:
        asked: its name or code, which may have a region: "German", "de", "de-AT".

    Raises:
        ValueError: Whisper knows no such language, or the model's Whisper knows English alone.
    """
    code = asked.strip().lower()
    name = LANGUAGES.get(code.split("-")[0], code)
    if name not in LANGUAGES.values():
        raise ValueError(f"language is {asked[:100]!r}; expected a name or a code of ISO 639-1, such as en, de or hi.")
    if name != "english" and knows_english_alone(config):
        raise ValueError(f"language is {asked!r}, but the encoder knows English alone. Take a multilingual Whisper.")
    return name


def knows_english_alone(config) -> bool:
    """Return whether the encoder is a Whisper that was trained on English alone."""
    audio = config.audio_config
    return audio.model_type.startswith("whisper") and audio.vocab_size < MULTILINGUAL_VOCABULARY


def check_timestamps(timestamps: str, config) -> None:
    """
    Refuse times that are none, or that a model with this configuration cannot give.

    Raises:
        ValueError: see [`ctc_alignment.check_readout`].
    """
    if timestamps not in TIMESTAMPS:
        raise ValueError(f"timestamps is {timestamps!r}; expected one of {', '.join(TIMESTAMPS)}.")
    if timestamps == WORD:
        check_readout(config)


def _bar_format(total: float | None) -> str:
    if total is None:
        return "{desc}: {n:.0f} s of audio [{elapsed}{postfix}]"
    return "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}{postfix}]"
