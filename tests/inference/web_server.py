"""The page of `audiollm demo-web`, served by this process for a module's tests, with a tiny model that can be slowed down."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from audiollm import AudioLlmForConditionalGeneration, AudioLlmProcessor
from audiollm.inference.demo_web import DemoWebArguments, served
from audiollm.inference.session import Session, model_lock
from tiny_models import randomise_trainables

RATE = 16_000
MAX_NEW_TOKENS = 400
MAX_AUDIO_SECONDS, MAX_UPLOAD_MB = 20.0, 1.0
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


@dataclass
class Served:
    """The page under test: where it is, its model, and whom this process has connected to."""

    url: str
    model: Any
    processor: Any
    connected_to: list[str] = field(default_factory=list)

    def answer(self, text: str | None, *recordings: Any, **options: Any) -> str:
        """Return what the model answers when it is asked without a page."""
        return Session(self.model, self.processor).ask(text, *recordings, **options)

    @property
    def is_busy(self) -> bool:
        """Return whether the model answers somebody."""
        return model_lock(self.model).locked()


def wait_for(condition, seconds: float = WAIT_SECONDS) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(LOOK_SECONDS)


def tiny_pair(bases: tuple[str, str]) -> tuple[Any, Any]:
    """A tiny model that goes on writing up to its bound, and its processor."""
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*bases, lora_rank=4)
    randomise_trainables(model).generation_config.eos_token_id = 0  # which it does not choose
    return model, AudioLlmProcessor.from_audio_text_pretrained(*bases)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(model: Any, processor: Any, **options: Any) -> Iterator[Served]:
    """Serves the page; notes every address that this process connects to meanwhile."""
    limits: dict[str, Any] = {"max_audio_seconds": MAX_AUDIO_SECONDS, "max_upload_mb": MAX_UPLOAD_MB}
    arguments = DemoWebArguments(**{"port": free_port(), "max_new_tokens": MAX_NEW_TOKENS, **limits, **options})
    page = Served("", model, processor)
    active = threading.Event()
    active.set()

    def note(event: str, values: tuple) -> None:
        if event == "socket.connect" and active.is_set() and isinstance(values[1], tuple):
            page.connected_to.append(str(values[1][0]))

    sys.addaudithook(note)  # it stays, and does nothing once this is over
    try:
        with served(model, processor, arguments) as page.url:
            yield page
    finally:
        active.clear()


def write_noise(path: Path, seconds: float, seed: int = 0) -> str:
    """Noise that swells four times a second, as speech does; returns the path."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(times))
    soundfile.write(path, 0.2 * noise * (0.01 + np.sin(4 * np.pi * times) ** 2), RATE)
    return str(path)


def bad_uploads(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield files that the page refuses, made one by one, each with the reason."""
    for name, content, reason in (
        ("notes.wav", b"These are no samples, but words." * 9, "notes.wav: corrupt, or not audio"),
        ("nothing.wav", b"", "nothing.wav: the file is empty"),
        ("page.mp3", b"<script>alert(1)</script>", "page.mp3: corrupt, or not audio"),
        ("long.flac", None, "long.flac is 21.0 s long, and 20.0 s are the most that this page takes"),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            write_noise(path, MAX_AUDIO_SECONDS + 1)
            content = path.read_bytes()
        path.write_bytes(content)
        yield str(path), reason
