"""
Conversations that may go on: a follow-up finds the session that answered before it, with its keys and values.

A session is only handed to who began it, for a conversation that is the same to the last word and sample; every other
request is read anew. So nothing of one's reaches another, not even by how fast an answer comes.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from ..session import Session


@dataclass
class KeptSession:
    """A session, and how long the recordings in it are, together."""

    session: Session
    seconds: float = 0.0


class KeptSessions:
    """
    The conversations that were answered last.

    Args:
        limit: how many are kept; each holds keys and values of its length.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: OrderedDict[tuple[str, str], KeptSession] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str, conversation: str) -> KeptSession | None:
        """
        The session that holds a conversation, which no other request then gets.

        Args:
            caller: who asks.
            conversation: digest of all messages before the last.
        """
        with self._lock:
            return self._kept.pop((caller, conversation), None)

    def put(self, caller: str, conversation: str, kept: KeptSession) -> None:
        """Keeps a session for the caller's next turn, and lets the oldest go where there are too many."""
        with self._lock:
            self._kept[caller, conversation] = kept
            self._kept.move_to_end((caller, conversation))
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


__all__ = ["KeptSession", "KeptSessions"]
