"""`/v1/audio/transcriptions`: uploads of any length, window by window, as `audiollm transcribe` does."""

import dataclasses
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ..streaming import StopWhenSet
from ..transcribing import (
    Failure,
    Phrase,
    Transcriber,
    TranscribingSettings,
    TranscribingStopped,
    check_timestamps,
)
from ..transcripts import SEGMENT, TIMESTAMPS, WORD, Passage, Transcript, as_srt, as_vtt
from .responses import (
    BAD_REQUEST,
    INTERNAL,
    LAST_EVENT,
    ApiError,
    GoneError,
    about_request,
    about_server,
    as_event_stream,
    event,
    invalid,
)
from .service import AllSet, Job, Service, Work

#: Windows of several requests in one batch, and how many times as long as their sound it may be, with its padding.
MAX_SHARED_WINDOWS, MAX_PADDED_SHARE = 16, 1.5
MAX_FIELDS, MAX_FIELD_BYTES = 32, 64 * 1024
#: Steps of 10 ms, in which OpenAI says where a segment's window begins.
SEEK_STEPS_PER_SECOND = 100
#: The code that ISO 639 has for a language that is not determined.
UNDETERMINED_LANGUAGE = "und"
#: Whisper's vocabulary with the tokens of all languages; the English one is smaller.
MULTILINGUAL_VOCABULARY = 51_865
CONTEXT_PROMPT = "Before this was said: {context}\n"
LANGUAGE_PROMPT = "The speech is in {language}.\n"
RESPONSE_FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
STREAMED_FORMATS = ("json", "text")
TRUE_WORDS, FALSE_WORDS = ("true", "1"), ("false", "0", "")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A request's fields; `language` is None where it is not honoured, `times` are of words, of segments or of both."""

    upload: UploadFile
    settings: TranscribingSettings
    response_format: str
    is_streamed: bool
    language: str | None
    times: Sequence[str]


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
    """The route."""
    service: Service = request.app.state.service
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(BAD_REQUEST, "Expected a form (multipart/form-data) with the recording as its field file.")
    form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    try:
        asked = _read(form, service)
        items = _items(service.start(work_for(service, asked)), request, form)
    except BaseException:
        await form.close()
        raise
    if asked.is_streamed:
        return await as_event_stream(items, _events)
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Transcript):
                return _respond(item, service, asked)
    raise about_server(GoneError())


async def _items(job: Job, request: Request, form: FormData) -> AsyncGenerator[Passage | Transcript, None]:
    """Yield what the job gives; then close the form, with the upload that the job reads."""
    try:
        async with aclosing(job.items(request)) as items:
            async for item in items:
                yield item
    finally:
        await form.close()


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


def _read(form: FormData, service: Service) -> _Asked:
    """
    Read the fields; those that the server does not know are ignored, and so is the temperature: decoding is greedy.

    Raises:
        ApiError: a field is missing or wrong, or asks for what cannot be done.
    """
    given: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if name != "file":
            if not isinstance(value, str):
                raise invalid(f"{name} is a file; expected text.", name)
            given.setdefault(name.removesuffix("[]"), []).append(value)
    if any(given.get("include", ())):
        message = "include is not supported by this server, which gives no log-probabilities of tokens. Leave it out."
        raise invalid(message, "include", "unsupported_parameter")
    fields = {name: values[-1] for name, values in given.items()}
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise invalid("There is no file; expected the recording, as an upload.", "file")
    service.check_model(fields.get("model") or None)

    def wrong(name: str, expected: str) -> ApiError:
        return invalid(f"{name} is {fields[name][:100]!r}; expected {expected}.", name)

    response_format = fields.get("response_format") or "json"
    if response_format not in RESPONSE_FORMATS:
        raise wrong("response_format", f"one of {', '.join(RESPONSE_FORMATS)}")
    is_streamed = fields.get("stream", "").lower()
    if is_streamed not in (*TRUE_WORDS, *FALSE_WORDS):
        raise wrong("stream", "true or false")
    if is_streamed in TRUE_WORDS and response_format not in STREAMED_FORMATS:
        raise wrong("response_format", f"{' or '.join(STREAMED_FORMATS)} with stream")
    try:
        float(fields.get("temperature") or 0)
    except ValueError:
        raise wrong("temperature", "a number") from None
    prompt = service.settings.transcribing.prompt
    language = _language_name(fields.get("language") or "", service.model.config)
    if language is not None:
        prompt = LANGUAGE_PROMPT.format(language=language.title()) + prompt
    context = fields.get("prompt", "")
    if "<audio>" in context:
        raise wrong("prompt", "text without <audio>, which stands for a recording")
    if context:
        prompt = CONTEXT_PROMPT.format(context=context) + prompt
    times = _times([value for value in given.get("timestamp_granularities", ()) if value], response_format, service)
    timestamps = WORD if WORD in times else SEGMENT
    settings = dataclasses.replace(service.settings.transcribing, prompt=prompt, timestamps=timestamps)
    return _Asked(upload, settings, response_format, is_streamed in TRUE_WORDS, language, times)


