"""
Does the model listen? Its word error beside its controls on the same clips.

Three figures that only mean something together: the adapter's word error; that of the same model given the wrong
recording (a model that guesses well without listening scores alike on both); and that of the same Whisper's own decoder,
which heard exactly what the adapter heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from audiollm.answering import answer, ask
from audiollm.corpora.hypotheses import WhisperDecoder
from audiollm.processing.windows import cut_at_quiet
from tqdm.auto import tqdm

from .generating import transcript_bound
from .word_error import WordErrorScore, score_word_error

TRANSCRIBE_PROMPT = "<audio>\nTranscribe the speech."
#: Longest transcript: 30 s of fast speech are about 100 words.
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
        hypotheses, control_hypotheses, decoder_hypotheses: what was scored, for a reader's own eyes.
    """

    adapter: WordErrorScore
    control: WordErrorScore
    decoder: WordErrorScore | None
    hypotheses: list[str]
    control_hypotheses: list[str]
    decoder_hypotheses: list[str] | None

    def to_dict(self) -> dict[str, Any]:
        """Scores only, for JSON."""
        return {
            "word_error": self.adapter.to_dict(),
            "wrong_audio_control": self.control.to_dict(),
            "whisper_own_decoder": self.decoder.to_dict() if self.decoder else None,
        }


def swapped(recordings: Sequence[Any]) -> list[Any]:
    """
    Every clip's place taken by another: the list turned by half its length, so that no clip keeps its own.

    Raises:
        ValueError: there are fewer than two clips.
    """
    if len(recordings) < 2:
        raise ValueError("The wrong-audio control needs at least two clips to swap.")
    half = len(recordings) // 2
    return [*recordings[half:], *recordings[:half]]


def transcribe(
    model,
    processor,
    recordings: Sequence[Any],
    prompt: str | Sequence[str] = TRANSCRIBE_PROMPT,
    encoded_audio: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_piece_seconds: float | None = None,
    progress: bool = True,
    ctc_weight: float = 0.0,
) -> list[str]:
    """
    Transcripts of clips, one each, greedy unless CTC is heard as well; see [`audiollm.answering.answer`] for the other
    arguments.

    Args:
        prompt: the instruction, with one `<audio>`, for all clips, or one for each.
        max_new_tokens: bound on each transcript; that of a short clip is lower, see [`transcript_bound`].
        max_piece_seconds: cut longer clips where they are quietest, and put the pieces' transcripts one after the
            other: for a model that was trained on clips no longer than that. None asks about every clip whole.

    Raises:
        ValueError: there are more or fewer prompts than clips, or one has not exactly one `<audio>`.
    """
    prompts = [prompt] * len(recordings) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(recordings):
        raise ValueError(f"There are {len(prompts)} prompts for {len(recordings)} clips; expected one each, or one.")
    pieces = [_pieces(processor, recording, max_piece_seconds) for recording in recordings]
    conversations = [ask(one, piece) for one, clip in zip(prompts, pieces) for piece, _ in clip]
    bounds = [min(max_new_tokens, transcript_bound(seconds, ENGLISH)) for clip in pieces for _, seconds in clip]
    heard = iter(
        answer(model, processor, conversations, batch_size, bounds, encoded_audio, progress, ctc_weight=ctc_weight)
    )
    return [" ".join(next(heard) for _ in clip) for clip in pieces]


def _pieces(processor, recording: Any, max_seconds: float | None) -> list[tuple[Any, float]]:
    """A recording as it is, or cut into waveforms of at most `max_seconds`; each with its length in seconds."""
    waveform = processor.load_audio(recording)
    rate = processor.sampling_rate
    if max_seconds is None or len(waveform) <= int(max_seconds * rate):
        return [(recording, len(waveform) / rate)]
    return [(piece, len(piece) / rate) for piece in cut_at_quiet(waveform, int(max_seconds * rate), rate)]


def whisper_transcripts(
    audio_model_id: str,
    processor,
    recordings: Sequence[Any],
    revision: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    progress: bool = True,
) -> list[str]:
    """
    What the Whisper checkpoint's own decoder makes of clips, greedy, in float32.

    A clip longer than 30 s is cut where the adapter's windows are cut, so that both hear the same pieces.

    Args:
        audio_model_id, revision: the Whisper checkpoint.
        processor: cuts; the model's.
        recordings: the clips, each of any kind the processor takes.
        device: where to run it.
        batch_size: pieces per `generate` call.
        progress: shows a bar with rate and time left.
    """
    whisper = WhisperDecoder(audio_model_id, revision, device)
    transcripts: list[str] = []
    with tqdm(total=len(recordings), desc="Whisper's own decoder", unit="clip", disable=not progress) as bar:
        for start in range(0, len(recordings), batch_size):
            clips = [adapter_windows(processor, recording) for recording in recordings[start : start + batch_size]]
            transcripts += whisper.hear(clips, batch_size)
            bar.update(len(clips))
    return transcripts


def adapter_windows(processor, recording: Any) -> list[np.ndarray]:
    """A recording's waveform, or one as it is, cut as the processor cuts it for the adapter."""
    waveform = processor.load_audio(recording)
    return np.split(waveform, np.cumsum(processor.window_lengths(len(waveform)))[:-1])


def evaluate_listening(
    model,
    processor,
    references: Sequence[str],
    recordings: Sequence[Any],
    prompt: str | Sequence[str] = TRANSCRIBE_PROMPT,
    encoded_audio: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    with_decoder: bool = True,
    batch_size: int = 16,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_piece_seconds: float | None = None,
    progress: bool = True,
    ctc_weight: float = 0.0,
) -> ListeningReport:
    """
    Word error of the model, of the wrong-audio control, and of Whisper's own decoder.

    Args:
        model, processor: what is evaluated.
        references: what is said in each clip.
        recordings: the clips, each of any kind the processor takes.
        prompt: the instruction, with one `<audio>`, for all clips, or one for each.
        encoded_audio: gives encoder output from a cache; see [`audiollm.answering.answer`].
        with_decoder: also run the audio base's own decoder, where the model knows its base and that is a Whisper.
        batch_size, max_new_tokens, progress, ctc_weight: see [`audiollm.answering.answer`].
        max_piece_seconds: see [`transcribe`].

    Raises:
        ValueError: references and clips differ in number, there are fewer than two clips, or nothing to score.
    """
    if len(references) != len(recordings):
        raise ValueError(f"There are {len(references)} references for {len(recordings)} clips; expected one each.")
    score_word_error(references, references)  # refuses references without a word before hours of listening
    options: dict[str, Any] = {
        "encoded_audio": encoded_audio,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "max_piece_seconds": max_piece_seconds,
        "progress": progress,
        "ctc_weight": ctc_weight,
    }
    wrong_recordings = swapped(recordings)
    hypotheses = transcribe(model, processor, recordings, prompt, **options)
    control = transcribe(model, processor, wrong_recordings, prompt, **options)
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
