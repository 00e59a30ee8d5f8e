"""Standard output and its errors, which are no file's; and descriptors that are closed when a command starts."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Unheard(Exception):
    """Standard output takes no more; the cause says why."""


class _Out(io.FileIO):
    """Standard output below its buffers."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise Unheard from error


def told_apart(descriptor: int, encoding: str, line_buffering: bool = False, closefd: bool = True) -> io.TextIOWrapper:
    """Text to a descriptor that raises `Unheard` where it takes no more; what an encoding lacks is a mark."""
    out = io.BufferedWriter(_Out(descriptor, "wb", closefd=closefd))
    return io.TextIOWrapper(out, encoding, "replace", line_buffering=line_buffering)


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Standard output and error as a command has them; another program's or a test's are left as they are."""
    with contextlib.suppress(OSError):
        _fill()
    before = sys.stdout
    if type(before) is io.TextIOWrapper:
        sys.stdout = told_apart(before.fileno(), before.encoding, before.line_buffering, closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of nodes and files may hold what a console's encoding lacks: a mark in its place, no error.
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        sys.stdout = before


def _fill() -> None:
    """Put nothing in the place of closed standard descriptors, which the next files opened would have otherwise.

    What a library prints would go into them.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(nowhere, descriptor)
        if descriptor and getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "wb"), "utf-8"))
    if nowhere > 2:
        os.close(nowhere)
