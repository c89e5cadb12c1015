"""`/v1/chat/completions`: conversations of text and recordings, whole or as a stream of server-sent events."""

import asyncio
import hashlib
import io
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session import AnswerReport, ContextLengthError, Recording, Session
from .chat_request import AudioPart, ChatRequest, Message, digest, read_chat_request
from .decoding import StopStrings, generate_options, seed_sampling
from .errors import GoneError, about_request, about_server
from .events import LAST_EVENT, as_event_stream, event
from .service import KeptSession, Service
from .uploads import count_seconds, stored

ID_PREFIX = "chatcmpl-"
SYSTEM_ROLES = {"developer": "system"}


@dataclass(frozen=True)
class Ended:
    """End of an answer: its reason and its counts."""

    finish_reason: str
    report: AnswerReport

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's counts of tokens; tokens of the prompt that were not computed again are the cached ones."""
        report = self.report
        return {
            "prompt_tokens": report.prompt_tokens,
            "completion_tokens": report.new_tokens,
            "total_tokens": report.prompt_tokens + report.new_tokens,
            "prompt_tokens_details": {"cached_tokens": report.reused_tokens},
        }


async def complete(request: Request) -> Response:
    """The route."""
    service: Service = request.app.state.service
    body = await request.body()
    asked = await asyncio.to_thread(read_chat_request, body)
    del body
    service.check_model(asked.model)
    answering = Answering(service, asked, service.caller(request, asked.user, asked.prompt_cache_key))
    job = service.start(answering.run)
    head = {"id": f"{ID_PREFIX}{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
    items = job.items(request)
    if not asked.stream:
        async with aclosing(items):
            return await _whole(items, head)
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return await as_event_stream(items, lambda each: _events(each, head, with_usage))


async def _whole(items: AsyncIterator[str | Ended], head: dict[str, Any]) -> JSONResponse:
    text = ""
    async for item in items:
        if isinstance(item, Ended):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": item.finish_reason}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": item.usage()})
        text += item
    raise about_server(GoneError())


async def _events(items: AsyncIterator[str | Ended], head: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    yield chunk({"role": "assistant", "content": ""})
    async for item in items:
        if isinstance(item, str):
            yield chunk({"content": item})
            continue
        yield chunk({}, item.finish_reason)
        if with_usage:
            yield event({**head, "choices": [], "usage": item.usage()})
        yield LAST_EVENT


class Answering:
    """
    The work for one request.

    Args:
        service: has the model.
        asked: the request.
        caller: digest of the caller.
    """

    def __init__(self, service: Service, asked: ChatRequest, caller: str):
        self.service, self.asked, self.caller = service, asked, caller
        self._seconds = 0.0

    def run(self, give: Callable[[str | Ended], None], stop: Any) -> None:
        """Give the answer piece by piece, and then an [`Ended`]."""
        try:
            kept, text, recordings = self._prepare(stop)
            asked, session = self.asked, kept.session
            most = self.service.settings.max_new_tokens
            bound = min(asked.bound or most, most)
            options = {"max_new_tokens": bound, **generate_options(asked)}
        except Exception as error:
            raise about_request(error) or error from None
        stops = StopStrings(asked.stop)
        given = ""
        with self.service.turns.take(stop):
            seed_sampling(asked.seed)
            try:
                stream = session.stream(text, *recordings, stop=stop, **options)
            except Exception as error:
                raise about_request(error) or error from None
            with stream:
                for piece in stream:
                    piece = stops.feed(piece)
                    given += piece
                    if piece:
                        give(piece)
                    if stops.is_hit:
                        break
        rest = stops.rest()
        given += rest
        if stop.is_set():
            raise GoneError
        if rest:
            give(rest)
        report = session.report
        assert report is not None  # every answer has one
        answer = session.messages[-1]
        if answer["role"] == "assistant" and answer["content"] == given:
            said = [*self._digests, ("assistant", [("text", given)])]
            self.service.sessions.put(self.caller, digest(said), KeptSession(session, self._seconds))
        give(Ended("stop" if stops.is_hit else report.finish_reason, report))

    def _prepare(self, stop: Any) -> tuple[KeptSession, str | None, list[Recording]]:
        """Return the session to go on with, and the text and recordings of the last turn."""
        *before, last = self.asked.messages
        files = [
            [part.file() if isinstance(part, AudioPart) else None for part in message.content]
            for message in self.asked.messages
        ]
        self._digests = [_digest_of(message, of_it) for message, of_it in zip(self.asked.messages, files)]
        kept = self.service.sessions.take(self.caller, digest(self._digests[:-1])) if before else None
        if kept is not None:
            self._seconds = kept.seconds
        else:
            earlier = [_loaded(message, self._load_all(message, of_it, stop)) for message, of_it in zip(before, files)]
            kept = KeptSession(Session(self.service.model, self.service.processor, messages=earlier))
        recordings = self._load_all(last, files[-1], stop)
        text = "".join("<audio>" if isinstance(part, AudioPart) else part.text for part in last.content)
        return kept, text if text.replace("<audio>", "") else None, recordings

    def _load_all(self, message: Message, files: list[bytes | None], stop: Any) -> list[Recording]:
        parts = zip(message.content, files)
        return [
            self._load(file, part._where, stop)
            for part, file in parts
            if isinstance(part, AudioPart) and file is not None
        ]

    def _load(self, file: bytes, name: str, stop: Any) -> Recording:
        """Decode a recording whose length is allowed."""
        processor, settings = self.service.processor, self.service.settings
        rate = processor.sampling_rate
        with stored(io.BytesIO(file)) as path:
            most = settings.max_audio_seconds - self._seconds
            limit = f"the rest of the {settings.max_audio_seconds:.0f} s that one request may hold"
            seconds = count_seconds(path, name, rate, most, limit, stop)
        context = getattr(self.service.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        slots = processor.num_audio_slots(int(seconds * rate))
        if context is not None and slots >= context:
            raise ContextLengthError(
                f"{name}: {seconds:.0f} s are {slots} tokens, but the language model can hold {context}, with question "
                "and answer. Ask about a shorter part, or have it transcribed by /v1/audio/transcriptions."
            )
        self._seconds += seconds
        return Recording.load(processor.load_audio(file, name=name), processor)


def _digest_of(message: Message, files: list[bytes | None]) -> tuple[str, list[tuple[str, str]]]:
    parts = [
        ("audio", hashlib.sha256(file).hexdigest()) if file is not None else ("text", part.text)  # type: ignore[union-attr]  # no file, so text
        for part, file in zip(message.content, files)
    ]
    return SYSTEM_ROLES.get(message.role, message.role), parts


def _loaded(message: Message, recordings: list[Recording]) -> dict[str, Any]:
    """Return a message as sessions take it."""
    given = iter(recordings)
    parts = [
        {"type": "audio", "audio": next(given)} if isinstance(part, AudioPart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": SYSTEM_ROLES.get(message.role, message.role), "content": parts}


__all__ = ["Answering", "Ended", "complete"]
