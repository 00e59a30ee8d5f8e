"""SIGINT, SIGTERM and SIGHUP: an exception at the next instruction, and a true sentence about what was written.

A program that is told to end unwinds as from any error, so that nothing half-made stays behind; where files take their
names, it ends what it began first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from onnxprune.graph.outputs import native_calls

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_PAUSE = 2.0
"""Seconds in which a further signal is the same one again: terminals and supervisors send several, and what tidies up
is not to be stopped half-way. Later ones count, lest an exception that some library swallowed be the last word."""


class Interrupted(BaseException):
    """The program was told to end; `exit_code` is what shells expect of one that did."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _State:
    """Of this process: signals arrive at the process, whatever it is doing.

    Attributes:
        written: sets of files that have their names, the first of each being the one the user named.
        kept: caches that a further run goes on from.
        deferred: how many sections are running that must not be left half-way.
        waiting: the first signal that came meanwhile.
        raised: when a signal last became an exception, by the monotonic clock.
        leaving: whether the program is being ended from another thread.
    """

    def __init__(self) -> None:
        self.written: list[tuple[Path, ...]] = []
        self.kept: dict[Path, None] = {}
        self.deferred = 0
        self.waiting: int | None = None
        self.raised = -_PAUSE
        self.leaving = False


_state = _State()


def wrote(files: Sequence[Path]) -> None:
    """Note a set that has its names."""
    _state.written.append(tuple(files))


def kept(file: Path) -> None:
    """Note a cache."""
    _state.kept[file] = None


def story() -> str:
    """What an interrupted program leaves, in one line."""
    sets = [s for s in _state.written if s]
    told = [f"{s[0]} and {len(s) - 1} files with it" if len(s) > 1 else str(s[0]) for s in sets]
    said = f"interrupted; written before that: {', '.join(told)}" if told else "interrupted; nothing was written"
    caches = [str(file) for file in _state.kept if file.exists()]
    if caches:
        said += f"; what was measured is kept in {', '.join(caches)}, and the same command goes on from there"
    return said


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A section that is not left half-way: signals wait until it is over."""
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1
        if not _state.deferred and _state.waiting is not None:
            number, _state.waiting = _state.waiting, None
            _raise(number)


def _arrived(number: int, frame: FrameType | None) -> None:
    while _state.leaving:  # the other thread has the last word
        time.sleep(1)
    if _state.deferred:
        _state.waiting = _state.waiting or number
        return
    _raise(number)


def _raise(number: int) -> None:
    now = time.monotonic()
    if now - _state.raised >= _PAUSE:
        _state.raised = now
        raise Interrupted(number)


def _taken_up(came: float) -> bool:
    return _state.waiting is not None or _state.raised > came - _PAUSE


def _end(number: int, remove: Callable[[], None]) -> None:
    """End the program while a call keeps its main thread; not within a section that must not be left."""
    if _state.deferred:
        return
    _state.leaving = True
    remove()
    with suppress(OSError):
        os.write(2, f"{story()}\n".encode(errors="replace"))
    os._exit(128 + number)


@contextmanager
def heard() -> Iterator[None]:
    """Signals raise `Interrupted` inside; those that the caller ignores (nohup) stay ignored.

    Where a library's call keeps the program from taking one up, it is ended all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.__init__()  # type: ignore[misc]
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, _arrived)
    try:
        with native_calls.watched(before, _taken_up, _end):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
