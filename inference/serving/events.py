"""Responses as streams of server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse

from .errors import ApiError

LAST_EVENT = "data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"
#: Keep proxies from holding a stream back.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(content: dict[str, Any]) -> str:
    """Return one event with JSON in it."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def as_event_stream(
    items: AsyncGenerator[Any, None], write: Callable[[AsyncIterator[Any]], AsyncIterator[str]]
) -> StreamingResponse:
    """
    Return a response that streams events, once the first item is there: errors before it get a status of their own.

    Args:
        items: what a job gives; closed when the stream ends. A later error becomes the last event.
        write: makes events of the items.
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

    return StreamingResponse(events(), media_type=MEDIA_TYPE, headers=HEADERS)


__all__ = ["LAST_EVENT", "as_event_stream", "event"]
