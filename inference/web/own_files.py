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


class AddressError(Exception):
    """A call that names an address where a file should be."""


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
        elif FILE_OF_ADDRESS.search(scope["path"]):
            await _refusal(FORBIDDEN, ONLY_UPLOADS)(scope, receive, send)
        elif scope["method"] in METHODS_WITHOUT_BODY or scope["path"] == UPLOAD_PATH:
            await self.app(scope, receive, send)
        else:
            body, is_whole = b"", False
            while not is_whole and len(body) <= MAX_CALL_BYTES:
                message = await receive()
                if message["type"] != "http.request":  # the visitor has gone
                    return
                body += message.get("body", b"")
                is_whole = not message.get("more_body", False)
            unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def read_again() -> Message:
                return unread.pop() if unread else await receive()

            await (_check(body) or self.app)(scope, read_again, send)


def _check(body: bytes) -> JSONResponse | None:
    """Return the answer to a call that is refused."""
    if len(body) > MAX_CALL_BYTES:
        return _refusal(TOO_LARGE, f"A call is larger than {MAX_CALL_BYTES} bytes; recordings are uploaded as files.")
    try:
        json.loads(body, object_hook=_check_path)
    except AddressError:
        return _refusal(FORBIDDEN, ONLY_UPLOADS)
    except RecursionError:
        return _refusal(BAD_REQUEST, "A call's JSON is nested too deeply.")
    except ValueError:  # a form, or nothing that Gradio would read either
        pass
    return None


def _check_path(file: dict[str, Any]) -> None:
    """Raise AddressError where an object of a call is a file at an address rather than an upload."""
    path = file.get("path")
    if isinstance(path, str) and ADDRESS.match(path):
        raise AddressError


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status)
