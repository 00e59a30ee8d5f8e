"""Being told to end while a library computes: Python hears of a signal when the call comes back, minutes later perhaps.

A thread that the system wakes with the signal waits for the program to take it up. If a call keeps it, sessions that
run are asked to stop; if it keeps it still, the program is ended from here, once what it holds half-made is removed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from onnxprune.graph.outputs.beside import beside

SOON = 0.3
"""Seconds in which a program that computes in Python has taken a signal up."""
AT_LAST = 2.0
"""Seconds after which it is ended."""

_sessions: dict[int, Any] = {}
"""Options of the sessions that run."""
_leftovers: dict[int, Callable[[], object]] = {}
"""What removes things half-made."""


@contextlib.contextmanager
def running(options: Any) -> Iterator[None]:
    """A session runs with these `RunOptions`, by which it can be stopped."""
    _sessions[id(options)] = options
    try:
        yield
    finally:
        _sessions.pop(id(options), None)


def leave(key: object, remove: Callable[[], object]) -> None:
    """Note what removes something half-made, if nobody can do it by himself any more."""
    _leftovers[id(key)] = remove


def left(key: object) -> None:
    """It is gone, or whole."""
    _leftovers.pop(id(key), None)


@contextlib.contextmanager
def watched(
    signals: Collection[int], taken_up: Callable[[float], bool], end: Callable[[int, Callable[[], None]], None]
) -> Iterator[None]:
    """Watch signals from the main thread's blind side.

    Args:
        signals: by number; others that Python handles (a timer's, a child's) wake the thread, too.
        taken_up: whether the program has taken up a signal that came at a time of the monotonic clock.
        end: ends the program for a signal, given what removes the leftovers; or returns, if it must not end now.
    """
    if os.name != "posix":  # there the system does not wake a thread
        yield
        return
    ear, mouth = os.pipe()
    for descriptor in (ear, mouth):
        os.set_blocking(descriptor, False)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)

    def wake() -> None:
        signal.set_wakeup_fd(before)
        with contextlib.suppress(OSError):
            os.write(mouth, b"\0")

    try:
        with beside(lambda over: _watch(ear, over, signals, taken_up, end), wake):
            yield
    finally:
        os.close(ear)
        os.close(mouth)


def _watch(
    ear: int,
    over: threading.Event,
    signals: Collection[int],
    taken_up: Callable[[float], bool],
    end: Callable[[int, Callable[[], None]], None],
) -> None:
    while not over.is_set():
        select.select([ear], [], [])
        came = time.monotonic()
        numbers = [n for n in _heard(ear) if n in signals]
        if not numbers:
            continue
        stopped = False
        while not (over.wait(0.05) or taken_up(came)):
            passed = time.monotonic() - came
            if passed > SOON and not stopped:
                stopped = True
                for options in list(_sessions.values()):
                    options.terminate = True
            if passed > AT_LAST:
                end(numbers[0], _remove)


def _heard(ear: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(ear, 64)
    return b""


def _remove() -> None:
    for remove in reversed(list(_leftovers.values())):
        with contextlib.suppress(Exception):
            remove()
