"""Loops whose end nobody can tell: they are given some time, and then stopped.

A loop takes as many turns as a number asks for that may come from the rows, or goes on until its body says otherwise.
What is constant is refused when the file is read (`intake.bounds`); the rest is seen when it runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from onnxprune.errors import LimitError, UsageError
from onnxprune.graph import memory
from onnxprune.graph.outputs import native_calls
from onnxprune.graph.outputs.beside import beside

ALLOWED = 8.0
"""Seconds of processor time for a run of a graph that has loops; a million turns of a few operators take as many."""
_GROWTH = 4
"""Of what may be used, the part by which such a run may grow: a turn may make twice as much as the one before."""
VARIABLE = "ONNXPRUNE_LOOP_SECONDS"
"""Of the environment: another number of seconds."""
_LOOPING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def run(opened: Any, wanted: Sequence[str] | None, feeds: Mapping[str, Any], *, values: bool = False) -> Any:
    """The session's own `run`, which does not go on for ever.

    Args:
        opened: a session of ONNX Runtime.
        values: take and give OrtValues (`run_with_ort_values`).

    Raises:
        LimitError: a loop took more processor time, or memory, than is allowed.
    """
    import onnxruntime as ort

    call, options = opened.run_with_ort_values if values else opened.run, ort.RunOptions()
    if not loops(opened):
        with native_calls.running(options):
            return call(wanted, feeds, options)
    seconds, most = allowed(), memory.limit() // _GROWTH
    options.log_severity_level = 4
    stopped = []

    def watch(over: threading.Event) -> None:
        until, before = time.process_time() + seconds, memory.resident()
        while not over.wait(0.1):
            late, large = time.process_time() > until, memory.resident() - before > most
            if late or large:
                stopped.append(
                    f"has not ended after {seconds:g} s of processor time, on one batch of rows; {VARIABLE} in the "
                    "environment allows more"
                    if late
                    else f"takes more than {memory.shown(most)} of memory on one batch of rows; give shorter or fewer "
                    "rows, or --max-memory more"
                )
                options.terminate = True
                return

    try:
        with beside(watch), native_calls.running(options):
            return call(wanted, feeds, options)
    except Exception as error:
        if not stopped:
            raise
        raise LimitError(f"a loop of the graph {stopped[0]}") from error


def loops(opened: Any) -> bool:
    """Whether a session's graph, or a body in it, has a loop that may go on; unknown is yes."""
    if opened not in _LOOPING:
        try:
            groups = opened.get_provider_graph_assignment_info()
            _LOOPING[opened] = any(node.op_type == "Loop" for group in groups for node in group.get_nodes())
        except (AttributeError, RuntimeError):  # older builds of ONNX Runtime do not tell
            _LOOPING[opened] = True
    return _LOOPING[opened]


def allowed() -> float:
    """Seconds that a run with loops may take.

    Raises:
        UsageError: the environment names no number.
    """
    told = os.environ.get(VARIABLE, "")
    if not told:
        return ALLOWED
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise UsageError(f"{VARIABLE}={told[:40]}: give a number of seconds")
    return seconds
