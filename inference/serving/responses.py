"""Answers to clients: errors in the shape that OpenAI's clients read, and streams of server-sent events."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import jinja2
from audiollm.command_line.machine import is_out_of_memory
from audiollm.processing import AudioError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, StreamingResponse

from ..recordings import RecordingTooLongError
from ..session import AnswerMemoryError, ContextLengthError
from ..transcripts import Word

logger = logging.getLogger(__name__)

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 400, 401, 403, 404
TIMED_OUT, TOO_LARGE, GONE, INTERNAL, OVERLOADED = 408, 413, 499, 500, 503
FIRST_SERVER_STATUS = 500
#: Codes of errors that a request causes, words for programs.
CODES = {
    ContextLengthError: "context_length_exceeded",
    RecordingTooLongError: "audio_too_long",
    AudioError: "invalid_audio",
}
LAST_EVENT = "data: [DONE]\n\n"
#: Keep proxies from holding a stream back.
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ApiError(HTTPException):
    """Error for a client: `code` is a word for programs, `param` the field of the request that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """Return the JSON of the response, which is also the last event of a stream that fails."""
        kind = "server_error" if self.status_code >= FIRST_SERVER_STATUS else "invalid_request_error"
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the whole response."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error of a field that is missing or wrong."""
    return ApiError(BAD_REQUEST, message, code, param)


class GoneError(Exception):
    """End of work whose client is gone, or whose server shuts down."""


@contextmanager
def about_request() -> Iterator[None]:
    """Make errors of the block that the request causes errors for the client."""
    try:
        yield
    except jinja2.TemplateError as error:
        message = f"The model's chat template refuses the messages: {error}"
        raise ApiError(BAD_REQUEST, message, param="messages") from None
    except ValueError as error:
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), None)
        raise ApiError(BAD_REQUEST, str(error), code) from None


def about_server(error: BaseException) -> ApiError:
    """Return the error that a client is told of; details of a failure go to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (GoneError, ClientDisconnect)):
        return ApiError(GONE, "The request was given up.", "request_cancelled")
    if isinstance(error, AnswerMemoryError) or is_out_of_memory(error):
        logger.error("Out of memory: %s", error)
        return ApiError(INTERNAL, "The server's memory does not suffice; send less audio or text.", "out_of_memory")
    logger.error("A request failed.", exc_info=error)
    return ApiError(INTERNAL, "The server failed; its log says why.", "internal_error")


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error, ours or Starlette's own, such as 404."""
    if isinstance(error, HTTPException) and not isinstance(error, ApiError):
        where = f"{request.method} {request.url.path}"
        error = ApiError(error.status_code, f"{where}: {error.detail}", headers=dict(error.headers or {}))
    return about_server(error).response()


def timed_words(words: Iterable[Word]) -> list[dict[str, Any]]:
    """Return words with OpenAI's names of their fields; it has no confidence."""
    return [{"word": one.text, "start": one.start_s, "end": one.end_s, "confidence": one.confidence} for one in words]


def event(content: dict[str, Any]) -> str:
    """Return one event with JSON in it."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def as_event_stream(
    items: AsyncGenerator[Any, None], write: Callable[[AsyncIterator[Any]], AsyncIterator[str]]
) -> StreamingResponse:
    """
    Return a response that streams the events that `write` makes of a job's items, which are closed at the end.

    It waits for the first item: an error before it gets a status of its own, and a later one becomes the last event.
    """
    try:
        first = await anext(items)
    except BaseException:
        await items.aclose()
        raise

    async def again() -> AsyncIterator[Any]:
        yield first
        async for item in items:
            yield item

    async def events() -> AsyncIterator[str]:
        async with aclosing(items):
            try:
                async for each in write(again()):
                    yield each
            except ApiError as error:
                yield event(error.body())

    return StreamingResponse(events(), media_type="text/event-stream", headers=STREAM_HEADERS)
