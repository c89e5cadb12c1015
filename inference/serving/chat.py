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
from dataclasses import dataclass
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session import AnswerReport, ContextLengthError, Recording, Session
from .chat_request import AudioPart, ChatRequest, Message, read_chat_request
from .responses import LAST_EVENT, GoneError, about_request, about_server, as_event_stream, event
from .service import Service, caller_of

ID_PREFIX = "chatcmpl-"
SYSTEM_ROLES = {"developer": "system"}
SEED_BITS = 63


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
    answering = Answering(service, asked, caller_of(request, asked.user, asked.prompt_cache_key))
    items = service.start(answering.run).items(request)
    head = {"id": f"{ID_PREFIX}{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}
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
    """The work for one request of a caller."""

    def __init__(self, service: Service, asked: ChatRequest, caller: str):
        self.service, self.asked, self.caller = service, asked, caller
        self._seconds = 0.0  # of all recordings

    def run(self, give: Callable[[str | Ended], None], stop: Any) -> None:
        """Give the answer piece by piece, and then an [`Ended`]."""
        try:
            files = [
                [part.file() if isinstance(part, AudioPart) else None for part in message.content]
                for message in self.asked.messages
            ]
            digests = [_digest_of(message, of_it) for message, of_it in zip(self.asked.messages, files)]
            session, text, recordings = self._prepare(files, _joint_digest(digests[:-1]), stop)
        except Exception as error:
            raise about_request(error) from None
        most = self.service.settings.max_new_tokens
        options = {"max_new_tokens": min(self.asked.bound or most, most), **generate_options(self.asked)}
        stops = StopStrings(self.asked.stop)
        given = ""
        with self.service.turns.take(stop):
            # Without a seed by chance, so that no request depends on another.
            torch.manual_seed(secrets.randbits(SEED_BITS) if self.asked.seed is None else self.asked.seed)
            try:
                stream = session.stream(text, *recordings, stop=stop, **options)
            except Exception as error:
                raise about_request(error) from None
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
        assert session.report is not None  # every answer has one
        answer = session.messages[-1]
        if answer["role"] == "assistant" and answer["content"] == given:
            said = _joint_digest([*digests, ("assistant", [("text", given)])])
            self.service.keep_session(self.caller, said, session, self._seconds)
        give(Ended("stop" if stops.is_hit else session.report.finish_reason, session.report))

    def _prepare(
        self, files: list[list[bytes | None]], earlier: str, stop: Any
    ) -> tuple[Session, str | None, list[Recording]]:
        """Return the session to go on with, and the text and recordings of the last turn."""
        *before, last = self.asked.messages
        kept = self.service.take_session(self.caller, earlier) if before else None
        if kept is not None:
            session, self._seconds = kept
        else:
            messages = [
                _loaded(message, self._load_all(message, of_it, stop)) for message, of_it in zip(before, files)
            ]
            session = Session(self.service.model, self.service.processor, messages=messages)
        recordings = self._load_all(last, files[-1], stop)
        text = "".join("<audio>" if isinstance(part, AudioPart) else part.text for part in last.content)
        return session, text if text.replace("<audio>", "") else None, recordings

    def _load_all(self, message: Message, files: list[bytes | None], stop: Any) -> list[Recording]:
        return [
            self._load(file, part._where, stop)
            for part, file in zip(message.content, files)
            if isinstance(part, AudioPart) and file is not None
        ]

    def _load(self, file: bytes, name: str, stop: Any) -> Recording:
        """Decode a recording whose length is allowed."""
        processor, most = self.service.processor, self.service.settings.max_audio_seconds
        limit = f"the rest of the {most:.0f} s that one request may hold"
        with self.service.measured(io.BytesIO(file), name, most - self._seconds, limit, stop) as (_, seconds):
            self._seconds += seconds
        context = getattr(self.service.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        slots = processor.num_audio_slots(int(seconds * processor.sampling_rate))
        if context is not None and slots >= context:
            raise ContextLengthError(
                f"{name}: {seconds:.0f} s are {slots} tokens, but the language model can hold {context}, with question "
                "and answer. Ask about a shorter part, or have it transcribed by /v1/audio/transcriptions."
            )
        return Recording.load(processor.load_audio(file, name=name), processor)


def _digest_of(message: Message, files: list[bytes | None]) -> tuple[str, list[tuple[str, str]]]:
    """Return a message's role and parts, each a kind with its text or its recording's digest."""
    parts = [
        ("audio", hashlib.sha256(file).hexdigest()) if file is not None else ("text", part.text)  # type: ignore[union-attr]  # no file, so text
        for part, file in zip(message.content, files)
    ]
    return SYSTEM_ROLES.get(message.role, message.role), parts


def _joint_digest(messages: list[tuple[str, list[tuple[str, str]]]]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


def _loaded(message: Message, recordings: list[Recording]) -> dict[str, Any]:
    """Return a message as sessions take it."""
    given = iter(recordings)
    parts = [
        {"type": "audio", "audio": next(given)} if isinstance(part, AudioPart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": SYSTEM_ROLES.get(message.role, message.role), "content": parts}


# ---- decoding ------------------------------------------------------------------------------------------------------


def generate_options(request: ChatRequest) -> dict[str, Any]:
    """Return options of `generate`, without the bound on new tokens."""
    temperature = request.sampling_temperature
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if request.repetition_penalty is not None:
        options["repetition_penalty"] = request.repetition_penalty
    if temperature > 0:  # top_k: transformers' own default would cut the choice to 50 tokens
        options.update(temperature=temperature, top_p=request.top_p or 1.0, top_k=0)
    return options


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
