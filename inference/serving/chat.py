"""`/v1/chat/completions`: conversations of text and recordings, whole or as a stream of server-sent events."""

import asyncio
import hashlib
import io
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session import AnswerReport, Recording, Session, sampling_options
from .chat_request import AUDIO_PLACEHOLDER, AudioPart, ChatRequest, Message, TextPart, read_chat_request
from .responses import LAST_EVENT, GoneError, about_request, as_event_stream, event
from .service import Service, caller_of

ID_PREFIX = "chatcmpl-"
SEED_BITS = 63
#: Pattern that nothing matches.
NEVER = "(?!)"

#: Results of the work for a request: the answer piece by piece, and at last its counts.
Item = str | AnswerReport


async def complete(request: Request) -> Response:
    """Answer a request to the route."""
    service: Service = request.app.state.service
    body = await request.body()
    asked = await asyncio.to_thread(read_chat_request, body)
    del body
    service.check_model(asked.model)
    answering = Answering(service, asked, caller_of(request, asked.user, asked.prompt_cache_key))
    items = service.items(answering.run, request)
    head = {"id": f"{ID_PREFIX}{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
    if asked.stream:
        with_usage = asked.stream_options.get("include_usage") is True
        return await as_event_stream(items, lambda each: _events(each, head, with_usage))
    async with aclosing(items):
        *texts, report = [item async for item in items]
    assert isinstance(report, AnswerReport)
    choice = _choice(report.finish_reason, message={"role": "assistant", "content": "".join(map(str, texts))})
    return JSONResponse({**head, "object": "chat.completion", **choice, "usage": _usage(report)})


async def _events(items: AsyncIterator[Item], head: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}
    no_usage = {"usage": None} if with_usage else {}

    def chunk(finish_reason: str | None = None, **delta: str) -> str:
        return event({**head, **_choice(finish_reason, delta=delta), **no_usage})

    yield chunk(role="assistant", content="")
    async for item in items:
        if isinstance(item, str):
            yield chunk(content=item)
            continue
        yield chunk(item.finish_reason)
        if with_usage:
            yield event({**head, "choices": [], "usage": _usage(item)})
        yield LAST_EVENT


def _choice(finish_reason: str | None, **content: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}]}


def _usage(report: AnswerReport) -> dict[str, Any]:
    """Return OpenAI's counts of tokens; tokens of the prompt that were not computed again are the cached ones."""
    return {
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.new_tokens,
        "total_tokens": report.prompt_tokens + report.new_tokens,
        "prompt_tokens_details": {"cached_tokens": report.reused_tokens},
    }


class Answering:
    """The work for one request of a caller."""

    def __init__(self, service: Service, asked: ChatRequest, caller: str):
        self.service, self.asked, self.caller = service, asked, caller
        self._seconds = 0.0  # of all recordings

    def run(self, give: Callable[[Item], None], stop: Any) -> None:
        """Give the answer piece by piece, and then its counts."""
        asked, most = self.asked, self.service.settings.max_new_tokens
        with about_request():
            session, text, recordings = self._prepare(stop)
        options: dict[str, Any] = {"max_new_tokens": min(asked.bound or most, most)}
        options |= sampling_options(asked.sampling_temperature, asked.top_p or 1.0)
        if asked.repetition_penalty is not None:
            options["repetition_penalty"] = asked.repetition_penalty
        given = ""
        with self.service.turns.take(stop):
            # Without a seed by chance, so that no request depends on another.
            torch.manual_seed(secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed)
            with about_request():
                stream = session.stream(text, *recordings, stop=stop, **options)
            with stream:
                pieces = StopStrings(asked.stop, stream)
                for piece in filter(None, pieces):
                    given += piece
                    give(piece)
        if stop.is_set():
            raise GoneError
        report = session.report
        assert report is not None  # every answer has one
        answer = session.messages[-1]
        if answer["role"] == "assistant" and answer["content"] == given:
            said = Message(role="assistant", content=[TextPart(type="text", text=given)])
            self.service.keep_session(self.caller, _digest([*asked.messages, said]), session, self._seconds)
        give(replace(report, finish_reason="stop") if pieces.is_hit else report)

    def _prepare(self, stop: Any) -> tuple[Session, str | None, list[Recording]]:
        """Return the session to go on with, and the text and recordings of the last turn."""
        *before, last = self.asked.messages
        kept = self.service.take_session(self.caller, _digest(before)) if before else None
        if kept is not None:
            session, self._seconds = kept
        else:
            messages = [{"role": each.role, "content": self._parts(each, stop)} for each in before]
            session = Session(self.service.model, self.service.processor, messages=messages)
        parts = self._parts(last, stop)
        text = "".join(part.get("text", AUDIO_PLACEHOLDER) for part in parts)
        recordings = [part["audio"] for part in parts if part["type"] == "audio"]
        return session, text if text.replace(AUDIO_PLACEHOLDER, "") else None, recordings

    def _parts(self, message: Message, stop: Any) -> list[dict[str, Any]]:
        """Return a message's parts as sessions take them, with its recordings decoded."""
        return [
            {"type": "audio", "audio": self._load(part, stop)}
            if isinstance(part, AudioPart)
            else {"type": "text", "text": part.text}
            for part in message.content
        ]

    def _load(self, part: AudioPart, stop: Any) -> Recording:
        """Decode a recording whose length is allowed."""
        processor, most = self.service.processor, self.service.settings.max_audio_seconds
        file, name = part.input_audio.data, part._where
        limit = f"the rest of the {most:.0f} s that one request may hold"
        with self.service.measured(io.BytesIO(file), name, most - self._seconds, limit, stop) as (_, seconds):
            self._seconds += seconds
        return Recording.load(processor.load_audio(file, name=name), processor)


def _digest(messages: Sequence[Message]) -> str:
    """Return a digest of a conversation, which is equal for equal words and files alone."""
    said = "\n".join(each.model_dump_json(include={"role", "content"}) for each in messages)
    return hashlib.sha256(said.encode()).hexdigest()


class StopStrings:
    """Text that ends before the first of some stop strings. What may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str], pieces: Iterable[str]):
        self._pieces = pieces
        self._pattern = re.compile("|".join(map(re.escape, strings)) or NEVER)
        self._most_held = max(map(len, strings), default=1) - 1
        self.is_hit = False

    def __iter__(self) -> Iterator[str]:
        held = ""
        for piece in self._pieces:
            held += piece
            if found := self._pattern.search(held):
                self.is_hit = True
                yield held[: found.start()]
                return
            end = max(0, len(held) - self._most_held)
            yield held[:end]
            held = held[end:]
        yield held
