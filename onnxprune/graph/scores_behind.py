"""Outputs that are answers, not scores: an ArgMax, a comparison, labels by name, a ZipMap. What they were made from is
what can be compared by degrees."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.graph.nested import reads


def is_score(value: ir.Value) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    told = value.type is None or isinstance(value.type, ir.TensorType)
    return told and value.dtype is not None and value.dtype.is_floating_point()


def scores_behind(graph: ir.Graph) -> dict[str, ir.Value]:
    """Output -> the floating-point value that it follows from; none where an output is itself one."""
    if any(is_score(v) for v in graph.outputs):
        return {}
    found: dict[str, ir.Value] = {}
    for output in graph.outputs:
        value = next(_behind(output), None)
        if value is not None and value not in found.values():
            found[output.name or ""] = value
    return found


def frontier(value: ir.Value) -> list[ir.Value]:
    """All the nearest scores that an answer follows from: of a NonMaxSuppression its boxes and their scores."""
    return list(_behind(value))


def _behind(value: ir.Value) -> Iterator[ir.Value]:
    """The nearest scores on the way back from a value, those along its nodes' first operands first."""
    open_values, seen = [value], {value}
    while open_values:
        node = open_values.pop(0).producer()
        for operand in reads(node) if node is not None else ():
            if operand is None or operand in seen or operand.const_value is not None or operand.producer() is None:
                continue
            seen.add(operand)
            if is_score(operand):
                yield operand
            else:
                open_values.append(operand)
