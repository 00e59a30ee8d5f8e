"""One run at a time writes a set: a hidden folder beside the output, held by an advisory lock on a file in it.

The system gives the lock back when its process dies, however it dies, so that a folder whose lock is free was left by a
dead run. Where a file system has no locks, the process number in the file decides.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError

SUFFIX = ".onnxprune"
"""Of the hidden folders."""
INSIDE = f".folder{SUFFIX}"
"""The one in a folder of which every file is written."""
_LOCK = "lock"
_OURS = {_LOCK, "new", "old", "current", "current.next", "link", "links", "journal.json", "journal.json.part"}
"""What such a folder may hold."""
_LINKS = {"current", "current.next", "link"}
"""What of it is a link."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


_HELD_FILES_GO = os.name == "posix"
"""Whether a file can be removed while it is open, so that nobody takes the lock in between."""


@dataclass(eq=False)
class Lock:
    """A hidden folder that this process holds.

    Attributes:
        folder: where a set is put together.
        descriptor: of the locked file; the lock goes with it.
    """

    folder: Path
    descriptor: int

    @property
    def about(self) -> str:
        """The name that the user gave to what is written."""
        return _about(self.folder)

    def release(self, *, remove: bool = True) -> None:
        """Give the folder up; `remove` it, which is right once nothing in it is needed."""
        if self.descriptor < 0:
            return
        try:
            if remove:
                clear(self.folder)
                if _HELD_FILES_GO:
                    self._remove()
        finally:
            os.close(self.descriptor)
            self.descriptor = -1
        if remove and not _HELD_FILES_GO:
            self._remove()

    def _remove(self) -> None:
        (self.folder / _LOCK).unlink(missing_ok=True)
        self.folder.rmdir()


def clear(folder: Path) -> None:
    """Empty a hidden folder but for its lock; the journal first, so that no half of one is ever read."""
    (folder / "journal.json").unlink(missing_ok=True)
    for entry in sorted(folder.iterdir()):
        if entry.name == _LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def acquire(folder: Path, names: Sequence[str]) -> Lock:
    """Hold a hidden folder, made where it is not there.

    Args:
        names: of the files that it is about, for others to read.

    Raises:
        UsageError: a living run holds it, or something else is in its place.
    """
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            if not is_ours(folder):
                raise UsageError(f"{folder}: is in the way of what is written here; move it elsewhere") from None
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
        except FileNotFoundError:  # the run that held it has just removed it
            continue
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which leaves it if there is anything in it
            raise
        if not locked(descriptor):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UsageError(_told(folder, holder))
        if is_at(descriptor, folder / _LOCK):
            break
        os.close(descriptor)  # removed between opening and locking
    held = Lock(folder, descriptor)
    told = {"pid": os.getpid(), "host": socket.gethostname(), "names": list(names)}
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(told).encode())
    except BaseException:
        held.release()
        raise
    return held


def left_behind(base: Path, name: str = "*") -> Iterator[Lock]:
    """The hidden folders in `base` that dead runs left, all or those for one name, held from now on."""
    for folder in sorted(base.glob(f".*{SUFFIX}")):
        if name in ("*", _about(folder)) and is_ours(folder):
            try:
                descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK)
            except OSError:
                continue
            if locked(descriptor) and is_at(descriptor, folder / _LOCK):
                yield Lock(folder, descriptor)
            else:
                os.close(descriptor)


def refuse_shared(base: Path, own: Path, names: Sequence[str]) -> None:
    """Refuse names that another living run in the same folder writes.

    Raises:
        UsageError: says which run.
    """
    for folder in sorted(base.glob(f".*{SUFFIX}")):
        if folder == own or not is_ours(folder):
            continue
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDONLY | _NO_LINK)
        except OSError:
            continue
        holder = _holder(descriptor)
        os.close(descriptor)
        if set(holder.get("names", ())) & set(names):
            raise UsageError(_told(folder, holder))


def is_ours(folder: Path) -> bool:
    """Whether a folder is one of these, or what is left of one.

    It may have come with a model that others made: one in which links lead elsewhere is none of ours.
    """
    if not folder.is_dir() or folder.is_symlink():
        return False
    entries = list(folder.iterdir())
    return all(entry.name in _OURS and (entry.name in _LINKS or not entry.is_symlink()) for entry in entries)


def _told(folder: Path, holder: dict[str, Any]) -> str:
    name = _about(folder)
    if holder.get("pid") == os.getpid():
        return f"{name}: this run writes it already under another option; give each its own name"
    who = f"process {holder['pid']} on {holder['host']}" if "pid" in holder else "another process"
    return f"{name}: {who} is writing it at this moment; wait for that run, or choose another name"


def _about(folder: Path) -> str:
    """The name that the user gave to what is written in a hidden folder."""
    return folder.parent.name if folder.name == INSIDE else folder.name.removeprefix(".").removesuffix(SUFFIX)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        told = json.loads(os.read(descriptor, 1 << 20))
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        return {}


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has a name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def locked(descriptor: int) -> bool:
    """Take the lock of a file if it is free; it lasts until the descriptor is closed."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows: a byte far behind what is written stands for the file
        import msvcrt

        try:
            os.lseek(descriptor, 1 << 24, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return not _alive(_holder(descriptor))
    return True


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process that a lock names may be running; one of another machine may always be."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
