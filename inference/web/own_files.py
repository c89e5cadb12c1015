"""Middleware by which the page takes uploaded files alone, and fetches nothing for a visitor."""

import json
import re
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Gradio serves files at `…/file=PATH`, and fetches what lies at an address in the path's place, however large.
FILE_OF_ADDRESS = re.compile(r"/file=https?://", re.IGNORECASE)
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
#: Path of uploads, the only large bodies, which Gradio itself bounds.
UPLOAD_PATH = "/gradio_api/upload"
#: Bound on every other body, a question and its settings.
MAX_CALL_BYTES = 1 << 20
METHODS_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
FORBIDDEN, TOO_LARGE, BAD_REQUEST = 403, 413, 400
ONLY_UPLOADS = "This page fetches nothing from other addresses; download the file, and upload it here."


class OwnFiles:
    """
    Refuse requests that would make the page fetch a file. Gradio has no switch for that, and no bound on its size.

    Args:
        app: Gradio's application, which gets all other requests.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if FILE_OF_ADDRESS.search(scope["path"]):
            await _refusal(FORBIDDEN, ONLY_UPLOADS)(scope, receive, send)
            return
        if scope["method"] in METHODS_WITHOUT_BODY or scope["path"] == UPLOAD_PATH:
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:  # the visitor has gone
            return
        refusal = _check(body)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self.app(scope, _after(body, receive), send)


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body, read a little beyond the bound at most; None if the visitor has gone."""
    body, is_whole = b"", False
    while not is_whole and len(body) <= MAX_CALL_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
    return body


def _check(body: bytes) -> JSONResponse | None:
    """Return the answer to a call that is refused."""
    if len(body) > MAX_CALL_BYTES:
        return _refusal(TOO_LARGE, f"A call is larger than {MAX_CALL_BYTES} bytes; recordings are uploaded as files.")
    try:
        call = json.loads(body)
    except ValueError:  # a form, or nothing that Gradio would read either
        return None
    except RecursionError:
        return _refusal(BAD_REQUEST, "A call's JSON is nested too deeply.")
    return _refusal(FORBIDDEN, ONLY_UPLOADS) if _names_address(call) else None


def _names_address(call: Any) -> bool:
    """Return whether a file within a call is an address rather than the path of an upload."""
    waiting = [call]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and ADDRESS.match(path):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


def _after(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that has been read."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read_again() -> Message:
        return unread.pop() if unread else await receive()

    return read_again


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status)
