"""What all requests share: the one model that is served, its settings, and whose turn it is."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ..session import DEFAULT_MAX_NEW_TOKENS
from ..transcribing import TranscribingSettings
from .errors import NOT_FOUND, ApiError
from .kept_sessions import KeptSessions
from .turns import Job, Turns, Work


@dataclass(frozen=True)
class ServingSettings:
    """
    What a server allows.

    Attributes:
        name: what the model is called.
        api_key: what clients have to show; None lets everybody in.
        max_upload_mb: largest request, in millions of bytes.
        max_audio_seconds: longest audio of a request.
        max_new_tokens: bound on an answer; a request may ask for less.
        max_requests: how many are under way at once.
        kept_sessions: how many conversations' keys and values are kept for a next turn.
        is_local: only this machine's own names for it are answered to.
        allow_origins: web pages that may ask.
        transcribing: how windows are cut and heard.
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
    One model, and those who wait for it.

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
        """Begins a request's work, in a thread."""

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
        """Stops what is under way within a token, and waits for it."""
        with self._jobs_lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.abandon()
        self._pool.shutdown(wait=True)

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            ApiError: another model is asked for; none is ever loaded because a request names it.
        """
        if name is not None and name != self.settings.name:
            raise ApiError(
                NOT_FOUND,
                f"There is no model {name[:200]!r} here; this server has {self.settings.name!r} alone.",
                "model_not_found",
                "model",
            )

    def caller(self, request: Request, *said: str | None) -> str:
        """Who asks, as far as can be told: by address and key, and by what a client says of its user."""
        host = request.client.host if request.client else ""
        known = [host, request.headers.get("authorization", ""), *(each or "" for each in said)]
        return hashlib.sha256("\0".join(known).encode()).hexdigest()


__all__ = ["Service", "ServingSettings"]