def _times(asked: list[str], response_format: str, service: Service) -> Sequence[str]:
    """
    Return whose times are asked for: of words, of segments or of both; of segments alone by default.

    Raises:
        ApiError: they are unknown, the response has no room for them, or the model cannot give them.
    """
    name = "timestamp_granularities"
    unknown = [each for each in asked if each not in TIMESTAMPS]
    if unknown:
        raise invalid(f"{name} has {unknown[0][:100]!r}; expected {' or '.join(TIMESTAMPS)}.", name)
    if WORD in asked and response_format != "verbose_json":
        raise invalid(f"{name} with word needs response_format verbose_json.", name)
    if WORD in asked:
        try:
            check_timestamps(WORD, service.model.config)
        except ValueError as error:
            raise invalid(str(error), name, "unsupported_parameter") from None
    return asked or [SEGMENT]


def _language_name(asked: str, config: Any) -> str | None:
    """
    Return Whisper's name of a language, or None where the encoder only knows English.

    Raises:
        ApiError: a multilingual encoder does not know it.
    """
    if not asked or getattr(config.audio_config, "vocab_size", 0) < MULTILINGUAL_VOCABULARY:
        return None
    code = asked.strip().lower()
    name = LANGUAGES.get(code.split("-")[0], code)
    if name not in LANGUAGES.values():
        raise invalid(f"language is {asked[:100]!r}; expected a code of ISO 639-1, such as en, de or hi.", "language")
    return name


def work_for(service: Service, asked: _Asked) -> Work:
    """Return the work for one request: it gives the transcript, and where it is streamed, each passage of it before."""
    settings, name = service.settings, repr((asked.upload.filename or "file")[-100:])
    limit = "the most that one request may hold"

    def run(give: Callable[[Any], None], stop: Any) -> None:
        try:
            with service.measured(asked.upload.file, name, settings.max_audio_seconds, limit, stop) as (path, _):
                transcriber = SharingTranscriber(service, asked.settings, stop)
                for item in transcriber.events([str(path)], stop=stop, in_order=asked.is_streamed):
                    if isinstance(item, Failure):  # although it was read to its end before
                        reason = item.reason.replace(str(path), name)
                        raise ApiError(INTERNAL, f"{name} cannot be transcribed: {reason}", "internal_error")
                    if isinstance(item, Transcript) or (asked.is_streamed and isinstance(item, Passage)):
                        give(item)
        except TranscribingStopped:
            raise GoneError from None
        except Exception as error:
            raise about_request(error) from None

    return run


def _verbose(transcript: Transcript, service: Service, asked: _Asked) -> dict[str, Any]:
    """
    Segments are windows with words in them. Fields of OpenAI's that are not measured are null; it has no confidence of words.
    """
    segments: list[dict[str, Any]] = []
    for passage in transcript.passages:
        text = " ".join(passage.text.split())
        if not text:
            continue
        encoded = text.encode()
        segments.append(
            {
                "id": len(segments),
                "seek": round(passage.start_s * SEEK_STEPS_PER_SECOND),
                "start": passage.start_s,
                "end": passage.end_s,
                "text": text,
                "tokens": service.processor.tokenizer(text, add_special_tokens=False)["input_ids"],
                "temperature": 0.0,
                "avg_logprob": None,
                "compression_ratio": len(encoded) / len(zlib.compress(encoded)),
                "no_speech_prob": None,
            }
        )
    content: dict[str, Any] = {
        "task": "transcribe",
        "language": asked.language or UNDETERMINED_LANGUAGE,
        "duration": transcript.seconds,
        "text": transcript.text,
        "usage": _usage(transcript),
    }
    if SEGMENT in asked.times:
        content["segments"] = segments
    if WORD in asked.times:
        content["words"] = [
            {"word": one.text, "start": one.start_s, "end": one.end_s, "confidence": one.confidence}
            for one in transcript.words
        ]
    return content


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": transcript.seconds}


def _respond(transcript: Transcript, service: Service, asked: _Asked) -> Response:
    """Return the response in the format that is asked for."""
    if asked.response_format == "text":
        return PlainTextResponse(f"{transcript.text}\n")
    if asked.response_format == "srt":
        return PlainTextResponse(as_srt(transcript))
    if asked.response_format == "vtt":
        return Response(as_vtt(transcript), media_type="text/vtt")
    if asked.response_format == "json":
        return JSONResponse({"text": transcript.text, "usage": _usage(transcript)})
    return JSONResponse(_verbose(transcript, service, asked))
