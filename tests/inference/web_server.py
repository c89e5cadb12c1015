"""The page of `audiollm demo-web`, served by this process, and a tiny model that can be slowed down."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.demo_web import DemoWebArguments, served
from tiny_models import randomise_trainables

RATE = 16_000
WAIT_SECONDS, LOOK_SECONDS = 30.0, 0.02


class Slowed:
    """Lets every step of a language model take so long, and counts them, within a `with` block."""

    def __init__(self, model: Any, seconds: float):
        self.model, self.seconds, self.count = model, seconds, 0

    def __enter__(self) -> "Slowed":
        self._hook = self.model.model.language_model.register_forward_pre_hook(self._step)
        return self

    def _step(self, *_: Any) -> None:
        self.count += 1
        time.sleep(self.seconds)

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


def wait_for(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(LOOK_SECONDS)


def tiny_pair(bases: tuple[str, str]) -> tuple[Any, Any]:
    """Return a tiny model that goes on writing up to its bound, and its processor."""
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=4)
    randomise_trainables(model).generation_config.eos_token_id = 0  # which it does not choose
    return model, AudioLlmProcessor.from_audio_text_pretrained(*bases)


@contextmanager
def serve(model: Any, processor: Any, **options: Any) -> Iterator[str]:
    """Serve the page at a free port, and give its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(model, processor, DemoWebArguments(port=port, **options)) as url:
        yield url


def write_noise(path: Path, seconds: float, seed: int = 0) -> str:
    """Write noise that swells four times a second, as speech does, and return the path."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(times))
    soundfile.write(path, 0.2 * noise * (0.01 + np.sin(4 * np.pi * times) ** 2), RATE)
    return str(path)
