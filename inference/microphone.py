"""The microphone, through the `sounddevice` package where it is installed."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np


class MicrophoneError(RuntimeError):
    """There is no microphone to record from; the message says what is missing."""


def record(wait: Callable[[], Any], sampling_rate: int) -> np.ndarray:
    """
    Records one channel until `wait` returns.

    Args:
        wait: returns, or raises, when the recording is to end.
        sampling_rate: in Hz.

    Returns:
        `(samples,)`, float32.

    Raises:
        MicrophoneError: `sounddevice` is not installed, there is no microphone, or nothing was recorded.
    """
    try:
        sounddevice = importlib.import_module("sounddevice")
    except ImportError as error:
        raise MicrophoneError(
            "Recording needs the package sounddevice: pip install 'audiollm[microphone]'. Or attach a file with /audio."
        ) from error
    except OSError as error:  # the package is there, the library under it is not
        raise MicrophoneError(f"Recording needs the PortAudio library (libportaudio2): {error}") from error
    blocks: list[np.ndarray] = []
    try:
        with sounddevice.InputStream(
            samplerate=sampling_rate,
            channels=1,
            dtype="float32",
            callback=lambda block, *_: blocks.append(block[:, 0].copy()),
        ):
            wait()
    except sounddevice.PortAudioError as error:
        raise MicrophoneError(f"The microphone cannot be used: {error}") from error
    if not blocks:
        raise MicrophoneError("The microphone gave no sound.")
    return np.concatenate(blocks)


__all__ = ["MicrophoneError", "record"]
