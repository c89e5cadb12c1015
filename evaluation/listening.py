"""
Word error of a model beside its controls, in Python.

Three figures that only mean something together: the adapter's word error; that of the same model given the wrong
recordings (a model that guesses well without listening scores alike on both); and that of the same Whisper's own decoder,
which heard exactly what the adapter heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.inference.answering import ask
from audiollm.processing.cutting import cut_at_quiet
from tqdm.auto import tqdm

from .generating import Generator, adapter_windows, batched, swapped, transcript_bound
from .word_error import WordErrorScore, score_word_error

TRANSCRIBE_PROMPT = "<audio>\nTranscribe the speech."
#: Longest transcript while training: 30 s of fast speech are about 100 words.
MAX_NEW_TOKENS = 200
ENGLISH = "en"


@dataclass(frozen=True)
class ListeningReport:
    """
    Scores of one test set.

    Attributes:
        adapter: the model's transcripts against the references.
        control: the same model's transcripts of the wrong recordings against the same references.
        decoder: Whisper's own decoder, or None where it was not run.
        hypotheses, control_hypotheses, decoder_hypotheses: what was scored.
    """

    adapter: WordErrorScore
    control: WordErrorScore
    decoder: WordErrorScore | None
    hypotheses: list[str]
    control_hypotheses: list[str]
    decoder_hypotheses: list[str] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the scores, for JSON."""
        return {
            "word_error": self.adapter.to_dict(),
            "wrong_audio_control": self.control.to_dict(),
            "whisper_own_decoder": self.decoder.to_dict() if self.decoder else None,
        }


def transcribe(
    model,
    processor,
    recordings: Sequence[Any],
    prompt: str | Sequence[str] = TRANSCRIBE_PROMPT,
    encoded_audio: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    max_piece_seconds: float | None = None,
    progress: bool = True,
    ctc_weight: float = 0.0,
    language: str = ENGLISH,
) -> list[str]:
    """
    Return transcripts of clips, one each.

    Args:
        prompt: the instruction, with one `<audio>`, for all clips, or one for each.
        encoded_audio: gives encoder output of recordings from a cache.
        batch_size: pieces in a batch, at most; short ones come first.
        max_new_tokens: bound on each transcript besides the one that follows from its length.
        max_piece_seconds: cut longer clips where they are quietest, and put the pieces' transcripts one after the
            other: for a model that was trained on clips no longer than that. None asks about every clip whole.
        progress: shows a bar with rate and time left.
        ctc_weight: for n-best rescoring with CTC; see [`Generator`].
        language: of the speech, for the bound.

    Raises:
        ValueError: there are more or fewer prompts than clips, or a clip cannot be used.
    """
    prompts = [prompt] * len(recordings) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(recordings):
        raise ValueError(f"There are {len(prompts)} prompts for {len(recordings)} clips; expected one each, or one.")
    rate = processor.sampling_rate
    clips = [_pieces(processor, recording, max_piece_seconds) for recording in recordings]
    pieces = [(one, *piece) for one, clip in zip(prompts, clips) for piece in clip]
    generator = Generator(model, processor, ctc_weight, encoded_audio)
    texts: dict[int, str] = {}
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(pieces), desc="Transcribing", unit="clip", disable=not progress) as bar:
            for batch in batched([len(waveform) / rate for _, _, waveform in pieces], batch_size):
                chosen = [pieces[index] for index in batch]
                bounds = [transcript_bound(len(waveform) / rate, language) for _, _, waveform in chosen]
                found = generator.answer(
                    [ask(one, waveform) for one, _, waveform in chosen],
                    [[recording if encoded_audio else waveform] for _, recording, waveform in chosen],
                    bounds if max_new_tokens is None else [min(max_new_tokens, bound) for bound in bounds],
                )
                for index, one in zip(batch, found):
                    if one.text is None:
                        raise ValueError(f"Clip {index}: {one.error}")
                    texts[index] = one.text
                bar.update(len(batch))
    finally:
        model.train(was_training)
    ordered = iter(texts[index] for index in range(len(pieces)))
    return [" ".join(next(ordered) for _ in clip) for clip in clips]


