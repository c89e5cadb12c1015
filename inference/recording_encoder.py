"""The encoder's output of recordings, computed once for all questions about the same samples; bounded in bytes."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch

#: Encoder output that is kept for later questions: about two hours of audio for Whisper tiny in float32.
MAX_KEPT_BYTES = 512 * 2**20
#: Windows of up to 30 s that go through the encoder together, so that a long recording takes no more memory.
MAX_ENCODER_WINDOWS = 8


@torch.no_grad()
def encode_windows(model, processor, waveform: np.ndarray) -> list[torch.Tensor]:
    """Return the encoder's frames of each window of a waveform `(samples,)`, `(frames, d_model)`."""
    features = processor.batch_features([waveform])
    windows: list[torch.Tensor] = []
    for start in range(0, len(features["input_features"]), MAX_ENCODER_WINDOWS):
        part = {name: value[start : start + MAX_ENCODER_WINDOWS].to(model.device) for name, value in features.items()}
        frames, lengths = model.model.encode_audio(**part)
        windows.extend(row[:length].clone() for row, length in zip(frames, lengths.tolist()))
    return windows


def as_model_inputs(windows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the model takes instead of `input_features`: windows as `encoded_audio`, `encoded_audio_lengths`."""
    if not windows:
        return {}
    lengths = torch.tensor([len(window) for window in windows], device=windows[0].device)
    return {
        "encoded_audio": torch.nn.utils.rnn.pad_sequence(list(windows), batch_first=True),
        "encoded_audio_lengths": lengths,
    }


class RecordingEncoder:
    """
    Encoder's output of waveforms, from memory where the same samples were encoded before.

    Args:
        max_kept_bytes: bound on what is kept; what was asked for longest ago is forgotten first.
    """

    def __init__(self, model, processor, max_kept_bytes: int = MAX_KEPT_BYTES):
        self.model = model
        self.processor = processor
        self.max_kept_bytes = max_kept_bytes
        self._kept: OrderedDict[bytes, list[torch.Tensor]] = OrderedDict()
        self._kept_bytes = 0

    def __call__(self, waveforms: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """
        Return `encoded_audio` `(windows, max_frames, d_model)` and `encoded_audio_lengths` `(windows,)`.

        Args:
            waveforms: float32 of shape `(samples,)` each, at the processor's rate, in reading order.
        """
        keys = [content_key(waveform) for waveform in waveforms]
        found: dict[bytes, list[torch.Tensor]] = {}
        for key, waveform in zip(keys, waveforms):
            if key in found:
                continue
            if key in self._kept:
                self._kept.move_to_end(key)
                found[key] = self._kept[key]
            else:
                found[key] = encode_windows(self.model, self.processor, waveform)
                self._keep(key, found[key])
        return as_model_inputs([window for key in keys for window in found[key]])

    def _keep(self, key: bytes, windows: list[torch.Tensor]) -> None:
        self._kept[key] = windows
        self._kept_bytes += sum(window.nbytes for window in windows)
        while self._kept_bytes > self.max_kept_bytes:
            _, forgotten = self._kept.popitem(last=False)
            self._kept_bytes -= sum(window.nbytes for window in forgotten)


def content_key(waveform: np.ndarray) -> bytes:
    """Return a hash of a waveform's samples."""
    return hashlib.blake2b(np.ascontiguousarray(waveform, dtype=np.float32).tobytes(), digest_size=16).digest()
