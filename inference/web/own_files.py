"""Middleware by which the page takes uploaded files alone, and fetches nothing for a visitor."""

import json
import re
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
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
FORBIDDEN, TOO_LARGE = 403, 413
ONLY_UPLOADS = "This page fetches nothing from other addresses; download the file, and upload it here."
ONLY_SMALL = f"A call is larger than {MAX_CALL_BYTES} bytes; recordings are uploaded as files."


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
        app = self.app
        if scope["type"] == "http":
            is_call = scope["method"] not in METHODS_WITHOUT_BODY and scope["path"] != UPLOAD_PATH
            if FILE_OF_ADDRESS.search(scope["path"]):
                app = _refusal(FORBIDDEN, ONLY_UPLOADS)
            elif is_call and not 0 <= int(Headers(scope=scope).get("content-length", "-1")) <= MAX_CALL_BYTES:
                app = _refusal(TOO_LARGE, ONLY_SMALL)
            elif is_call:
                try:
                    body = await Request(scope, receive).body()
                    json.loads(body, object_hook=_check_path)
                except (PermissionError, RecursionError):
                    app = _refusal(FORBIDDEN, ONLY_UPLOADS)
                except ClientDisconnect:
                    return
                except ValueError:  # a form, or nothing that Gradio would read either
                    pass
                unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
                beyond = receive

                async def receive() -> Message:
                    return unread.pop() if unread else await beyond()

        await app(scope, receive, send)


def _check_path(file: dict[str, Any]) -> None:
    """Raise PermissionError where an object of a call is a file at an address rather than an upload."""
    if ADDRESS.match(str(file.get("path"))):
        raise PermissionError


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status)