def _pieces(processor, recording: Any, max_seconds: float | None) -> list[tuple[Any, np.ndarray]]:
    """Return a recording with its waveform, or its pieces of at most `max_seconds`."""
    waveform = processor.load_audio(recording)
    rate = processor.sampling_rate
    if max_seconds is None or len(waveform) <= int(max_seconds * rate):
        return [(recording, waveform)]
    return [(piece, piece) for piece in cut_at_quiet(waveform, int(max_seconds * rate), rate)]


def whisper_transcripts(
    audio_model_id: str,
    processor,
    recordings: Sequence[Any],
    revision: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    progress: bool = True,
    language: str | None = None,
) -> list[str]:
    """
    Return what the Whisper checkpoint's own decoder makes of clips, greedy, in float32.

    A clip longer than 30 s is cut where the adapter's windows are cut, so that both hear the same pieces.

    Args:
        audio_model_id, revision: the Whisper checkpoint.
        processor: cuts; the model's.
        recordings: the clips, each of any kind the processor takes.
        device: where to run it.
        batch_size: pieces per `generate` call.
        progress: shows a bar with rate and time left.
        language: of the speech; a multilingual Whisper finds it out where it is not given.
    """
    whisper = WhisperDecoder(audio_model_id, revision, device, language=language)
    transcripts: list[str] = []
    with tqdm(total=len(recordings), desc="Whisper's own decoder", unit="clip", disable=not progress) as bar:
        for start in range(0, len(recordings), batch_size):
            clips = [adapter_windows(processor, recording) for recording in recordings[start : start + batch_size]]
            transcripts += whisper.hear(clips, batch_size)
            bar.update(len(clips))
    return transcripts


def evaluate_listening(
    model,
    processor,
    references: Sequence[str],
    recordings: Sequence[Any],
    prompt: str | Sequence[str] = TRANSCRIBE_PROMPT,
    with_decoder: bool = True,
    progress: bool = True,
    **options: Any,
) -> ListeningReport:
    """
    Measure the word error of the model, of the wrong-audio control, and of Whisper's own decoder.

    Args:
        model, processor: what is evaluated.
        references: what is said in each clip, in English.
        recordings: the clips, each of any kind the processor takes.
        prompt: the instruction, with one `<audio>`, for all clips, or one for each.
        with_decoder: also run the audio base's own decoder, where the model knows its base and that is a Whisper.
        progress: shows bars.
        options: see [`transcribe`].

    Raises:
        ValueError: references and clips differ in number, there are fewer than two clips, or nothing to score.
    """
    if len(references) != len(recordings):
        raise ValueError(f"There are {len(references)} references for {len(recordings)} clips; expected one each.")
    score_word_error(references, references)  # refuses references without a word before hours of listening
    wrong_recordings = swapped(recordings)
    hypotheses = transcribe(model, processor, recordings, prompt, progress=progress, **options)
    control = transcribe(model, processor, wrong_recordings, prompt, progress=progress, **options)
    decoder = None
    if with_decoder and model.config.audio_model_id and model.config.audio_config.model_type == "whisper":
        decoder = whisper_transcripts(
            model.config.audio_model_id,
            processor,
            recordings,
            revision=model.config.audio_model_revision,
            device=model.device,
            progress=progress,
        )
    return ListeningReport(
        adapter=score_word_error(references, hypotheses),
        control=score_word_error(references, control),
        decoder=score_word_error(references, decoder) if decoder is not None else None,
        hypotheses=hypotheses,
        control_hypotheses=control,
        decoder_hypotheses=decoder,
    )


__all__ = [
    "TRANSCRIBE_PROMPT",
    "ListeningReport",
    "evaluate_listening",
    "swapped",
    "transcribe",
    "whisper_transcripts",
]
