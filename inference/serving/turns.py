"""Turns: one answer at a time from one model, first come, first served, without those whose clients have left."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from .errors import GoneError, about_server


class Turns:
    """A lock that threads get in the order in which they asked for it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def take(self, stop: threading.Event) -> Iterator[None]:
        """
        Wait for a turn, and hold it until the end of the `with` block.

        Raises:
            GoneError: `stop` is set before the turn comes.
        """
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            self._condition.wait_for(lambda: self._queue[0] is ticket or stop.is_set())
            if stop.is_set():
                self._leave(ticket)
                raise GoneError
        try:
            yield
        finally:
            with self._condition:
                self._leave(ticket)

    def _leave(self, ticket: object) -> None:
        self._queue.remove(ticket)
        self._condition.notify_all()

    def wake(self) -> None:
        """Have waiting threads check whether they should stop."""
        with self._condition:
            self._condition.notify_all()

    @property
    def waiting(self) -> int:
        """Number of threads that hold a turn or wait for one."""
        return len(self._queue)


class TurnTakingModel:
    """
    A model that takes a turn for each call of `generate`, so that other requests come in between.

    Args:
        model: the model; everything but `generate` is its own.
        turns: of the model.
        stop: ends waiting for a turn, with [`GoneError`].
    """

    def __init__(self, model: Any, turns: Turns, stop: threading.Event):
        self._model, self._turns, self._stop = model, turns, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def eval(self) -> "TurnTakingModel":
        """Put the model in evaluation mode."""
        self._model.eval()
        return self

    def generate(self, **options: Any) -> Any:
        """Generate as the model does, when it is its turn."""
        with self._turns.take(self._stop):
            return self._model.generate(**options)


#: Work for a request: takes a function for its results, and the event that stops it.
Work = Callable[[Callable[[Any], None], threading.Event], None]


class Job:
    """
    The work for one request, in a thread: gives items one by one, and stops when it is abandoned.

    Args:
        work: see [`Work`].
        pool: has a thread for it.
        turns: the turns that it may wait for.
    """

    def __init__(self, work: Work, pool: ThreadPoolExecutor, turns: Turns):
        self.stop = threading.Event()
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[tuple[Any, BaseException | None, bool]] = asyncio.Queue()
        pool.submit(self._run, work)

    def _run(self, work: Work) -> None:
        error: BaseException | None = None
        try:
            work(lambda item: self._put((item, None, False)), self.stop)
        except BaseException as raised:  # raised again in `items`
            error = raised
        self._put((None, error, True))

    def _put(self, entry: tuple[Any, BaseException | None, bool]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, entry)
        except RuntimeError:  # the server is closed already
            self.stop.set()

    async def items(self, request: Request) -> AsyncGenerator[Any, None]:
        """
        Yield what the work gives; it is abandoned when the client leaves or nobody takes the items any more.

        Has ended when it is closed: then the work no longer uses anything of the request.
        """
        watch = asyncio.create_task(self._abandon_without(request))
        is_last = False
        try:
            while True:
                item, error, is_last = await self._items.get()
                if error is not None:
                    raise about_server(error) from None
                if is_last:
                    return
                yield item
        finally:
            watch.cancel()
            self.abandon()
            while not is_last:
                *_, is_last = await self._items.get()

    async def _abandon_without(self, request: Request) -> None:
        """Abandon the work when the client goes away."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.abandon()

    def abandon(self) -> None:
        """Stop the work within a token."""
        self.stop.set()
        self._turns.wake()


__all__ = ["Job", "TurnTakingModel", "Turns", "Work"]
