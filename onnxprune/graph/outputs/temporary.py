"""Folders for temporary files, which go with what made them: at once, or, where that was killed, by the next run.

Each holds a file that its process has locked. The system gives the lock back however a process dies, so that a folder
whose lock is free can go; one without that file is nobody's of ours, whatever its name.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxprune.graph.outputs import lock

logger = logging.getLogger(__name__)

PREFIX = "onnxprune-"
_LOCK = ".onnxprune-lock"
_YOUNG = 3600
"""Seconds in which an empty folder may be one whose maker has not come to lock it."""
_tidied: set[str] = set()
"""Places where this process has looked for what the dead left."""


class Scratch:
    """A folder for temporary files.

    Attributes:
        path: where they go; empty at first.
    """

    def __init__(self) -> None:
        tidy()
        self._root = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.path = self._root / "files"
        try:
            self._descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            lock.locked(self._descriptor)
            os.write(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            self.path.mkdir()
        except BaseException:
            shutil.rmtree(self._root, ignore_errors=True)
            raise

    def close(self) -> None:
        """Remove it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)  # its lock last: what is left if this dies can still be told
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        shutil.rmtree(self._root, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for temporary files, until the block is left."""
    held = Scratch()
    try:
        yield held.path
    finally:
        held.close()


@contextmanager
def everything() -> Iterator[Path]:
    """The same, for whatever the libraries called inside put into temporary files of their own, too."""
    with scratch() as place:
        before, tempfile.tempdir = tempfile.tempdir, str(place)
        try:
            yield place
        finally:
            tempfile.tempdir = before


def tidy() -> None:
    """Remove what dead processes left where temporary files go; looked at once by each process."""
    base = tempfile.gettempdir()
    if base in _tidied:
        return
    _tidied.add(base)
    for folder in Path(base).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _left(folder):
                shutil.rmtree(folder, ignore_errors=True)
                logger.info("%s: was left by a run that was killed, and is removed", folder)


def _left(folder: Path) -> bool:
    """Whether a folder is one of these whose process is dead."""
    found = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        return False
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return time.time() - found.st_mtime > _YOUNG and not any(folder.iterdir())
    try:
        return lock.locked(descriptor)
    finally:
        os.close(descriptor)
