"""`/v1/chat/completions`: conversations of text and recordings, whole or as a stream of server-sent events."""

import asyncio
import hashlib
import io
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session import AnswerReport, ContextLengthError, Recording, Session, context_length, sampling_options
from .chat_request import AUDIO_PLACEHOLDER, AudioPart, ChatRequest, Message, TextPart, read_chat_request
from .responses import LAST_EVENT, GoneError, about_request, about_server, as_event_stream, event
from .service import Service, caller_of

ID_PREFIX = "chatcmpl-"
SEED_BITS = 63

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
    items = service.start(answering.run).items(request)
    head = {"id": f"{ID_PREFIX}{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
    if asked.stream:
        with_usage = asked.stream_options.get("include_usage") is True
        return await as_event_stream(items, lambda each: _events(each, head, with_usage))
    text = ""
    async with aclosing(items):
        async for item in items:
            if isinstance(item, AnswerReport):
                choice = _choice(item.finish_reason, message={"role": "assistant", "content": text})
                return JSONResponse({**head, "object": "chat.completion", **choice, "usage": _usage(item)})
            text += item
    raise about_server(GoneError())


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
        stops = StopStrings(asked.stop)
        given = ""
        with self.service.turns.take(stop):
            # Without a seed by chance, so that no request depends on another.
            torch.manual_seed(secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed)
            with about_request():
                stream = session.stream(text, *recordings, stop=stop, **options)
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
            said = Message(role="assistant", content=[TextPart(type="text", text=given)])
            self.service.keep_session(self.caller, _digest([*asked.messages, said]), session, self._seconds)
        give(replace(report, finish_reason="stop") if stops.is_hit else report)

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
            {"type": "audio", "audio": self._load(part.file(), part._where, stop)}
            if isinstance(part, AudioPart)
            else {"type": "text", "text": part.text}
            for part in message.content
        ]

    def _load(self, file: bytes, name: str, stop: Any) -> Recording:
        """Decode a recording whose length is allowed."""
        processor, most = self.service.processor, self.service.settings.max_audio_seconds
        limit = f"the rest of the {most:.0f} s that one request may hold"
        with self.service.measured(io.BytesIO(file), name, most - self._seconds, limit, stop) as (_, seconds):
            self._seconds += seconds
        context = context_length(self.service.model)
        slots = processor.num_audio_slots(int(seconds * processor.sampling_rate))
        if context is not None and slots >= context:
            raise ContextLengthError(
                f"{name}: {seconds:.0f} s are {slots} tokens, but the language model can hold {context}, with question "
                "and answer. Ask about a shorter part, or have it transcribed by /v1/audio/transcriptions."
            )
        return Recording.load(processor.load_audio(file, name=name), processor)


def _digest(messages: Sequence[Message]) -> str:
    """Return a digest of a conversation, which is equal for equal words and files alone."""
    said = [each.model_dump(include={"role", "content"}) for each in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class StopStrings:
    """Text that ends before the first of some stop strings; the possible beginning of one is held back."""

    def __init__(self, strings: Sequence[str]):
        self.strings = strings
        self.is_hit = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take more text, and return the text that cannot belong to a stop string; none after a hit."""
        if self.is_hit:
            return ""
        self._held += piece
        found = [at for at in map(self._held.find, self.strings) if at >= 0]
        if found:
            self.is_hit = True
            text, self._held = self._held[: min(found)], ""
            return text
        cut = len(self._held) - max((_overlap(self._held, string) for string in self.strings), default=0)
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` with which `string` begins."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if string.startswith(text[-length:])), 0)
