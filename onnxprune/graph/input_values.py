"""What a graph takes as values of an input, told by what reads it: indices below a table's length, numbers or none."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph.values import dims

PASSED_ON = frozenset(
    (
        "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    )
)  # fmt: skip
"""Operators whose outputs hold values of their first input (Concat's: of any) as they are."""
_MISSING = frozenset(("Imputer", "IsNaN", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"))
"""Operators for which NaN stands for what is not known."""


def limit(value: ir.Value) -> int | str | None:
    """What values stay below where they are indices: a table's length, or the name of one; None where nothing tells.

    Of several tables the shortest, of lengths that are known by name the first.
    """
    found = [size for node, place in _readers(value) if place == 1 for size in _looked_up(node) if size is not None]
    numbers = [size for size in found if isinstance(size, int)]
    return min(numbers) if numbers else next(iter(found), None)


def _looked_up(node: ir.Node) -> Sequence[int | str | None]:
    """The dimensions of a node's first input in which its second names places."""
    data, places = (dims(v) for v in node.inputs[:2])
    if data is None or places is None:
        return ()
    if node.op_type in ("Gather", "GatherElements", "ScatterElements"):
        axis = node.attributes.get_int("axis", 0)
        return (data[axis],) if -len(data) <= axis < len(data) else ()
    if node.op_type in ("GatherND", "ScatterND") and places and isinstance(places[-1], int):
        first = node.attributes.get_int("batch_dims", 0)
        return data[first : first + places[-1]]
    return ()


def may_be_missing(value: ir.Value) -> bool:
    """Whether the graph fills in, or asks for, what is NaN."""
    return any(node.op_type in _MISSING for node, _ in _readers(value))


def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Every node that reads the values as they are, with the number of its input."""
    found, open_values, seen = [], [value], {value}
    while open_values:
        for node, place in open_values.pop().uses():
            found.append((node, place))
            if node.op_type in PASSED_ON and (place == 0 or node.op_type == "Concat"):
                more = [v for v in node.outputs if v not in seen]
                seen.update(more)
                open_values += more
    return found
