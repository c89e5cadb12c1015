"""Work done by several processes, its results in order."""

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, TypeVar

from .clips import CorpusError

Place = TypeVar("Place")
Result = TypeVar("Result")


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_order(
    function: functools.partial[Result],
    work: Iterable[tuple[Place, Any]],
    workers: int,
    waiting_per_worker: int,
) -> Iterator[tuple[Place, Result]]:
    """
    Yield what a function makes of each argument, in the order of the work; raise CorpusError if a process died.

    Each argument in `work` comes with something that stays in this process. The function's module is imported before the
    processes are forked. One worker is this process; each other has so many arguments waiting.
    """
    if workers == 1:
        for place, argument in work:
            yield place, function(argument)
        return
    # Not forked from here: this process may have threads, of torch for one, that a fork would leave locked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.func.__module__])
    _start_server()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        waiting: deque[tuple[Any, Future[Any]]] = deque()
        for place, argument in work:
            waiting.append((place, pool.submit(function, argument)))
            if len(waiting) >= workers * waiting_per_worker:
                place, future = waiting.popleft()
                yield place, future.result()
        while waiting:
            place, future = waiting.popleft()
            yield place, future.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            "A process that decodes audio died: too little memory, or a file that crashes its decoder. What is done is "
            "kept. Run the same command with --workers 1 to see at which recording it stops."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_server() -> None:
    """Start the server that workers are forked from, with Ctrl-C blocked: this process handles it for all."""
    resource_tracker.ensure_running()  # first, as it lifts the mask
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _end_with_parent() -> None:
    """End a worker when its parent process is gone."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
