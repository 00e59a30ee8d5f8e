"""Work in another thread for as long as a block lasts."""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], object], wake: Callable[[], object] | None = None) -> Iterator[None]:
    """Do some work beside the block; where the system has no room for another thread, the block goes without.

    It is not waited for at the start: a thread that finds no memory when it is born never says that it has begun, and
    `threading.Thread.start` waits for that for ever.

    Args:
        work: given the event that the block is left, after which it returns.
        wake: called then, for work that waits for something else.
    """
    over, began, done = threading.Event(), threading.Event(), threading.Event()

    def run() -> None:
        began.set()
        try:
            work(over)
        finally:
            done.set()

    with contextlib.suppress(RuntimeError, MemoryError):
        _thread.start_new_thread(run, ())
    try:
        yield
    finally:
        over.set()
        if wake is not None:
            wake()
        if began.is_set():  # one that begins later finds that it is over
            done.wait()
