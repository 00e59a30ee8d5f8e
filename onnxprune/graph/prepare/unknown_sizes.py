"""Sizes that a file leaves open without a name, or writes as −1, 0 or "?", as exporters of several frameworks do.

Each gets a name of its own, so that it can be reasoned about and stated with --shape; the file that is written leaves
it open again. The first axis of an input counts rows, or the second of a recurrence's state, so that all inputs that do
not name it share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

_DECLARED = "onnxprune.declared"
_NO_NAME = re.compile(r"\W*|-?\d+|None", re.ASCII)
"""What stands for no name: "", "?", "*", "-1", "None"."""


def name_unknown(model: ir.Model) -> None:
    """Name every size of an input that has none; sizes of other values that are no numbers are unknown."""
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    named = [v.shape[0] for v in inputs if v.shape is not None and len(v.shape) and not _open(v.shape[0])]
    rows = next((d.value for d in named if isinstance(d, ir.SymbolicDim) and d.value), None)
    taken = {d.value for v in inputs for d in (v.shape or ()) if isinstance(d, ir.SymbolicDim)}
    for value in inputs:
        if value.shape is None or not any(map(_open, value.shape)):
            continue
        value.meta[_DECLARED] = value.shape
        found: list[int | str] = []
        for axis, dim in enumerate(value.shape):
            if not _open(dim):
                found.append(dim if isinstance(dim, int) else dim.value or "")
            elif axis == _row_axis(value):
                rows = rows or _free("batch", taken)
                found.append(rows)
            else:
                found.append(_free(f"{re.sub(r'[^0-9A-Za-z_]', '_', value.name or 'input')}_dim_{axis}", taken))
        value.shape = ir.Shape(found)
    for value in (*(v for node in model.graph.all_nodes() for v in node.outputs), *model.graph.outputs):
        if value.shape is not None and any(map(_open, value.shape)):
            if value.is_graph_output():
                value.meta.setdefault(_DECLARED, value.shape)
            value.shape = ir.Shape([None if _open(d) else d for d in value.shape])


_STATE = re.compile(r"[hc](x|_?0)?|.*state.*", re.IGNORECASE)


def _row_axis(value: ir.Value) -> int | None:
    """The axis of the rows: the first; of a recurrence's state, [layers, rows, width], the second. None of a vector."""
    shape = list(value.shape or ())
    inside = len(shape) == 3 and not _open(shape[0]) and isinstance(shape[0], int) and _open(shape[1])
    if inside and _STATE.fullmatch((value.name or "").rsplit("/", 1)[-1].removesuffix(":0")):
        return 1
    return 0 if len(shape) > 1 else None


def _open(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dimension says nothing of its size. Nothing has −1 elements, and what has none is not calibrated."""
    if isinstance(dim, int):
        return dim <= 0
    return dim.value is None or bool(_NO_NAME.fullmatch(dim.value))


def _free(name: str, taken: set[str | None]) -> str:
    """A name that no other size has, and that reads as one name."""
    name = name if name[:1].isalpha() else f"d{name}"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


@contextmanager
def left_open(model: ir.Model) -> Iterator[None]:
    """The graph with the sizes that its file leaves open left open, for as long as the block lasts."""
    values = [v for v in (*model.graph.inputs, *model.graph.outputs) if _DECLARED in v.meta]
    named = [(v, v.shape) for v in values]
    try:
        for value in values:
            declared = value.meta[_DECLARED]
            # A mark such as "?" is the file's own name, and its interface; no size is a number below 1.
            value.shape = ir.Shape([None if isinstance(d, int) and _open(d) else d for d in declared])
        yield
    finally:
        for value, shape in named:
            value.shape = shape
