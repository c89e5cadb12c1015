"""Recordings of a conversation: decoded once, encoded once, whatever is asked about them and however often."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor

#: Windows (of up to 30 s) that go through the encoder at a time: what bounds its memory.
WINDOWS_AT_A_TIME = 8


@dataclass(eq=False)
class Recording:
    """
    One recording that is part of a conversation.

    Attributes:
        source: as the user gave it: a path, a URL, bytes, a waveform, …
        waveform: `(samples,)` at the processor's rate; None once it has been encoded.
        digest: of the waveform: recordings with the same digest sound the same.
        num_slots: audio tokens that the model makes of it.
        frames: encoder output of each window, `(frames, d_model)`; None until it has been encoded.
        seconds: its length.
    """

    source: Any
    waveform: np.ndarray | None
    digest: str
    num_slots: int
    frames: list[torch.Tensor] | None = None
    seconds: float = 0.0

    @classmethod
    def load(cls, source: Any, processor: AudioLlmProcessor) -> "Recording":
        """
        Decodes a recording of any kind that the processor takes.

        Raises:
            AudioError: it cannot be used.
            FileNotFoundError: there is no such file.
        """
        waveform = processor.load_audio(source)
        digest = hashlib.sha256(waveform.tobytes()).hexdigest()
        return cls(
            source,
            waveform,
            digest,
            processor.num_audio_slots(len(waveform)),
            None,
            len(waveform) / processor.sampling_rate,
        )

    @property
    def num_windows(self) -> int | None:
        """Windows it was encoded in; None before it is."""
        return None if self.frames is None else len(self.frames)


@torch.no_grad()
def encode(recording: Recording, model: AudioLlmForConditionalGeneration, processor: AudioLlmProcessor) -> None:
    """Runs the encoder over a recording, a few windows at a time, keeps its frames, and lets the waveform go."""
    if recording.frames is not None:
        return
    assert recording.waveform is not None  # it goes when the frames come
    features = processor.batch_features([recording.waveform])
    mels, masks = features["input_features"], features["input_features_mask"]
    frames: list[torch.Tensor] = []
    for start in range(0, len(mels), WINDOWS_AT_A_TIME):
        mask = masks[start : start + WINDOWS_AT_A_TIME]
        longest = int(mask.sum(dim=1).max())
        mel = mels[start : start + WINDOWS_AT_A_TIME, :, :longest]
        hidden, lengths = model.model.encode_audio(mel.to(model.device), mask[:, :longest].to(model.device))
        frames.extend(window[:length].clone() for window, length in zip(hidden, lengths.tolist()))
    recording.frames, recording.waveform = frames, None


def as_model_inputs(recordings: list[Recording]) -> dict[str, torch.Tensor]:
    """`encoded_audio` `(windows, max_frames, d_model)` and `encoded_audio_lengths` of encoded recordings, in order."""
    windows = [window for recording in recordings for window in recording.frames or ()]
    if not windows:
        return {}
    lengths = torch.tensor([len(window) for window in windows], device=windows[0].device)
    return {
        "encoded_audio": torch.nn.utils.rnn.pad_sequence(windows, batch_first=True),
        "encoded_audio_lengths": lengths,
    }


__all__ = ["Recording", "as_model_inputs", "encode"]
