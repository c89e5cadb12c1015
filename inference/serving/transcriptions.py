"""`/v1/audio/transcriptions`: uploads of any length, window by window, as `audiollm transcribe` hears them."""

import asyncio
import dataclasses
import json
import zlib
from collections.abc import Callable
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..transcribing import CONTEXT_PROMPT, Failure, Transcriber, TranscribingSettings, TranscribingStopped
from ..transcripts import Transcript, as_srt, as_vtt
from .errors import BAD_REQUEST, INTERNAL, ApiError, GoneError, about_request, about_server
from .listening import count_seconds, kept_file, without_path
from .service import Service
from .turns import TurnTakingModel

MAX_FIELDS, MAX_FIELD_BYTES = 32, 64 * 1024
#: Steps of 10 ms, in which OpenAI says where a segment's window begins.
SEEK_STEPS_PER_SECOND = 100
#: What ISO 639 has for a language that is not determined.
UNDETERMINED_LANGUAGE = "und"
#: Every field, and the values that ask for what is done anyway; None: any value, see [`_Asked`].
FIELDS: dict[str, tuple[str, ...] | None] = {
    "file": None,
    "model": None,
    "prompt": None,
    "response_format": None,
    "timestamp_granularities[]": ("segment",),
    "timestamp_granularities": ("segment",),
    "temperature": ("0", "0.0"),
    "stream": ("false", "False"),
    "chunking_strategy": ("auto",),
    "language": (),
    "include[]": (),
    "include": (),
}
#: Why a field cannot be honoured.
REASONS = {
    "temperature": "transcripts take the likeliest words",
    "stream": "windows are heard in batches of like length, so a transcript is only there as a whole",
    "language": "the model is not told a language, but writes what it hears",
    "timestamp_granularities": "times are of segments, not of words",
}


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A request's fields."""

    upload: UploadFile
    settings: TranscribingSettings
    response_format: str


async def transcribe(request: Request) -> Response:
    """The route."""
    service: Service = request.app.state.service
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(BAD_REQUEST, "Expected a form (multipart/form-data) with the recording as its field file.")
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        asked = _read(form, service)
        work = Transcribing(service, asked)
        job = service.start(work.run)
        watch = asyncio.create_task(_watch(request, job.abandon))
        try:
            async for transcript in job:
                return RESPONSES[asked.response_format](transcript, service)
            raise GoneError
        except Exception as error:
            raise about_server(error) from None
        finally:
            watch.cancel()
            job.abandon()
            await work.ended.wait()  # before the form's file is closed


async def _watch(request: Request, abandon: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    abandon()


def _read(form: FormData, service: Service) -> _Asked:
    """
    Raises:
        ApiError: a field is missing, unknown, or asks for what cannot be done.
    """
    for name, value in form.multi_items():
        if name not in FIELDS:
            raise ApiError(BAD_REQUEST, f"There is no {name[:100]} that this server knows.", "unknown_parameter", name)
        expected = FIELDS[name]
        if expected is not None and value and value not in expected:
            plain = name.removesuffix("[]")
            reason = f": {REASONS[plain]}" if plain in REASONS else ""
            instead = f"Leave it out{'' if not expected else f', or give {expected[0]}'}."
            raise ApiError(
                BAD_REQUEST,
                f"{plain} is not supported by this server{reason}. {instead}",
                "unsupported_parameter",
                name,
            )
        if name != "file" and not isinstance(value, str):
            raise ApiError(BAD_REQUEST, f"{name} is a file; expected text.", "invalid_value", name)
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise ApiError(BAD_REQUEST, "There is no file; expected the recording, as an upload.", "invalid_value", "file")
    model = form.get("model")
    service.check_model(str(model) if model else None)
    response_format = str(form.get("response_format") or "json")
    if response_format not in RESPONSES:
        raise ApiError(
            BAD_REQUEST,
            f"response_format is {response_format[:100]!r}; expected one of {', '.join(RESPONSES)}.",
            "invalid_value",
            "response_format",
        )
    settings = service.settings.transcribing
    context = str(form.get("prompt") or "")
    if context:
        if "<audio>" in context:
            raise ApiError(BAD_REQUEST, "prompt contains <audio>, which stands for a recording.", None, "prompt")
        settings = dataclasses.replace(settings, prompt=CONTEXT_PROMPT.format(context=context) + settings.prompt)
    return _Asked(upload, settings, response_format)


class Transcribing:
    """
    The work for one request.

    Args:
        service: has the model.
        asked: what is to be transcribed, and how.
    """

    def __init__(self, service: Service, asked: _Asked):
        self.service, self.asked = service, asked
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def run(self, give: Callable[[Transcript], None], stop: Any) -> None:
        """Gives the transcript."""
        try:
            give(self._transcript(stop))
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)

    def _transcript(self, stop: Any) -> Transcript:
        service, settings = self.service, self.service.settings
        name = repr((self.asked.upload.filename or "file")[-100:])
        try:
            with kept_file(self.asked.upload.file, name) as path:
                limit = "the most that one request may hold"
                rate = service.processor.sampling_rate
                count_seconds(path, name, rate, settings.max_audio_seconds, stop, limit)
                model = TurnTakingModel(service.model, service.turns, stop)
                transcriber = Transcriber(model, service.processor, self.asked.settings, settings.name, progress=False)
                [result] = transcriber.transcribe([str(path)], stop=stop)
        except TranscribingStopped:
            raise GoneError from None
        except Exception as error:
            raise about_request(error) or error from None
        if isinstance(result, Failure):  # although it was read to its end before
            reason = without_path(result.reason, path, name)
            raise ApiError(INTERNAL, f"{name} cannot be transcribed: {reason}", "internal_error")
        return result


def _as_json(transcript: Transcript, service: Service) -> Response:
    return JSONResponse({"text": transcript.text, "usage": _usage(transcript)})


def _as_text(transcript: Transcript, service: Service) -> Response:
    return PlainTextResponse(f"{transcript.text}\n")


def _as_subtitles(write: Callable[[Transcript], str], media_type: str) -> Callable[[Transcript, Service], Response]:
    return lambda transcript, service: Response(write(transcript), media_type=media_type)


def _as_verbose_json(transcript: Transcript, service: Service) -> Response:
    """Segments are windows in which something is said. What is not measured of them is null."""
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
    content = {
        "task": "transcribe",
        "language": UNDETERMINED_LANGUAGE,
        "duration": transcript.seconds,
        "text": transcript.text,
        "segments": segments,
        "usage": _usage(transcript),
    }
    return Response(json.dumps(content, ensure_ascii=False), media_type="application/json")


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": transcript.seconds}


RESPONSES: dict[str, Callable[[Transcript, Service], Response]] = {
    "json": _as_json,
    "text": _as_text,
    "verbose_json": _as_verbose_json,
    "srt": _as_subtitles(as_srt, "text/plain"),
    "vtt": _as_subtitles(as_vtt, "text/vtt"),
}

__all__ = ["RESPONSES", "Transcribing", "transcribe"]
