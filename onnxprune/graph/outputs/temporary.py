"""Folders for temporary files, which go with what made them: at once, or, where that was killed, by the next run.

Each holds a file that its process has locked. The system gives the lock back however a process dies, so that a folder
whose lock is free can go; one without that file is nobody's of ours, whatever its name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxprune.graph.outputs import lock, native_calls

logger = logging.getLogger(__name__)

PREFIX = "onnxprune-"
_LOCK = ".onnxprune-lock"
_YOUNG = 3600
"""Seconds in which an empty folder may be one whose maker has not come to lock it."""
_FULL = 1 << 20
"""Bytes that are left of a disk that is full: less than a write that failed."""
_tidied: set[str] = set()
"""Places where this process has looked for what the dead left."""


class Scratch:
    """A folder for temporary files.

    Attributes:
        path: where they go; empty at first.
    """

    def __init__(self) -> None:
        tidy()
        while not self._made():
            pass

    def _made(self) -> bool:
        """Make and lock it; False where another process took it for a dead one's before it was locked."""
        self._root = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.path = self._root / "files"
        self._descriptor = -1
        try:
            self._descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if not lock.locked(self._descriptor) or not lock.is_at(self._descriptor, self._root / _LOCK):
                os.close(self._descriptor)
                return False
            native_calls.leave(self, self.close)
            os.write(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            self.path.mkdir()
            return True
        except BaseException as error:
            self.close()
            _placed(error, self._root)
            raise

    def close(self) -> None:
        """Remove it, with all that is in it."""
        native_calls.left(self)
        shutil.rmtree(self.path, ignore_errors=True)  # its lock last: what is left if this dies can still be told
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        shutil.rmtree(self._root, ignore_errors=True)


class Lasting:
    """A folder for temporary files, which goes with the last that refers to this.

    Attributes:
        path: where they go.
    """

    def __init__(self) -> None:
        held = Scratch()
        self.path = held.path
        weakref.finalize(self, held.close)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for temporary files, until the block is left."""
    held = Scratch()
    try:
        yield held.path
    except OSError as error:
        _placed(error, held.path)
        raise
    finally:
        held.close()


def _placed(error: BaseException, folder: Path) -> None:
    """A full disk is told of no file: say so where it is the one of temporary files, not that of the output."""
    if not (isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None):
        return
    with suppress(OSError):
        if shutil.disk_usage(folder if folder.exists() else folder.parent).free < _FULL:
            error.filename = f"{folder} (TMPDIR names another place for temporary files)"


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
            _remove_left(folder)


def _remove_left(folder: Path) -> None:
    """Remove a folder if it is one of these whose process is dead; its lock is held meanwhile."""
    found = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        return
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        if time.time() - found.st_mtime > _YOUNG:
            folder.rmdir()  # which leaves it if there is anything in it
        return
    try:
        if lock.locked(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
            logger.info("%s: was left by a run that was killed, and is removed", folder)
    finally:
        os.close(descriptor)
