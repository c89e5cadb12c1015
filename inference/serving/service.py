"""State that requests share: the model, its settings, the queue of turns, and conversations that may go on."""

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ..session import DEFAULT_MAX_NEW_TOKENS, Session
from ..transcribing import TranscribingSettings
from .errors import NOT_FOUND, ApiError
from .turns import Job, Turns, Work


@dataclass
class KeptSession:
    """A session, and the total length of its recordings."""

    session: Session
    seconds: float = 0.0


class KeptSessions:
    """
    The conversations that were answered last, with their caches, so that a follow-up finds the session before it.

    A session is only given to the caller who began it, for a conversation that is equal to the last word and sample. Every
    other request is read anew, so nothing of one caller's reaches another, not even by the time that an answer takes.

    Args:
        limit: number of conversations; each holds keys and values of its length.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: OrderedDict[tuple[str, str], KeptSession] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str, conversation: str) -> KeptSession | None:
        """
        Remove and return the session that holds a conversation.

        Args:
            caller: who asks.
            conversation: digest of all messages before the last.
        """
        with self._lock:
            return self._kept.pop((caller, conversation), None)

    def put(self, caller: str, conversation: str, kept: KeptSession) -> None:
        """Keep a session for the caller's next turn; the oldest goes if there are too many."""
        with self._lock:
            self._kept[caller, conversation] = kept
            self._kept.move_to_end((caller, conversation))
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(frozen=True)
class ServingSettings:
    """
    Limits and settings of a server.

    Attributes:
        name: name of the model in requests.
        api_key: key that clients must send; None lets everybody in.
        max_upload_mb: largest request, in millions of bytes.
        max_audio_seconds: longest audio of a request.
        max_new_tokens: bound on an answer; a request may ask for less.
        max_requests: number of requests at once.
        kept_sessions: number of conversations whose keys and values are kept for a next turn.
        is_local: refuse requests that name another host than this machine.
        allow_origins: web pages that may send requests.
        transcribing: settings of transcription.
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


class Service:
    """
    One model, and the requests for it.

    Args:
        model, processor: a pair that belongs together.
        settings: see [`ServingSettings`].
    """

    def __init__(self, model: Any, processor: Any, settings: ServingSettings):
        self.model, self.processor, self.settings = model.eval(), processor, settings
        self.turns = Turns()
        self.sessions = KeptSessions(settings.kept_sessions)
        self._pool = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="request")
        self._jobs: set[Job] = set()
        self._jobs_lock = threading.Lock()

    def start(self, work: Work) -> Job:
        """Begin the work for a request, in a thread."""

        def tracked(give: Any, stop: threading.Event) -> None:
            try:
                work(give, stop)
            finally:
                with self._jobs_lock:
                    self._jobs.discard(job)

        with self._jobs_lock:
            job = Job(tracked, self._pool, self.turns)
            self._jobs.add(job)
        return job

    def close(self) -> None:
        """Stop all work within a token, and wait for its end."""
        with self._jobs_lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.abandon()
        self._pool.shutdown(wait=True)

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

    def caller(self, request: Request, *said: str | None) -> str:
        """Return a digest of the caller: address, key, and what the client says about its user."""
        host = request.client.host if request.client else ""
        known = [host, request.headers.get("authorization", ""), *(each or "" for each in said)]
        return hashlib.sha256("\0".join(known).encode()).hexdigest()


__all__ = ["KeptSession", "KeptSessions", "Service", "ServingSettings"]
