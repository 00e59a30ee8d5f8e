"""What tests let workers do: functions of a module that a worker can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from onnxprune.errors import BudgetError
from onnxprune.pipeline import remote
from onnxprune.probe import threads
from onnxprune.probe.interpreter import Interpreter

ANY = cast(Interpreter, SimpleNamespace(device="cpu", streams=False))


def squared(task: tuple[int, str, float], shared: dict[str, int]) -> int:
    """The square of a number, plus what is shared; the first who finds no file by the given name kills its process."""
    number, marker, wait = task
    time.sleep(wait)
    if marker and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number + shared["more"]


def refused(task: int) -> int:
    raise BudgetError(f"{task} cannot be met", closest=0.5)


def process(task: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def late(task: int, *shared: object) -> tuple[int, float]:
    """The process that did it, and when; no task takes as long as the one before."""
    began = time.monotonic()
    time.sleep(0.01 + 0.01 * (task * 7 % 5))
    return os.getpid(), began


def lies(task: Any) -> str | None:
    """The file that an array lies in; None in memory."""
    file = getattr(task, "filename", None)
    return None if file is None else str(file)


def cores(wait: bool) -> int:
    """How many batches run at once in the worker; who waits does until there are two, half a minute at most."""
    began = time.monotonic()
    while wait and threads.count(ANY) < 2 and time.monotonic() < began + 30:
        time.sleep(0.02)
    return threads.count(ANY)


def asleep(seconds: float) -> None:
    time.sleep(seconds)


def killed(task: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted(task: remote.Task, *shared: Any) -> remote.Planned | remote.Lacking:
    """`remote.plan`, whose process is killed the first time that it is at the smallest budget."""
    found = remote.plan(task, *shared)
    marker = Path(os.environ["ONNXPRUNE_TEST_DIED"])
    if task.budget is not None and task.budget.value == 0.5 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found


_remembered: list[bytes] = []


def remembering(task: int) -> int:
    """The process that did it, which keeps 400 MB from its second task on."""
    if task:
        _remembered.append(b"x" * 400_000_000 if len(_remembered) == 1 else b"")
    time.sleep(1.1)  # what watches over it looks no more often than once a second
    return os.getpid()
