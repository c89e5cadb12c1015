"""
Does the model listen? Its word error beside its controls on the same clips.

Three figures that only mean something together: the adapter's word error; that of the same model given the wrong
recording (a model that guesses well without listening scores alike on both); and that of the same Whisper's own decoder,
which heard exactly what the adapter heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from audiollm.answering import answer, ask
from audiollm.checkpoints import resolve_base

from .word_error import WordErrorScore, score_word_error

TRANSCRIBE_PROMPT = "<audio>\nTranscribe the speech."


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
    prompt: str = TRANSCRIBE_PROMPT,
    encoded_audio: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 100,
    progress: bool = True,
) -> list[str]:
    """Greedy transcripts of clips, one each; see [`audiollm.answering.answer`] for the arguments."""
    conversations = [ask(prompt, recording) for recording in recordings]
    return answer(model, processor, conversations, batch_size, max_new_tokens, encoded_audio, progress)


@torch.inference_mode()
def whisper_transcripts(
    audio_model_id: str, processor, recordings: Sequence[Any], batch_size: int = 8, progress: bool = True
) -> list[str]:
    """
    What the Whisper checkpoint's own decoder makes of clips of up to 30 s each, greedy.

    Raises:
        ValueError: a clip is longer than 30 s.
    """
    folder = resolve_base(audio_model_id, "audio")
    whisper = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    extractor = processor.feature_extractor
    transcripts: list[str] = []
    with tqdm(total=len(recordings), desc="Whisper's own decoder", unit="clip", disable=not progress) as bar:
        for start in range(0, len(recordings), batch_size):
            waveforms = [processor.load_audio(recording) for recording in recordings[start : start + batch_size]]
            too_long = [start + i for i, waveform in enumerate(waveforms) if len(waveform) > extractor.n_samples]
            if too_long:
                raise ValueError(f"Clips {too_long} are longer than 30 s; cut them for a comparison with Whisper.")
            features = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            tokens = whisper.generate(features["input_features"])
            transcripts += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
            bar.update(len(waveforms))
    return transcripts


def evaluate_listening(
    model,
    processor,
    references: Sequence[str],
    recordings: Sequence[Any],
    prompt: str = TRANSCRIBE_PROMPT,
    encoded_audio: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
    with_decoder: bool = True,
    progress: bool = True,
) -> ListeningReport:
    """
    Word error of the model, of the wrong-audio control, and of Whisper's own decoder.

    Args:
        model, processor: what is evaluated.
        references: what is said in each clip.
        recordings: the clips, each of any kind the processor takes.
        prompt: the instruction, with one `<audio>`.
        encoded_audio: gives encoder output from a cache; see [`audiollm.answering.answer`].
        with_decoder: also run the audio base's own decoder, where the model knows its base.
    """
    options: dict[str, Any] = {"encoded_audio": encoded_audio, "progress": progress}
    hypotheses = transcribe(model, processor, recordings, prompt, **options)
    control = transcribe(model, processor, swapped(recordings), prompt, **options)
    decoder = None
    if with_decoder and model.config.audio_model_id:
        decoder = whisper_transcripts(model.config.audio_model_id, processor, recordings, progress=progress)
    return ListeningReport(
        adapter=score_word_error(references, hypotheses),
        control=score_word_error(references, control),
        decoder=score_word_error(references, decoder) if decoder is not None else None,
        hypotheses=hypotheses,
        control_hypotheses=control,
        decoder_hypotheses=decoder,
    )
