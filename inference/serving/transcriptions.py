"""`/v1/audio/transcriptions`: uploads of any length, window by window, as `audiollm transcribe` does."""

import math
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..context_words import read_context
from ..ctc_rescoring import default_ctc_weight
from ..streaming import StopWhenSet
from ..transcribing import (
    Failure,
    Phrase,
    Transcriber,
    TranscribingSettings,
    TranscribingStopped,
    check_timestamps,
    knows_english_alone,
    language_name,
)
from ..transcripts import SEGMENT, WORD, Passage, Transcript, as_srt, as_vtt
from .chat_request import AUDIO_PLACEHOLDER, about_field
from .responses import (
    BAD_REQUEST,
    LAST_EVENT,
    ApiError,
    GoneError,
    about_request,
    as_event_stream,
    event,
    invalid,
    timed_words,
)
from .service import AllSet, Service, Work

#: Windows of several requests in one batch, and how many times as long as their sound it may be, with its padding.
MAX_SHARED_WINDOWS, MAX_PADDED_SHARE = 16, 1.5
MAX_FIELDS, MAX_FIELD_BYTES = 32, 64 * 1024
#: Steps of 10 ms, in which OpenAI says where a segment's window begins.
SEEK_STEPS_PER_SECOND = 100
#: The code that ISO 639 has for a language that is not determined.
UNDETERMINED_LANGUAGE = "und"
CONTEXT_PROMPT = "Before this was said: {context}\n"
STREAMED_FORMATS = ("json", "text")
GRANULARITIES = "timestamp_granularities"


class Asked(BaseModel):
    """The fields of a request; unknown ones are ignored, and so is the temperature, as decoding is greedy."""

    model: str | None = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    stream: bool = False
    prompt: str = ""
    language: str = ""
    timestamp_granularities: list[Literal["word", "segment"]] = ["segment"]
    include: list[str] = []


class SharingTranscriber(Transcriber):
    """A request's transcriber, whose windows are transcribed together with those of requests with the same settings."""

    def __init__(self, service: Service, settings: TranscribingSettings, stop: threading.Event):
        super().__init__(service.model, service.processor, settings, service.settings.name, progress=False)
        self._turns, self._own_stop = service.turns, stop

    def _hear(self, waveforms: list[np.ndarray]) -> list[list[Phrase]]:
        def run(items: list[np.ndarray], stop: AllSet) -> list[list[Phrase]]:
            self._stop = StopWhenSet(stop)
            return super(SharingTranscriber, self)._hear(items)

        try:
            return list(self._turns.share(self.settings, waveforms, run, _fit, self._own_stop))
        finally:
            self._stop = StopWhenSet(self._own_stop)


def _fit(waveforms: list[np.ndarray]) -> bool:
    """Return whether windows may share a batch: not too many, and of like length."""
    lengths = list(map(len, waveforms))
    return len(lengths) <= MAX_SHARED_WINDOWS and len(lengths) * max(lengths) <= MAX_PADDED_SHARE * sum(lengths)


async def transcribe(request: Request) -> Response:
    """Answer a request to the route."""
    service: Service = request.app.state.service
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(BAD_REQUEST, "Expected a form (multipart/form-data) with the recording as its field file.")
    form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    try:
        asked, upload = _read(form), form.get("file")
        if not isinstance(upload, UploadFile):
            raise invalid("There is no file; expected the recording, as an upload.", "file")
        service.check_model(asked.model)
        language = _language_name(asked.language, service.model.config)
        settings = _settings(asked, language, service)
    except ApiError:
        await form.close()
        raise
    items = service.items(work_for(service, upload, settings, asked.stream), request)
    if asked.stream:
        return await as_event_stream(items, _events)
    async with aclosing(items):
        (transcript,) = [item async for item in items]
    return _respond(transcript, asked, language, service.processor.tokenizer)


async def _events(items: AsyncIterator[Passage | Transcript]) -> AsyncIterator[str]:
    """Yield OpenAI's events of a transcript: the text of one window after the other, and at last all of it."""
    joint = ""
    async for item in items:
        text = " ".join(item.text.split())
        if isinstance(item, Transcript):
            yield event({"type": "transcript.text.done", "text": text, "usage": _usage(item)})
            yield LAST_EVENT
        elif text:
            yield event({"type": "transcript.text.delta", "delta": joint + text})
            joint = " "


