"""The application of `audiollm serve` in a thread of this process, and what its clients send."""

import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import soundfile
import uvicorn
from audiollm.inference.serving.app import create_app
from audiollm.inference.serving.service import Service, ServingSettings

RATE = 16_000


@contextmanager
def in_thread(model: Any, processor: Any, settings: ServingSettings) -> Iterator[tuple[str, Service]]:
    """The application at a free port of this process: its URL, and its service."""
    app = create_app(model, processor, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.state.service
    finally:
        server.should_exit = True
        thread.join()


def client_of(url: str, api_key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0)


def wav(waveform: np.ndarray, container: str = "WAV") -> bytes:
    """A file's bytes; 16 bits in lossless formats."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, RATE, format=container)
    return buffer.getvalue()


def audio(file: bytes, kind: str = "wav") -> dict[str, Any]:
    """An audio part of a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file).decode(), "format": kind}}


def text(words: str) -> dict[str, Any]:
    """A text part of a message."""
    return {"type": "text", "text": words}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    """A turn of the user."""
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def as_own(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation as this package takes it."""
    own = []
    for message in messages:
        if isinstance(message["content"], str):
            own.append(message)
            continue
        parts = [
            {"type": "audio", "audio": base64.b64decode(part["input_audio"]["data"])}
            if part["type"] == "input_audio"
            else part
            for part in message["content"]
        ]
        own.append({**message, "content": parts})
    return own
