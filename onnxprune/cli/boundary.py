"""The outermost boundary: every way a command can end, as one line on stderr and an exit code of `errors`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from onnxprune.cli import streams
from onnxprune.errors import OnnxPruneError, UsageError, explained, panicked, said
from onnxprune.graph.outputs import interrupts

TRACEBACK = "--traceback"
"""The option that shows developers where an error came from."""


def guarded(call: Callable[[], object]) -> int:
    """Run a command; the exit code it ends with. What went wrong is told in one line."""
    with streams.ours():
        return _ended(call)


def _ended(call: Callable[[], object]) -> int:
    try:
        if TRACEBACK not in sys.argv:
            os.environ["RUST_BACKTRACE"] = "0"  # what a panic of a library in Rust adds to its line
        _somewhere()
        with interrupts.heard():
            call()
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except interrupts.Interrupted as interrupted:
        _tell(_shown(interrupts.story()))
        return interrupted.exit_code
    except (click.Abort, KeyboardInterrupt):
        _tell(_shown(interrupts.story()))
        return 130
    except click.ClickException as error:
        _quietly(error.show)
        return error.exit_code
    except streams.Unheard as lost:
        return _unheard(lost.__cause__)
    except BrokenPipeError as error:
        return _failed(error) if error.filename is not None else _unheard(error)
    except SystemExit as done:
        if not isinstance(done.__context__, BrokenPipeError):  # which click makes of it
            raise
        return _unheard(done.__context__)
    except Exception as error:
        return _failed(error)
    except BaseException as error:
        if not panicked(error):
            raise
        return _failed(error)


def _somewhere() -> None:
    """Refuse a working folder that is gone: native libraries look for their parts from it, and end the process.

    Raises:
        UsageError: there is none.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the folder that this runs in is no longer there; change into one that is") from None


def _unheard(error: BaseException | None) -> int:
    """Standard output takes no more: what was told there is lost, what was written is not."""
    _to_nowhere()
    why = f"takes no more ({said(error)})" if error and not isinstance(error, BrokenPipeError) else "was closed"
    _tell(f"onnxprune: standard output {why} before all was told; files that are done stay")
    return OnnxPruneError.exit_code


def _failed(error: BaseException) -> int:
    if TRACEBACK in sys.argv:
        _tell("".join(traceback.format_exception(error)))
    known = explained(error)
    _tell(f"onnxprune: {_shown(str(known))}")
    try:
        sys.stdout.flush()
    except (OSError, streams.Unheard):
        _to_nowhere()  # nothing more goes there, at exit either
    return known.exit_code


def _shown(text: str) -> str:
    """A message without control characters, which a name in a model could hold; its own line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _tell(text: str) -> None:
    _quietly(lambda: click.echo(text, err=True))


def _quietly(call: Callable[[], object]) -> None:
    """There may be no one to tell."""
    with contextlib.suppress(OSError):
        call()


def _to_nowhere() -> None:
    """Standard output is closed: what is left in its buffer must not fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