def _read(form: FormData) -> Asked:
    """
    Read the fields.

    Raises:
        ApiError: a field is wrong, or asks for what cannot be done.
    """
    given: dict[str, Any] = {}
    for name, value in form.multi_items():
        plain = name.removesuffix("[]")
        if name == "file" or value == "":
            continue
        if not isinstance(value, str):
            raise invalid(f"{name} is a file; expected text.", name)
        given[plain] = [*given.get(plain, ()), value] if plain in (GRANULARITIES, "include") else value
    try:
        asked = Asked.model_validate(given)
    except ValidationError as error:
        raise about_field(error) from None
    if asked.include:
        message = "include is not supported by this server, which gives no log-probabilities of tokens. Leave it out."
        raise invalid(message, "include", "unsupported_parameter")
    if asked.stream and asked.response_format not in STREAMED_FORMATS:
        expected = f"expected {' or '.join(STREAMED_FORMATS)} with stream"
        raise invalid(f"response_format is {asked.response_format!r}; {expected}.", "response_format")
    if AUDIO_PLACEHOLDER in asked.prompt:
        raise invalid(
            f"prompt holds {AUDIO_PLACEHOLDER}, which stands for a recording; expected other text.", "prompt"
        )
    if WORD in asked.timestamp_granularities and asked.response_format != "verbose_json":
        raise invalid(f"{GRANULARITIES} with word needs response_format verbose_json.", GRANULARITIES)
    return asked


def _settings(asked: Asked, language: str | None, service: Service) -> TranscribingSettings:
    """
    Return the settings of transcription for a request, whose `prompt` names what may be said.

    Raises:
        ApiError: the model cannot give the times of words.
    """
    timestamps = WORD if WORD in asked.timestamp_granularities else SEGMENT
    try:
        check_timestamps(timestamps, service.model.config)
    except ValueError as error:
        raise invalid(str(error), GRANULARITIES, "unsupported_parameter") from None
    settings = replace(service.settings.transcribing, language=language, timestamps=timestamps)
    weight = settings.ctc_weight
    if not asked.prompt.strip():
        return settings
    if not (default_ctc_weight(service.model.config) if weight is None else weight):
        return replace(settings, prompt=CONTEXT_PROMPT.format(context=asked.prompt) + settings.prompt)
    try:
        return replace(settings, context=(*settings.context, *read_context([asked.prompt])))
    except ValueError as error:
        raise invalid(str(error), "prompt") from None


def _language_name(asked: str, config: Any) -> str | None:
    """
    Return Whisper's name of a language, or None where the encoder knows English alone.

    Raises:
        ApiError: Whisper knows no such language.
    """
    if not asked or knows_english_alone(config):
        return None
    try:
        return language_name(asked, config)
    except ValueError as error:
        raise invalid(str(error), "language") from None


def work_for(service: Service, upload: UploadFile, settings: TranscribingSettings, with_passages: bool) -> Work:
    """Return the work for one request: it gives the transcript, and each passage of it before if these are wanted."""
    name, most = repr((upload.filename or "file")[-100:]), service.settings.max_audio_seconds
    limit = "the most that one request may hold"

    def run(give: Callable[[Any], None], stop: Any) -> None:
        try:
            with (
                upload.file as file,
                about_request(),
                service.measured(file, name, most, limit, stop) as (path, _),
            ):
                transcriber = SharingTranscriber(service, settings, stop)
                for item in transcriber.events([str(path)], stop=stop, in_order=with_passages):
                    if isinstance(item, Failure):  # although it was read to its end before
                        raise RuntimeError(item.reason)
                    if isinstance(item, Transcript) or (with_passages and isinstance(item, Passage)):
                        give(item)
        except TranscribingStopped:
            raise GoneError from None

    return run


def _usage(transcript: Transcript) -> dict[str, Any]:
    """Return the seconds begun, as OpenAI counts them; LiteLLM's client takes whole ones alone."""
    return {"type": "duration", "seconds": math.ceil(transcript.seconds)}


def _respond(transcript: Transcript, asked: Asked, language: str | None, tokenizer: Any) -> Response:
    """Return the response in the format that is asked for. Fields of OpenAI's that are not measured are null."""
    if asked.response_format == "text":
        return PlainTextResponse(f"{transcript.text}\n")
    if asked.response_format == "srt":
        return PlainTextResponse(as_srt(transcript))
    if asked.response_format == "vtt":
        return Response(as_vtt(transcript), media_type="text/vtt")
    content: dict[str, Any] = {"text": transcript.text, "usage": _usage(transcript)}
    if asked.response_format == "json":
        return JSONResponse(content)
    content |= {"task": "transcribe", "language": language or UNDETERMINED_LANGUAGE, "duration": transcript.seconds}
    if SEGMENT in asked.timestamp_granularities:
        texts = [(one, " ".join(one.text.split())) for one in transcript.passages]
        content["segments"] = [
            {
                "id": number,
                "seek": round(one.start_s * SEEK_STEPS_PER_SECOND),
                "start": one.start_s,
                "end": one.end_s,
                "text": text,
                "tokens": tokenizer(text, add_special_tokens=False)["input_ids"],
                "temperature": 0.0,
                "avg_logprob": None,
                "compression_ratio": len(text.encode()) / len(zlib.compress(text.encode())),
                "no_speech_prob": None,
            }
            for number, (one, text) in enumerate((one, text) for one, text in texts if text)
        ]
    if WORD in asked.timestamp_granularities:
        content["words"] = timed_words(transcript.words)
    return JSONResponse(content)
