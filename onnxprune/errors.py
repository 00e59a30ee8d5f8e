"""Every error the tool raises on purpose, with the exit code the command line ends with.

    OnnxPruneError          1   also: a fault of the tool, or the console that the result was told to went away
    ├── UsageError          2   options that contradict each other or name nothing
    ├── InputError          3   the model or the data cannot be read
    │   ├── ModelError
    │   └── DataError
    ├── UnsupportedError    4   a graph we cannot handle; says which node, operator, opset
    │   ├── LimitError          it would take more memory, time or depth than there is; says how much
    │   └── NothingToPruneError
    ├── BudgetError         5   the budget cannot be met; carries the closest that can
    ├── CheckError          6   a self-check failed; nothing was written
    └── OutputError         6   the files cannot be written; nothing was written

A message says what happened, where (file, row, node, operator, opset) and what to do next.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path


class OnnxPruneError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(OnnxPruneError):
    """The request itself is wrong: an unknown option value, two budgets, output equal to input."""

    exit_code = 2


class InputError(OnnxPruneError):
    """Something the user handed over cannot be read."""

    exit_code = 3


class ModelError(InputError):
    """The model file is missing, truncated, not ONNX, or lacks its external data."""


class DataError(InputError):
    """Calibration or evaluation rows cannot be read; the message names file and row."""


class UnsupportedError(OnnxPruneError):
    """The graph holds something the tool cannot work with."""

    exit_code = 4


class LimitError(UnsupportedError):
    """It would take more memory, time or depth than there is; the message says how much."""


class NothingToPruneError(UnsupportedError):
    """No unit of the requested kinds is free to be cut; the message says what pins them."""


class BudgetError(OnnxPruneError):
    """No plan meets the budget.

    Attributes:
        closest: the smallest cost that a plan can reach, in the budget's unit (fraction kept or absolute).
    """

    exit_code = 5

    def __init__(self, message: str, closest: float | None = None) -> None:
        super().__init__(message)
        self.closest = closest


class CheckError(OnnxPruneError):
    """A self-check failed (for example: the written file differs from the plan); nothing was written."""

    exit_code = 6


class OutputError(OnnxPruneError):
    """The files asked for cannot be written: a full or read-only disk, a folder in the way; nothing was written."""

    exit_code = 6


_ABOUT_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EPIPE)


@contextmanager
def reading(what: str, kind: type[OnnxPruneError] = InputError) -> Iterator[None]:
    """The boundary of a reader: whatever goes wrong inside is one error of `kind` about `what`.

    A file that other people made can break any assumption of the code that reads it, and of the libraries below; what
    they raise is kept as the cause.
    """
    try:
        yield
    except (OnnxPruneError, ImportError):  # a package that cannot be imported is no fault of the file
        raise
    except (MemoryError, RecursionError) as error:
        raise LimitError(f"{what}: {said(error)}") from error
    except OSError as error:
        if error.errno in _ABOUT_WRITING:
            raise
        raise (LimitError if out_of_memory(error) else kind)(f"{what}: {said(error)}") from error
    except Exception as error:
        raise (LimitError if out_of_memory(error) else kind)(f"{what}: {said(error)}") from error
    except BaseException as error:
        if not panicked(error):
            raise
        raise kind(f"{what}: {said(error)}") from error


def panicked(error: BaseException) -> bool:
    """Whether a library written in Rust gave up, which is no Exception to Python."""
    return type(error).__name__ == "PanicException"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, is about memory that could not be had."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, MemoryError | SystemError) or any(  # extensions that are refused memory raise the latter
        sign in str(error) for sign in ("allocate memory", "bad_alloc", "bad allocation", "CUDA out of memory")
    )


def said(error: BaseException) -> str:
    """What an error says, in one line that a console can show; of what onnx_ir reads, what it said first."""
    while type(error).__name__ == "SerdeError" and error.__cause__ is not None:  # "Error calling … with: …" around it
        error = error.__cause__
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return one_line(str(error)) or "out of memory"
    if isinstance(error, OSError):
        return one_line(error.strerror or str(error)) or type(error).__name__
    text = one_line(str(error))
    named = isinstance(error, KeyError | AttributeError | TypeError | IndexError | AssertionError | ArithmeticError)
    return f"{type(error).__name__}: {text}" if named and text else text or type(error).__name__


def _typed(error: BaseException) -> str:
    name, text = type(error).__name__, said(error)
    return text if text.startswith(name) else f"{name}: {text}"


def one_line(text: str, most: int = 300) -> str:
    """Text of others on one line: without control characters, which could move a console's cursor, and not too long."""
    flat = " ".join(text.split())
    shown = "".join(c if c.isprintable() else "�" for c in flat)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names of others for a message: as many as are read, in quotes; a table may have a hundred thousand columns."""
    told = [one_line(repr(name), 80) for name in islice(names, most + 1)]
    return ", ".join(told[:most]) + (", …" if len(told) > most else "")


def repeated(names: Iterable[str]) -> str | None:
    """The first of the names that stands there more than once; None where each is alone."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def closest(word: str, names: Iterable[str], alike: float = 0.7) -> str | None:
    """The name that a word stands nearest to; None where none is close, or it is one of them.

    Args:
        alike: how much of the two is the same at least.
    """
    found = difflib.get_close_matches(word, list(names), 1, alike)
    return found[0] if found and found[0] != word else None


