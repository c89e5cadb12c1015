"""`/v1/chat/completions`: conversations of text and recordings, whole or as a stream of server-sent events."""

import asyncio
import hashlib
import io
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..recordings import Recording
from ..session import AnswerReport, ContextLengthError, Session
from .chat_request import AudioPart, ChatRequest, Message, audio_bytes, digest, read_chat_request
from .choosing import generate_options, seed_draws
from .errors import BAD_REQUEST, ApiError, GoneError, about_request, about_server
from .kept_sessions import KeptSession
from .listening import count_seconds, kept_file
from .service import Service
from .stop_strings import StopStrings
from .turns import Job

ID_PREFIX = "chatcmpl-"
LAST_EVENT = "data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"
#: Proxies would hold a stream back.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
SYSTEM_ROLES = {"developer": "system"}


@dataclass(frozen=True)
class Ended:
    """The last thing that an answer gives: why it ended, and what it took."""

    finish_reason: str
    report: AnswerReport

    def usage(self) -> dict[str, Any]:
        """Tokens as OpenAI counts them; those of the prompt that were not computed again are the cached ones."""
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
    _check_bound(asked, service.settings.max_new_tokens)
    answering = Answering(service, asked, service.caller(request, asked.user, asked.prompt_cache_key))
    job = service.start(answering.run)
    watch = asyncio.create_task(_watch(request, job))
    head = {"id": f"{ID_PREFIX}{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
    events = _items(job, watch)
    if not asked.stream:
        async with aclosing(events):
            return await _whole(events, head)
    try:
        first = await anext(events)  # what is wrong with the request is told before the stream begins
    except BaseException:
        await events.aclose()
        raise
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return StreamingResponse(_stream(first, events, head, with_usage), media_type=MEDIA_TYPE, headers=HEADERS)


async def _watch(request: Request, job: Job) -> None:
    """Abandons the job when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.abandon()


async def _items(job: Job, watch: asyncio.Task) -> AsyncGenerator[str | Ended, None]:
    """What a job gives; it is abandoned when nobody takes it any more."""
    try:
        async for item in job:
            yield item
    except Exception as error:
        raise about_server(error) from None
    finally:
        watch.cancel()
        job.abandon()


async def _whole(events: AsyncIterator[str | Ended], head: dict[str, Any]) -> JSONResponse:
    text = ""
    async for item in events:
        if isinstance(item, Ended):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": item.finish_reason}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": item.usage()})
        text += item
    raise about_server(GoneError())


async def _stream(
    first: str | Ended, events: AsyncGenerator[str | Ended, None], head: dict[str, Any], with_usage: bool
) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    async with aclosing(events):
        yield chunk({"role": "assistant", "content": ""})
        item: str | Ended | None = first
        try:
            while isinstance(item, str):
                yield chunk({"content": item})
                item = await anext(events, None)
        except ApiError as error:
            yield _event(error.body())
            return
        if isinstance(item, Ended):
            yield chunk({}, item.finish_reason)
            if with_usage:
                yield _event({**head, "choices": [], "usage": item.usage()})
            yield LAST_EVENT


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _check_bound(asked: ChatRequest, most: int) -> None:
    if asked.bound is not None and asked.bound > most:
        name = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
        raise ApiError(
            BAD_REQUEST,
            f"{name} is {asked.bound}; this server writes at most {most} (--max_new_tokens of audiollm serve).",
            "invalid_value",
            name,
        )


class Answering:
    """
    The work for one request.

    Args:
        service: has the model.
        asked: the request.
        caller: who asks.
    """

    def __init__(self, service: Service, asked: ChatRequest, caller: str):
        self.service, self.asked, self.caller = service, asked, caller
        self._seconds = 0.0

    def run(self, give: Callable[[str | Ended], None], stop: Any) -> None:
        """Gives the answer piece by piece, and then an [`Ended`]."""
        try:
            kept, text, recordings = self._prepare(stop)
            asked, session = self.asked, kept.session
            bound = asked.bound or self.service.settings.max_new_tokens
            options = {"max_new_tokens": bound, **generate_options(asked)}
        except Exception as error:
            raise about_request(error) or error from None
        stops = StopStrings(asked.stop)
        given = ""
        with self.service.turns.take(stop):
            seed_draws(asked.seed)
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
        assert report is not None  # there is one of every answer
        answer = session.messages[-1]
        if answer["role"] == "assistant" and answer["content"] == given:
            said = [*self._digests, ("assistant", [("text", given)])]
            self.service.sessions.put(self.caller, digest(said), KeptSession(session, self._seconds))
        give(Ended("stop" if stops.is_hit else report.finish_reason, report))

    def _prepare(self, stop: Any) -> tuple[KeptSession, str | None, list[Recording]]:
        """The session to go on with, and the words and recordings of the last turn."""
        *before, last = self.asked.messages
        files = [
            [
                audio_bytes(part, f"messages[{index}].content[{number}]") if isinstance(part, AudioPart) else None
                for number, part in enumerate(message.content)
            ]
            for index, message in enumerate(self.asked.messages)
        ]
        self._digests = [_digest_of(message, of_it) for message, of_it in zip(self.asked.messages, files)]
        kept = self.service.sessions.take(self.caller, digest(self._digests[:-1])) if before else None
        if kept is not None:
            self._seconds = kept.seconds
        else:
            earlier = [
                _loaded(message, self._load_all(message, files[i], i, stop)) for i, message in enumerate(before)
            ]
            kept = KeptSession(Session(self.service.model, self.service.processor, messages=earlier))
        recordings = self._load_all(last, files[-1], len(before), stop)
        text = "".join("<audio>" if isinstance(part, AudioPart) else part.text for part in last.content)
        return kept, text if text.replace("<audio>", "") else None, recordings

    def _load_all(self, message: Message, files: list[bytes | None], index: int, stop: Any) -> list[Recording]:
        places = enumerate(files)
        return [
            self._load(file, f"messages[{index}].content[{place}]", stop) for place, file in places if file is not None
        ]

    def _load(self, file: bytes, name: str, stop: Any) -> Recording:
        """A recording, after a look at its length."""
        processor, settings = self.service.processor, self.service.settings
        rate = processor.sampling_rate
        with kept_file(io.BytesIO(file), name) as path:
            seconds = count_seconds(
                path,
                name,
                rate,
                settings.max_audio_seconds - self._seconds,
                stop,
                f"what is left of the {settings.max_audio_seconds:.0f} s that one request may hold",
            )
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
    """A message as sessions take it."""
    given = iter(recordings)
    parts = [
        {"type": "audio", "audio": next(given)} if isinstance(part, AudioPart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": SYSTEM_ROLES.get(message.role, message.role), "content": parts}


__all__ = ["Answering", "Ended", "complete"]
