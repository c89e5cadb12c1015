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
        headers = Headers(scope=scope)
        is_socket = scope["type"] == "websocket"
        counted = is_socket or scope["method"] == "POST"
        try:
            self._check(scope, headers)
            if counted and self._under_way >= self.settings.max_requests:
                message = f"{self._under_way} requests are under way, the most that this server takes; try again soon."
                raise ApiError(OVERLOADED, message, "overloaded", headers={"retry-after": "2"})
        except ApiError as error:
            if not is_socket:
                await _drain(receive, headers)
            await error.response()(scope, receive, send)
            return
        self._under_way += counted
        try:
            limited = receive if is_socket else _Limited(receive, headers, self.settings.max_upload_mb)
            await self.app(scope, limited, send)
        finally:
            self._under_way -= counted

    def _check(self, scope: Scope, headers: Headers) -> None:
        settings = self.settings
        host, host_name = _address("Host", f"//{headers.get('host', '')}")
        if settings.is_local and not is_loopback(host_name):
            message = f"The host is {host_name!r}; this server only answers to localhost."
            raise ApiError(FORBIDDEN, message, "wrong_host")
        origin = headers.get("origin")
        is_named = bool({origin, "*"} & set(settings.allow_origins))
        if origin is not None and not is_named and _address("Origin", origin)[0] != host:
            message = f"Requests of web pages of {origin} are not taken; --allow_origins names whose are."
            raise ApiError(FORBIDDEN, message, "origin")
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        is_right = settings.api_key is None or hmac.compare_digest(given.encode(), settings.api_key.encode())
        if not is_right and scope["path"] not in OPEN_PATHS:
            message = "The API key is missing or wrong; send `Authorization: Bearer KEY`."
            raise ApiError(UNAUTHORIZED, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})


def _address(header: str, url: str) -> tuple[str, str]:
    """
    Return the address in a header, with and without its port.

    Raises:
        ApiError: there is no address to read.
    """
    try:
        parts = urlsplit(url)
        return parts.netloc, parts.hostname or ""
    except ValueError:
        message = f"The header {header} holds no address: {url.removeprefix('//')[:100]!r}."
        raise ApiError(BAD_REQUEST, message, "invalid_header") from None


class _Limited:
    """A request's `receive` that counts the body's bytes, and does not wait for ever."""

    def __init__(self, receive: Receive, headers: Headers, max_mb: float):
        self._receive, self._headers, self._max_mb = receive, headers, max_mb
        self._num_bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:  # after that, only the end of the connection arrives
            return await self._receive()
        if _declared_bytes(self._headers) > self._max_mb * BYTES_PER_MB:
            await self._refuse()
        try:
            message = await asyncio.wait_for(self._receive(), IDLE_SECONDS)
        except asyncio.TimeoutError:  # another one before Python 3.11
            said = f"Nothing of the request came for {IDLE_SECONDS:.0f} s."
            raise ApiError(TIMED_OUT, said, "request_timeout") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_mb * BYTES_PER_MB:
            await self._refuse()
        self._is_whole = not message.get("more_body", False)
        return message

    async def _refuse(self) -> None:
        self._is_whole = True
        await _drain(self._receive, self._headers)
        message = f"The request is larger than {self._max_mb:g} MB, the most that this server takes."
        raise ApiError(TOO_LARGE, message, "too_large")


async def _drain(receive: Receive, headers: Headers) -> None:
    """Read what a refused client still sends, for a while, and keep nothing of it."""
    if not _declared_bytes(headers) and "transfer-encoding" not in headers:
        return

    async def read() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    with suppress(asyncio.TimeoutError):  # another one before Python 3.11
        await asyncio.wait_for(read(), DRAIN_SECONDS)


def _declared_bytes(headers: Headers) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else 0
