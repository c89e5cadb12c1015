"""The routes, as an ASGI application."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from . import chat, realtime, transcriptions
from .gateway import Gateway
from .responses import HTTPException, handle
from .service import Service, ServingSettings

OWNER = "audiollm"


def create_app(model: Any, processor: Any, settings: ServingSettings) -> Starlette:
    """Return an application that serves one model, with its processor."""
    service = Service(model, processor, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    middleware = [Middleware(Gateway, settings=settings)]
    if settings.allow_origins:
        everything: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=settings.allow_origins, **everything))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat.complete, methods=["POST"]),
            Route("/v1/audio/transcriptions", transcriptions.transcribe, methods=["POST"]),
            WebSocketRoute("/v1/realtime", realtime.listen),
            Route("/v1/models", _models),
            Route("/v1/models/{name:path}", _model),
            Route("/health", _health),
        ],
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: handle, ClientDisconnect: handle, Exception: handle},
    )
    app.state.service = service
    app.state.began = int(time.time())
    return app


async def _health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _models(request: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [_described(request)]})


async def _model(request: Request) -> JSONResponse:
    request.app.state.service.check_model(request.path_params["name"])
    return JSONResponse(_described(request))


def _described(request: Request) -> dict[str, Any]:
    name = request.app.state.service.settings.name
    return {"id": name, "object": "model", "created": request.app.state.began, "owned_by": OWNER}
