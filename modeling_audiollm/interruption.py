"""
Ctrl-C and SIGTERM that are not lost: what a library swallows is raised again at the next row.

A signal's handler raises wherever the program happens to be. Where that is inside an `except:` that goes on, a callback from
C or a destructor, the exception is gone, and the work would go on to its end as if nobody had asked it to stop.
"""

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

#: Exit statuses of programs that Ctrl-C, and SIGTERM, have ended, as shells have them.
INTERRUPTED_EXIT, TERMINATED_EXIT = 128 + signal.SIGINT, 128 + signal.SIGTERM

Item = TypeVar("Item")
#: The signal that has come, and is to end what is under way.
_came: list[signal.Signals] = []


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; what handles Ctrl-C handles it as well."""


@contextmanager
def ended_by_signals(numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """
    Has signals raise KeyboardInterrupt, or TerminatedError for SIGTERM, and [`check_interrupted`] raise them again.

    Signals that are ignored (`nohup`, jobs in the background) stay so. In a thread other than the main one, which hears of
    no signal, nothing changes.
    """
    former: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    if former:
        _came.clear()
    for number in former:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if former:
            _came.clear()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(signal.Signals(number))
    _raise()


def _raise() -> NoReturn:
    raise TerminatedError(_came[0].name) if _came[0] == signal.SIGTERM else KeyboardInterrupt


def check_interrupted() -> None:
    """Raises what a signal raised before, if that was swallowed; for loops to call between what they do whole."""
    if _came and threading.current_thread() is threading.main_thread():
        _raise()


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with a check before each, and one behind the last."""
    for item in items:
        check_interrupted()
        yield item
    check_interrupted()


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Status to exit with."""
    return TERMINATED_EXIT if isinstance(interrupt, TerminatedError) else INTERRUPTED_EXIT


__all__ = ["TerminatedError", "check_interrupted", "ended_by_signals", "exit_status", "interruptible"]
