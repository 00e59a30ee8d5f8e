"""A task in the process that it was handed to, by whichever engine: what it reads, may use and answers."""

from __future__ import annotations

import platform
import threading
import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.probe import threads

_ALONE = threading.Lock()
"""A process does one task at a time: planners are not made for threads, of which a cluster's worker may have more."""


def call(function: Callable[..., Any], task: Any, cores: Cores | None, *shared: Any) -> Any:
    """`function(task, *shared)`, its error if that is one of ours, or Unseen.

    Args:
        cores: that it may use beside its own.
        shared: the values, or the files that they are in.
    """
    with _ALONE, threads.lent(cores) if cores is not None else nullcontext():
        try:
            try:
                values = [s.read() if isinstance(s, InFile) else s for s in shared]
            except FileNotFoundError:
                return Unseen()
            return function(task, *values)
        except OnnxPruneError as error:
            return Failed(error)


@dataclass(frozen=True)
class Failed:
    """An error of ours, which an engine would wrap in one of its own."""

    error: OnnxPruneError


@dataclass(frozen=True)
class Unseen:
    """Instead of a result: what is shared lies in a file that this process does not see."""


def told(result: Any) -> Any:
    """For who asked: the result that came back.

    Raises:
        OnnxPruneError: it was an error instead, or what tasks share is gone.
    """
    if isinstance(result, Failed):
        raise result.error
    if isinstance(result, Unseen):
        raise OnnxPruneError("temporary files of this run are gone; TMPDIR names a folder that nobody cleans up")
    return result


@dataclass(frozen=True)
class InFile:
    """What tasks share, in a file."""

    path: Path

    @classmethod
    def of(cls, value: Any, folder: Path) -> InFile:
        """A value, written into a folder."""
        import joblib

        file = folder / f"{uuid.uuid4().hex}.pkl"
        joblib.dump(value, file)
        return cls(file)

    def read(self) -> Any:
        """The value, its arrays mapped; the last few stay."""
        return _read(self.path)


@lru_cache(maxsize=8)
def _read(path: Path) -> Any:
    import joblib

    return joblib.load(path, mmap_mode="c")  # what a worker writes to is its own


@dataclass(frozen=True)
class Cores:
    """How many cores of this machine who is at a task may use: those of the idle are free, and a file tells.

    Attributes:
        all: of all processes together; 0 where they are elsewhere, which lends nobody any.
        count: of these processes.
    """

    file: Path
    all: int
    count: int

    def share_out(self, tasks: int) -> None:
        """All cores, among those who are at the tasks that are left."""
        self.file.write_text(str(self.all // max(min(tasks, self.count), 1)), encoding="ascii")

    def __call__(self) -> int:
        with suppress(OSError, ValueError):  # it is being written, or who asked is gone
            return int(self.file.read_text(encoding="ascii"))
        return 0


@dataclass(frozen=True)
class Place:
    """Where a process is.

    Attributes:
        sees: whether a folder is there.
    """

    machine: str
    sees: bool


def where(folder: Path | None = None) -> Place:
    """This process's place."""
    boot = ""
    with suppress(OSError):  # containers may be called alike
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return Place(f"{platform.node()} {boot}", folder is not None and folder.is_dir())
