"""Where what activations hold decides which positions are read: experts that get the tokens routed to them, the best of
many queries. A pruned model may choose others, so that the n-th of them is not what it was in the dense one."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxprune.graph import ops

_SIZES = ("Shape", "Size")
"""Of a tensor these tell what no weight decides."""
_PICKING = ("Gather", "GatherND", "GatherElements", "Compress", "Slice")
"""Their first operand at the places that the others tell."""
_PUT_BACK = ("ScatterND", "ScatterElements")
"""Positions are those of the first operand again."""


def chosen_values(graph: Iterable[ir.Node]) -> frozenset[str]:
    """Names of the values whose positions were chosen by what products gave."""
    moving: set[str] = set()
    chosen: set[str] = set()
    for node in graph:
        read = [v.name or "" for v in node.inputs if v is not None]
        written = [v.name or "" for v in node.outputs if v.name]
        operator = ops.lookup(node)
        product = operator is not None and operator.macs is not None
        if node.op_type not in _SIZES and (product or not moving.isdisjoint(read)):
            moving.update(written)
        if node.op_type in _PUT_BACK:
            found = read[0] in chosen
        else:
            picks = node.op_type in _PICKING and any(_decided(v, moving) for v in node.inputs[1:])
            found = picks or not chosen.isdisjoint(read)
        if found and node.op_type not in _SIZES:
            chosen.update(written)
    return frozenset(chosen)


def _decided(value: ir.Value | None, moving: set[str]) -> bool:
    """Whether places are among what products decide."""
    return value is not None and value.name in moving
