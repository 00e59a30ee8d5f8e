"""Batches side by side, each on a thread of its own.

Torch shares out every operator among its threads, and they meet behind each. A batch of calibration rows has some
hundred tokens: its operators take a millisecond or less, and where waiting threads sleep (`OMP_WAIT_POLICY`) a second
core was worth a tenth of the time. Batches need not meet: one thread runs a whole one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from onnxprune.probe.interpreter import Interpreter

T = TypeVar("T")
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
"""(process, threads) -> who runs batches: threads do not go along into a forked process."""
_inside = threading.local()
_changing = threading.Lock()
_users: list[int] = []
"""What torch's threads were when they were set to one, once for each who has asked for it and is not done."""
_lent: list[Callable[[], int]] = []
"""How many cores of processes that wait, once for each who lends them."""


def count(interpreter: Interpreter) -> int:
    """How many batches of a graph run at once: one where its weights are read anew for each pass, or on a GPU."""
    if interpreter.device != "cpu" or interpreter.streams or getattr(_inside, "busy", False):
        return 1
    return max([_torch_threads(), *(min(cores(), os.cpu_count() or 1) for cores in _lent)])


@contextmanager
def lent(cores: Callable[[], int]) -> Iterator[None]:
    """So many batches run at once, whatever torch's threads are: whoever else has these cores waits for the result.

    Operators between batches stay at torch's threads, so that sums are the same.

    Args:
        cores: how many, asked before each pass: others may be done while this one goes on.
    """
    _lent.append(cores)
    try:
        yield
    finally:
        _lent.remove(cores)


def each(interpreter: Interpreter, number: int, run: Callable[[int], T], most: int | None = None) -> list[T]:
    """`run(0)`, `run(1)` …, in this order.

    Args:
        run: of a batch, by its place among `number`; the last ones are the longest (`Dataset.batches`) and begin first.
        most: that run at once, where each takes much memory; None for as many as there are threads.
    """
    threads = min(count(interpreter), number, most or number)
    if threads < 2:
        return [run(i) for i in range(number)]
    with _alone(threads) as pool:
        begun = {i: pool.submit(copy_context().run, _run, run, i) for i in reversed(range(number))}
        return [_result(begun[i], begun.values()) for i in range(number)]


def pipelined(interpreter: Interpreter, number: int, run: Callable[[int], T], take: Callable[[T], Any]) -> None:
    """`take(run(i))` for all batches in order: few more results are held at a time than there are threads."""
    threads = min(count(interpreter), number)
    if threads < 2:
        for i in range(number):
            take(run(i))
        return
    with _alone(threads) as pool:
        begun: list[Future[T]] = []
        for i in range(number):
            begun.append(pool.submit(copy_context().run, _run, run, i))
            if len(begun) == threads:
                take(_result(begun[0], begun))
                del begun[0]
        while begun:
            take(_result(begun[0], begun))
            del begun[0]


def _torch_threads() -> int:
    import torch

    with _changing:
        return _users[0] if _users else int(torch.get_num_threads())


def _run(run: Callable[[int], T], i: int) -> T:
    _inside.busy = True
    _one_thread()
    return run(i)


def _one_thread() -> None:
    """Each thread knows of its own how many OpenMP gives it."""
    if not getattr(_inside, "alone", False):
        import torch

        torch.set_num_threads(1)
        _inside.alone = True


def _result(first: Future[T], others: Sequence[Future[T]] | Any) -> T:
    """What came of one; where it failed the others are not begun any more."""
    try:
        return first.result()
    except BaseException:
        for other in others:
            other.cancel()
        raise


@contextmanager
def _alone(threads: int) -> Iterator[ThreadPoolExecutor]:
    """The threads that run batches, while operators keep to the one that they are called from."""
    import torch

    key = os.getpid(), threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, "onnxprune-batches")
    with _changing:
        _users.append(_users[0] if _users else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield _pools[key]
    finally:
        with _changing:
            before = _users.pop()
            if not _users:
                torch.set_num_threads(before)
