"""
Handling of Ctrl-C and SIGTERM that no library can swallow.

A signal's handler raises wherever the program is. Inside a bare `except:`, a callback from C or a destructor that exception is
lost, so loops call [`check_interrupted`] to raise it again.
"""

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

#: Exit statuses after Ctrl-C and after SIGTERM, as in a shell.
INTERRUPTED_EXIT, TERMINATED_EXIT = 128 + signal.SIGINT, 128 + signal.SIGTERM

Item = TypeVar("Item")
#: The signal that arrived and is being handled.
_came: list[signal.Signals] = []


class TerminatedError(KeyboardInterrupt):
    """Raised for SIGTERM; a KeyboardInterrupt, so that code for Ctrl-C handles it."""


@contextmanager
def ended_by_signals(numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """
    Raise KeyboardInterrupt on SIGINT and TerminatedError on SIGTERM while the block runs.

    Signals that are ignored (`nohup`, background jobs) stay ignored. Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in former:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        _came.clear()


def _end(number: int, frame: FrameType | None) -> None:
    _came.append(signal.Signals(number))
    check_interrupted()


def check_interrupted() -> None:
    """Raise the interrupt, again if it was swallowed; called between units of work."""
    if _came and threading.current_thread() is threading.main_thread():
        raise TerminatedError(_came[0].name) if _came[0] == signal.SIGTERM else KeyboardInterrupt


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, with [`check_interrupted`] before each and after the last."""
    for item in items:
        check_interrupted()
        yield item
    check_interrupted()


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status for an interrupt."""
    return TERMINATED_EXIT if isinstance(interrupt, TerminatedError) else INTERRUPTED_EXIT
