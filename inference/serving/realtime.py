"""
Live transcripts by websocket, in the form of OpenAI's realtime transcription: `/v1/realtime?intent=transcription`.

A client sends sound as base64 in `input_audio_buffer.append`, 16-bit samples of one channel, at 24 kHz unless its
`session.update` says otherwise. Each pause, and `input_audio_buffer.commit`, ends an item. Words come as deltas once they are
final, and the item's whole text at its end.
"""

import asyncio
import base64
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import soxr
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..context_words import read_context
from ..live import LiveTranscriber, LiveUpdate
from ..recordings import from_16_bits
from .responses import ApiError, about_server, invalid, timed_words
from .service import Service

DEFAULT_RATE_HZ = 24_000
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 96_000
#: Messages that wait for the model; more are left to the connection, which tells the client to wait.
MAX_WAITING = 256
#: Time for a client to read why its connection is of no use, before it is closed.
READING_SECONDS = 5.0
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Listener:
    """One connection: its settings, and the transcript of what it sends."""

    def __init__(self, service: Service):
        self.service = service
        self.rate = DEFAULT_RATE_HZ
        self.context: tuple[str, ...] = ()
        self._begin()

    def _begin(self) -> None:
        self.live = LiveTranscriber(self.service.model, self.service.processor, self.context)
        self._begin_item()
        self._begin_sound()

    def _begin_item(self) -> None:
        self._item, self._text = f"item_{uuid.uuid4().hex}", ""

    def _begin_sound(self) -> None:
        rate = self.service.processor.sampling_rate
        self._resampler = soxr.ResampleStream(self.rate, rate, 1, dtype="float32")

    def update(self, session: Any) -> dict[str, Any]:
        """
        Take settings, which start a new transcript, and return all of them.

        Raises:
            ApiError: a setting has no such value.
        """
        if not isinstance(session, dict):
            raise invalid("session is no object.", "session")
        given = _part(_part(session, "audio"), "input")
        transcription = _part(given, "transcription") or _part(session, "input_audio_transcription")
        form = given.get("format", session.get("input_audio_format", "pcm16"))
        kind, rate = form, DEFAULT_RATE_HZ
        if isinstance(form, dict):
            kind, rate = form.get("type", "audio/pcm"), form.get("rate", rate)
        where = "session.audio.input.format"
        if kind not in ("pcm16", "audio/pcm"):
            raise invalid(f"The audio format is {kind!r}; expected audio/pcm, 16-bit samples.", where)
        if type(rate) is not int or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            expected = f"expected {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
            raise invalid(f"The sampling rate is {rate!r}; {expected}.", f"{where}.rate")
        prompt = transcription.get("prompt") or ""
        try:
            self.service.check_model(transcription.get("model"))
            context = read_context([str(prompt)]) if prompt else ()
        except ValueError as error:
            raise invalid(str(error), "session.audio.input.transcription.prompt") from error
        self.rate, self.context = rate, context
        self._begin()
        return self.session()

    def session(self) -> dict[str, Any]:
        """Return the settings, as OpenAI names them."""
        transcription = {"model": self.service.settings.name, "prompt": ", ".join(self.context)}
        form = {"type": "audio/pcm", "rate": self.rate}
        return {"type": "transcription", "audio": {"input": {"format": form, "transcription": transcription}}}

    def answer(self, messages: Sequence[str | bytes]) -> list[dict[str, Any]]:
        """Do what messages ask for, and return the events for the client. Sound that came together is heard together."""
        events: list[dict[str, Any]] = []
        sound: list[np.ndarray] = []
        for message in messages:
            try:
                fields = _parsed(message)
                kind = fields.get("type")
                if kind == "input_audio_buffer.append":
                    sound.append(_samples(fields.get("audio")))
                    continue
                events += self._hear(sound)
                sound = []
                if kind in ("session.update", "transcription_session.update"):
                    events.append({"type": f"{kind}d", "session": self.update(fields.get("session"))})
                elif kind == "input_audio_buffer.commit":
                    events += self._hear([np.zeros(0, dtype=np.float32)], is_end=True)
                    events += self._events(self.live.finish(), is_asked=True)
                    self._begin_sound()
                elif kind == "input_audio_buffer.clear":
                    self._begin()
                    events.append({"type": "input_audio_buffer.cleared"})
                else:
                    raise invalid(f"There is no event of type {str(kind)[:100]!r} here.", "type")
            except ApiError as error:  # the connection stays open
                events.append({"type": "error", **error.body()})
        return events + self._hear(sound)

    def _hear(self, sound: Sequence[np.ndarray], is_end: bool = False) -> list[dict[str, Any]]:
        """Take new sound at the client's rate, and return the events that it causes."""
        if not sound:
            return []
        heard = self._resampler.resample_chunk(np.concatenate(sound), last=is_end)
        return [event for update in self.live.feed(heard) for event in self._events(update)]

    def _events(self, update: LiveUpdate, is_asked: bool = False) -> list[dict[str, Any]]:
        events = []
        if update.final:
            delta = " " * bool(self._text) + " ".join(word.text for word in update.final)
            self._text += delta
            words = timed_words(update.final)
            events.append(self._event(f"{TRANSCRIPTION}.delta", content_index=0, delta=delta, words=words))
        if is_asked or (update.is_pause and self._text):
            events.append(self._event("input_audio_buffer.committed"))
            events.append(self._event(f"{TRANSCRIPTION}.completed", content_index=0, transcript=self._text))
            self._begin_item()
        return events

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self._item, **fields}


