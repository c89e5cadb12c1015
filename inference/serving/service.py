"""State that requests share: the model, its settings, turns at it, and conversations that may go on."""

import asyncio
import hashlib
import shutil
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from starlette.requests import Request

from ..recordings import COPY_BYTES, read_bounded
from ..session import DEFAULT_MAX_NEW_TOKENS, Session
from ..transcribing import TranscribingSettings
from .responses import NOT_FOUND, ApiError, GoneError, about_server, logger

#: Work for a request: takes a function for its results, and the event that stops it.
Work = Callable[[Callable[[Any], None], threading.Event], None]
#: The last item of a work, which is not given.
END = object()
#: Of the time that the last turn took, what the next one may wait for more to compute together.
GATHER_SHARE = 0.1


@dataclass(frozen=True)
class ServingSettings:
    """
    Limits and settings of a server; see the options of `audiollm serve`.

    `is_local`: refuse requests that name another host than this machine.
    """

    name: str
    api_key: str | None = None
    max_upload_mb: float = 64.0
    max_audio_seconds: float = 7_200.0
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    max_requests: int = 32
    kept_sessions: int = 4
    is_local: bool = True
    allow_origins: tuple[str, ...] = ()
    transcribing: TranscribingSettings = field(default_factory=TranscribingSettings)


# ---- turns ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Ticket:
    """A place in the queue. Those of an equal kind may share a turn; one without a kind has its own."""

    stop: threading.Event
    kind: Any = None
    items: Sequence[Any] = ()
    results: Sequence[Any] | None = None


