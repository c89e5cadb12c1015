"""Checks before a request is read: key, host, origin, size, and the number of requests at once."""

import asyncio
import hmac
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..options import is_loopback
from .responses import BAD_REQUEST, FORBIDDEN, OVERLOADED, TIMED_OUT, TOO_LARGE, UNAUTHORIZED, ApiError
from .service import ServingSettings

#: A body of which nothing arrives for this time is refused.
IDLE_SECONDS = 30.0
#: Time for which a refused body is read and thrown away: many clients read no answer before they have sent everything.
DRAIN_SECONDS = 20.0
OPEN_PATHS = ("/health",)
BYTES_PER_MB = 1_000_000


class Gateway:
    """
    Middleware that lets through what the settings allow.

    With `is_local`, this machine's own names alone are hosts, so that no web page reaches it by a name of its own.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings):
        self.app, self.settings = app, settings
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        is_socket = scope["type"] == "websocket"
        counted = is_socket or scope["method"] == "POST"
        try:
            self._check(scope["path"], Headers(scope=scope))
            if counted and self._under_way >= self.settings.max_requests:
                message = f"{self._under_way} requests are under way, the most that this server takes; try again soon."
                raise ApiError(OVERLOADED, message, "overloaded", headers={"retry-after": "2"})
        except ApiError as error:
            if not is_socket:
                await _drain(receive)
            await error.response()(scope, receive, send)
            return
        self._under_way += counted
        try:
            limited = receive if is_socket else _Limited(receive, self.settings.max_upload_mb)
            await self.app(scope, limited, send)
        finally:
            self._under_way -= counted

    def _check(self, path: str, headers: Headers) -> None:
        settings, origin = self.settings, headers.get("origin")
        try:
            host, site = urlsplit(f"//{headers.get('host', '')}"), urlsplit(origin or "").netloc
            host_name = host.hostname or ""
        except ValueError:
            raise ApiError(BAD_REQUEST, "The header Host or Origin holds no address.", "invalid_header") from None
        if settings.is_local and not is_loopback(host_name):
            message = f"The host is {host_name!r}; this server only answers to localhost."
            raise ApiError(FORBIDDEN, message, "wrong_host")
        if origin is not None and not {origin, "*"} & set(settings.allow_origins) and site != host.netloc:
            message = f"Requests of web pages of {origin} are not taken; --allow_origins names whose are."
            raise ApiError(FORBIDDEN, message, "origin")
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        is_right = settings.api_key is None or hmac.compare_digest(given.encode(), settings.api_key.encode())
        if not is_right and path not in OPEN_PATHS:
            message = "The API key is missing or wrong; send `Authorization: Bearer KEY`."
            raise ApiError(UNAUTHORIZED, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})


class _Limited:
    """A request's `receive` that counts the body's bytes, and does not wait for ever."""

    def __init__(self, receive: Receive, max_mb: float):
        self._receive, self._max_mb = receive, max_mb
        self._num_bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:  # after that, only the end of the connection arrives
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), IDLE_SECONDS)
        except asyncio.TimeoutError:  # another one before Python 3.11
            said = f"Nothing of the request came for {IDLE_SECONDS:.0f} s."
            raise ApiError(TIMED_OUT, said, "request_timeout") from None
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._num_bytes > self._max_mb * BYTES_PER_MB:
            await _drain(self._receive, self._is_whole)
            self._is_whole = True
            said = f"The request is larger than {self._max_mb:g} MB, the most that this server takes."
            raise ApiError(TOO_LARGE, said, "too_large")
        return message


async def _drain(receive: Receive, is_whole: bool = False) -> None:
    """Read what a refused client still sends, for a while, and keep nothing of it."""

    async def read() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    with suppress(asyncio.TimeoutError):  # another one before Python 3.11
        if not is_whole:
            await asyncio.wait_for(read(), DRAIN_SECONDS)
