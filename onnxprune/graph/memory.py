"""How much memory a run may take, and what of it each kind of thing may hold.

There is one limit: what was stated (`--max-memory`), for as long as that run lasts, or what the machine has. What is
read again from a file when it is asked for (weights), or run in segments (sessions), keeps to a share of it; what
cannot is refused with the figure.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune.errors import LimitError, UsageError

USUAL = 8_000_000_000
"""Bytes that a run plans with where none are stated and the machine does not tell: what a laptop has left."""
WHOLE = 3_000_000_000
"""Bytes of weights up to which a model is held whole, where no limit is stated and the machine has enough."""
LIBRARIES = 360_000_000
"""Bytes that the libraries themselves take, torch loaded and a graph being read: of a small limit, a good part."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_stated: ContextVar[int | None] = ContextVar("stated", default=None)


def parse(text: str) -> int:
    """Bytes of "8GB", "500MB" or a number of them.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE | re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError(f"--max-memory {text}: give an amount such as 8GB or 500MB")
    return size


@contextmanager
def limited(nbytes: int | None) -> Iterator[None]:
    """State the limit of what is done inside; None for what the machine has."""
    token = _stated.set(nbytes)
    try:
        yield
    finally:
        _stated.reset(token)


def stated() -> bool:
    """Whether the limit was asked for, so that what exceeds it is refused."""
    return _stated.get() is not None


def limit() -> int:
    """Bytes that the process may hold. Unstated, it is the machine's, free or not: the same for every run there."""
    return _stated.get() or _installed()


def share() -> int:
    """Bytes that weights may take in one place at a time: a model of this size or less is held whole.

    There are two such places at most (the interpreter and a session, or the sessions of two models); the rest is for
    libraries, activations and second moments. What was not asked for is not taken by the dozen of gigabytes, however
    large the machine.
    """
    own = (limit() - min(LIBRARIES, limit() // 2)) // 4
    return own if stated() else min(own, WHOLE)


def small_share() -> int:
    """Bytes of what is read seldom (second moments, refit weights): the rest of it lies in temporary files."""
    return share() // 2


def available() -> int | None:
    """Bytes that may be taken now: as stated, or what the machine and the control group have left; None if untold."""
    if stated():
        return limit()
    return min((size for size in (_machine("MemAvailable"), _group_left()) if size is not None), default=None)


def resident() -> int:
    """Bytes that this process has in memory now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The most bytes that this process has had in memory.

    Of a program that another one started, the system's own accounts count what that one held, too; what it says of the
    process itself does not.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@cache
def keep_freed() -> None:
    """Let blocks that are freed be taken again as they are, until `give_back`.

    By itself glibc returns the end of its heap whenever half a dozen activations have been freed, and the system fills
    each page with zeros before it is had again: a third of an encoder's forward pass. Other C libraries are left alone.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)  # the most that all versions take; larger ones are returned at once
        libc.mallopt(_TRIM_THRESHOLD, 1 << 28)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""As malloc.h names them."""


def give_back() -> None:
    """Return to the system what has been let go: glibc keeps it, and what comes next may be larger."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    _least[:] = [resident()]


SLACK = 2**28
"""Bytes by which a process may grow before it is worth looking what of that is in use: what was returned and is asked
for again is filled with zeros first, in a tenth of a second."""
ROOM = 1_600_000_000
"""Bytes up to which a process keeps what it has let go, or half of its limit: small models do not wait for zeros."""
_least: list[int] = []
"""What the process had in memory when it last gave back."""


def ease() -> None:
    """`give_back`, if much has come since: for between steps, each of which lets go what another has no use for."""
    if resident() > max((_least[0] if _least else 0) + SLACK, min(ROOM, limit() // 2)):
        give_back()


@cache
def _glibc() -> Any:
    """The C library, where it is glibc."""
    try:
        libc = ctypes.CDLL(None)
        return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None
    except (OSError, TypeError):  # Windows has no such handle at all
        return None


def require(nbytes: float, what: str) -> None:
    """Refuse what the limit cannot hold.

    Raises:
        LimitError: it would take more; names both figures.
    """
    if nbytes > limit():
        known = f"--max-memory is {shown(limit())}" if stated() else f"there are {shown(limit())}"
        raise LimitError(
            f"{what} takes about {shown(nbytes)} of memory, and {known}; give --max-memory more, or less to do"
        )


def shown(nbytes: float) -> str:
    """Bytes for people."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if nbytes >= u / 10), (1e3, "KB"))
    return f"{nbytes / unit:.1f} {name}"


@cache
def _installed() -> int:
    """Bytes that the machine, or the control group, gives this process in all."""
    return min((size for size in (_machine("MemTotal"), _group("max")) if size is not None), default=USUAL)


def _machine(entry: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = next(line for line in lines if line.startswith(f"{entry}:"))
        return int(told.split()[1]) * 1024
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _group(entry: str) -> int | None:
    try:
        return int(Path(f"/sys/fs/cgroup/memory.{entry}").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no limit is the word "max"
        return None


def _group_left() -> int | None:
    most, used = _group("max"), _group("current")
    return None if most is None or used is None else max(most - used, 0)