async def listen(socket: WebSocket) -> None:
    """Serve one connection until it is closed."""
    service: Service = socket.app.state.service
    await socket.accept()
    try:
        listener = await asyncio.to_thread(Listener, service)
    except ValueError as error:  # the model has no CTC posteriors
        await socket.send_json({"type": "error", **invalid(str(error)).body()})
        with suppress(asyncio.TimeoutError, RuntimeError):  # some clients drop what they have not read at the close
            await asyncio.wait_for(socket.receive(), READING_SECONDS)
            await socket.close(1011)
        return
    waiting: asyncio.Queue[str | bytes | None] = asyncio.Queue(MAX_WAITING)
    reader = asyncio.create_task(_read(socket, waiting))
    try:
        await socket.send_json({"type": "session.created", "session": listener.session()})
        is_open = True
        while is_open:
            messages = [await waiting.get()]
            while not waiting.empty():  # all that has come in the meantime, so that a slow machine catches up
                messages.append(waiting.get_nowait())
            is_open = None not in messages
            try:
                events = await asyncio.to_thread(listener.answer, [one for one in messages if one is not None])
            except Exception as error:  # whatever it is, the client hears of it and the server goes on
                await socket.send_json({"type": "error", **about_server(error).body()})
                await socket.close(1011)
                break
            for event in events:
                await socket.send_json(event)
    except (WebSocketDisconnect, RuntimeError):  # starlette's, where the client is gone
        pass
    finally:
        reader.cancel()


async def _read(socket: WebSocket, waiting: asyncio.Queue[str | bytes | None]) -> None:
    """Put the client's messages into the queue, and None at the end."""
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        text, data = message.get("text"), message.get("bytes")
        await waiting.put(data or b"" if text is None else text)
    await waiting.put(None)


def _samples(audio: Any) -> np.ndarray:
    """
    Return the sound of a message, float32 `(samples,)` at the client's rate.

    Raises:
        ApiError: it is not base64, or holds half a sample.
    """
    try:
        data = base64.b64decode(audio, validate=True)
    except (TypeError, ValueError):
        raise invalid("audio is no base64.", "audio") from None
    if len(data) % 2:
        raise invalid(f"audio has {len(data)} bytes; expected 16-bit samples, an even number.", "audio")
    return from_16_bits(data)


def _parsed(message: str | bytes) -> dict[str, Any]:
    try:
        fields = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise invalid("The message is no JSON object.")
    return fields


def _part(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object within an object; an empty one where it is not given."""
    part = fields.get(name) or {}
    if not isinstance(part, dict):
        raise invalid(f"{name} is {part!r}; expected an object.", name)
    return part