def near(word: str, names: Iterable[str]) -> str:
    """ "; did you mean obs?": the closest of some names, to go behind a message; nothing where none is close."""
    found = closest(word, names)
    return f"; did you mean {found}?" if found else ""


def unexpected(name: str, known: Iterable[str]) -> TypeError:
    """Of a keyword that a function does not take: what was meant, or what there is."""
    there = list(known)
    meant = closest(name, there, 0.6)
    hint = f"did you mean {meant!r}?" if meant else f"there are {', '.join(sorted(there))}"
    return TypeError(f"unexpected option {name!r}: {hint}")


def near_file(path: str | os.PathLike[str]) -> str:
    """The same of a file that is not there: by the names that lie where its path ends to be one."""
    missing = Path(path)
    try:
        while not missing.parent.is_dir() and missing != missing.parent:
            missing = missing.parent
        there = {entry.name: entry for entry in islice(missing.parent.iterdir(), _MOST_FILES)}
    except (OSError, ValueError):  # closed to us, or no path at all
        return ""
    found = closest(missing.name, there)
    return f"; did you mean {one_line(str(there[found]))}?" if found else ""


_MOST_FILES = 10_000
"""Files of a folder that are looked at for a name that is near."""


_ADVICE = {
    errno.ENOSPC: "free some space, or write elsewhere with -o",
    errno.EDQUOT: "free some space, or write elsewhere with -o",
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger files; write elsewhere with -o",
    errno.EROFS: "write elsewhere with -o",
    errno.EACCES: "change its permissions, or write elsewhere with -o",
    errno.EPERM: "change its permissions, or write elsewhere with -o",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "choose another name with -o",
    errno.ENOTDIR: "choose another name with -o",
    errno.EEXIST: "choose another name with -o",
    errno.ENOTEMPTY: "choose another name with -o",
    errno.ENOENT: "check the path",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def explained(error: BaseException) -> OnnxPruneError:
    """Whatever reached the outermost boundary as an error that tells what happened, where, and what to do."""
    if isinstance(error, OnnxPruneError):
        return error
    if (number := re.search(r"\(os error (\d+)\)", str(error))) is not None:  # as libraries in Rust say it
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UsageError("a path holds a null character: correct its name")
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # pathlib's, before Python 3.13
        return UsageError(f"{said(error)}: links that lead in a circle name no file; choose another")
    if out_of_memory(error):
        return LimitError(
            f"out of memory ({said(error)}): give fewer or shorter rows (--rows, --max-length), a smaller --shape, or "
            "more memory"
        )
    if isinstance(error, OSError):
        where = " -> ".join(one_line(str(f)) for f in (error.filename, error.filename2) if f is not None)
        advice = _ADVICE.get(error.errno or 0, "check the disk and the permissions")
        return OutputError(f"{where or 'the output'}: {said(error)}; {advice}")
    if isinstance(error, RecursionError):
        return LimitError("something in the model or the data is nested too deeply; --traceback says where")
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= c <= "\udfff" for c in error.object):
        return UsageError(f"a name or an option holds half a character ({said(error)}): correct it")
    if isinstance(error, ImportError):
        return OnnxPruneError(
            f"a package that onnxprune needs cannot be imported ({_typed(error)}): install onnxprune again, in a new "
            "environment if need be"
        )
    return OnnxPruneError(
        f"a fault of onnxprune, or an input it did not expect ({_typed(error)}); --traceback "
        "says where: please report it"
    )
