"""Is a written file valid ONNX, and does every session open it?

Before a file gets its name, onnx's own checker reads it as strictly as it can, and ONNX Runtime opens it at every
graph optimisation level: a fusion that trips over a new width does so for the user, not here, where nobody would look.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from onnxprune.errors import CheckError, OnnxPruneError
from onnxprune.graph import runtime

_OPENING = {"session.disable_prepacking": "1"}
"""Weights are not packed for kernels that never run."""


def check_file(file: Path, dense: Path) -> tuple[str, ...]:
    """Refuse a file that is invalid where the dense one is valid.

    Files whose weights lie beside them are read by path, as the 2 GB limit of protobuf asks for.

    Returns:
        What both files are refused for: known of the dense file, and no fault of what was written.

    Raises:
        CheckError: the checker, or ONNX Runtime at some level, refuses the file and not the dense one.
    """
    tests: dict[str, Callable[[Path], None]] = {"onnx.checker": _checker}
    for level in runtime.optimization_levels():
        tests[f"ONNX Runtime at optimisation level {level}"] = _opener(level)
    said = []
    for name, test in tests.items():
        refused = _refusal(test, file)
        if refused is None:
            continue
        if _refusal(test, dense) is None:
            raise CheckError(f"the file is invalid: {name} refuses it, where it takes the dense one: {refused}")
        said.append(f"{name} refuses the written file as it refuses the dense one: {refused}")
    return tuple(said)


def _checker(file: Path) -> None:
    import onnx

    onnx.checker.check_model(str(file), full_check=True)


def _opener(level: str) -> Callable[[Path], None]:
    def open_once(file: Path) -> None:
        runtime.session(file, optimization=level, config=_OPENING)
        gc.collect(0)  # one session's weights at a time

    return open_once


def _refusal(test: Callable[[Path], None], file: Path) -> str | None:
    """Why a file does not pass, on one line; None where it does."""
    try:
        test(file)
    except OnnxPruneError as error:
        return str(error)
    except Exception as error:  # the checker's own errors share no base class, and some are RuntimeErrors
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None