class Turns:
    """
    Turns at the model, in the order in which threads asked for them; batches of what waits share one.

    A turn that may be shared waits for as many others as last time, and at most `GATHER_SHARE` of the time that the last
    turn took.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: deque[_Ticket] = deque()
        self._expected = 1
        self._last_seconds = 0.0

    @contextmanager
    def take(self, stop: threading.Event) -> Iterator[None]:
        """
        Wait for a turn, and hold it until the end of the `with` block.

        Raises:
            GoneError: `stop` is set before the turn comes.
        """
        ticket = _Ticket(stop)
        self._wait(ticket)
        try:
            yield
        finally:
            self._leave([ticket])

    def share(
        self,
        kind: Any,
        items: Sequence[Any],
        run: Callable[[list[Any], "AllSet"], Sequence[Any]],
        fit: Callable[[list[Any]], bool],
        stop: threading.Event,
    ) -> Sequence[Any]:
        """
        Return the results of items, which are computed together with those of other threads that wait.

        If a batch fails, each thread's items are computed again alone: no request fails through another.

        Args:
            kind: items of an equal one can be computed together.
            run: computes items, one result each. Its second argument is set once nobody waits for them any more.
            fit: says whether items can share a batch.
            stop: ends the waiting.

        Raises:
            GoneError: `stop` is set before the results are there.
        """
        ticket = _Ticket(stop, kind, items)
        self._wait(ticket)
        if ticket.results is not None:
            return ticket.results
        began, batch = time.monotonic(), [ticket]
        try:
            batch = self._gather(ticket, fit)
            stops = AllSet([one.stop for one in batch])
            try:
                results = run([item for one in batch for item in one.items], stops)
            except Exception as error:  # of any kind: the requests that did not cause it are answered
                if len(batch) == 1 or stops.is_set():
                    raise
                logger.warning("A batch of %d requests failed; each is computed alone.", len(batch), exc_info=error)
                for one in batch:
                    one.kind = None
                batch = [ticket]
                results = run(list(items), AllSet([stop]))
            for one in batch:
                one.results, results = results[: len(one.items)], results[len(one.items) :]
        finally:
            self._last_seconds = time.monotonic() - began
            self._leave(batch)
        assert ticket.results is not None
        return ticket.results

    def _wait(self, ticket: _Ticket) -> None:
        """Wait until a ticket is the first, or has results."""
        with self._condition:
            self._queue.append(ticket)
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: ticket.stop.is_set() or ticket.results is not None or self._queue[0] is ticket
            )
        if ticket.stop.is_set():
            self._leave([ticket])
            raise GoneError

    def _gather(self, first: _Ticket, fit: Callable[[list[Any]], bool]) -> list[_Ticket]:
        """Return the tickets that share the turn of the first."""
        with self._condition:
            seconds = GATHER_SHARE * self._last_seconds
            self._condition.wait_for(lambda: len(self._queue) >= self._expected, seconds)
            self._expected = len(self._queue)
            batch: list[_Ticket] = []
            items: list[Any] = []
            for one in self._queue:
                is_like = one is first or (first.kind is not None and one.kind == first.kind)
                if is_like and not one.stop.is_set() and (one is first or fit([*items, *one.items])):
                    batch.append(one)
                    items += one.items
            return batch or [first]

    def _leave(self, tickets: Sequence[_Ticket]) -> None:
        with self._condition:
            for ticket in tickets:
                if ticket in self._queue:
                    self._queue.remove(ticket)
            self._condition.notify_all()

    def wake(self) -> None:
        """Have waiting threads check whether they should stop."""
        self._leave([])

    @property
    def waiting(self) -> int:
        """Number of threads that hold a turn or wait for one."""
        return len(self._queue)


class AllSet(threading.Event):
    """An event that is set once all of some others are."""

    def __init__(self, events: Sequence[threading.Event]):
        super().__init__()
        self._events = events

    def is_set(self) -> bool:
        """See the class."""
        return all(one.is_set() for one in self._events)


# ---- the service ---------------------------------------------------------------------------------------------------


class Service:
    """
    One model, and the requests for it.

    Attributes:
        turns: whose request runs the model.
        sessions: the conversations that were answered last, with the seconds of their recordings, by caller and digest of
            all messages. Only the caller who began one goes on with it: nothing of it reaches another, not even by the time
            that an answer takes.
    """

    def __init__(self, model: Any, processor: Any, settings: ServingSettings):
        self.model, self.processor, self.settings = model.eval(), processor, settings
        self.turns = Turns()
        self.sessions: dict[tuple[str, str], tuple[Session, float]] = {}
        self._pool = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="request")
        self._stops: set[threading.Event] = set()
        self._lock = threading.Lock()

    async def items(self, work: Work, request: Request) -> AsyncGenerator[Any, None]:
        """
        Do the work for a request in a thread, and yield what it gives.

        It is abandoned when the client leaves or nobody takes the items any more. When this is closed, the work has ended
        and uses nothing of the request.

        Raises:
            ApiError: the work failed.
        """
        loop, stop = asyncio.get_running_loop(), threading.Event()
        items: asyncio.Queue[Any] = asyncio.Queue()

        def give(item: Any) -> None:
            try:
                loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # the server is closed already
                stop.set()

        def run() -> None:
            try:
                work(give, stop)
            finally:
                give(END)

        async def stop_without_client() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self._stop(stop)

        self._stops.add(stop)
        future, watch = self._pool.submit(run), asyncio.create_task(stop_without_client())
        item: Any = None
        try:
            while (item := await items.get()) is not END:
                yield item
            error = future.exception()
            if error is not None:
                raise about_server(error) from None
        finally:
            watch.cancel()
            self._stop(stop)
            while item is not END:
                item = await items.get()
            self._stops.discard(stop)

    def _stop(self, *stops: threading.Event) -> None:
        """Stop work within a token."""
        for stop in stops:
            stop.set()
        self.turns.wake()

    def close(self) -> None:
        """Stop all work within a token, and wait for its end."""
        self._stop(*self._stops)
        self._pool.shutdown(wait=True)

    def take_session(self, caller: str, conversation: str) -> tuple[Session, float] | None:
        """Remove and return the session that holds a conversation, given by its digest."""
        with self._lock:
            return self.sessions.pop((caller, conversation), None)

    def keep_session(self, caller: str, conversation: str, session: Session, seconds: float) -> None:
        """Keep a session for the caller's next turn; the oldest goes if there are too many."""
        with self._lock:
            self.sessions.pop((caller, conversation), None)
            self.sessions[caller, conversation] = session, seconds
            while len(self.sessions) > self.settings.kept_sessions:
                del self.sessions[next(iter(self.sessions))]

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            ApiError: another model is asked for; a request never loads one.
        """
        if name is not None and name != self.settings.name:
            raise ApiError(
                NOT_FOUND,
                f"There is no model {name[:200]!r} here; this server has {self.settings.name!r} alone.",
                "model_not_found",
                "model",
            )

    @contextmanager
    def measured(
        self, source: BinaryIO, name: str, max_seconds: float, limit: str, stop: threading.Event
    ) -> Iterator[tuple[Path, float]]:
        """
        Give an upload as a file of its own, and its length in seconds, for as long as the block lasts.

        Args, Raises: as [`read_bounded`]; besides:
            GoneError: `stop` is set.
        """
        with TemporaryDirectory(prefix="audiollm-serve-") as folder:
            path = Path(folder) / "recording"
            with open(path, "wb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)
            rate = self.processor.sampling_rate
            samples = sum(len(block) for block in read_bounded(path, rate, name, max_seconds, limit, stop))
            if stop.is_set():
                raise GoneError
            yield path, samples / rate


def caller_of(request: Request, *said: str | None) -> str:
    """Return a digest of the caller: address, key, and what the client says about its user."""
    host = request.client.host if request.client else ""
    known = [host, request.headers.get("authorization", ""), *(each or "" for each in said)]
    return hashlib.sha256("\0".join(known).encode()).hexdigest()
