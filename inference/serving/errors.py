"""Errors in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from typing import Any

import jinja2
from audiollm.memory import is_out_of_memory
from audiollm.processing import AudioError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from ..recordings import RecordingTooLongError
from ..session import AnswerMemoryError, ContextLengthError

logger = logging.getLogger(__name__)

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 400, 401, 403, 404
TIMED_OUT, TOO_LARGE, GONE, INTERNAL, OVERLOADED = 408, 413, 499, 500, 503
FIRST_SERVER_STATUS = 500


class ApiError(HTTPException):
    """
    Error for a client.

    Args:
        status: status of HTTP.
        message: the fault, and what to do.
        code: a word for programs.
        param: the field of the request that is at fault.
        headers: of the response.
    """

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


class GoneError(Exception):
    """End of work whose client is gone, or whose server shuts down."""


def about_request(error: Exception) -> ApiError | None:
    """Return the error for a client if the request is its cause; None for other errors."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(BAD_REQUEST, str(error), "context_length_exceeded")
    if isinstance(error, RecordingTooLongError):
        return ApiError(BAD_REQUEST, str(error), "audio_too_long")
    if isinstance(error, AudioError):
        return ApiError(BAD_REQUEST, str(error), "invalid_audio")
    if isinstance(error, jinja2.TemplateError):
        return ApiError(BAD_REQUEST, f"The model's chat template refuses the messages: {error}", param="messages")
    if isinstance(error, ValueError):
        return ApiError(BAD_REQUEST, str(error))
    return None


def about_server(error: BaseException) -> ApiError:
    """Return the error for a client for any other cause; details go to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (GoneError, ClientDisconnect)):
        return ApiError(GONE, "The request was given up.", "request_cancelled")
    if isinstance(error, AnswerMemoryError) or is_out_of_memory(error):
        logger.error("Out of memory: %s", error)
        return ApiError(
            INTERNAL, "The server's memory does not suffice; send less audio or text.", code="out_of_memory"
        )
    logger.error("A request failed.", exc_info=error)
    return ApiError(INTERNAL, "The server failed; its log says why.", "internal_error")


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error, ours or Starlette's own, such as 404."""
    if isinstance(error, HTTPException) and not isinstance(error, ApiError):
        where = f"{request.method} {request.url.path}"
        error = ApiError(error.status_code, f"{where}: {error.detail}", headers=dict(error.headers or {}))
    return about_server(error).response()


__all__ = ["ApiError", "GoneError", "about_request", "about_server", "handle"]
