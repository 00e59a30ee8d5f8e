"""Sizes of inputs that the weights tell: a convolution takes as many channels as its kernels have, whatever exporters
call that dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.graph import ops

_ALONG = ("Cast", "Add", "Sub", "Mul", "Div", "Identity", "Clip", "Pad", "Transpose", "Resize")
"""What may stand between an input and the first product: each axis stays itself, or is moved."""
_STEPS = 8


def sizes_told(graph: ir.Graph) -> dict[str, int]:
    """Symbol -> size, of the inputs' dimensions that are contracted with a weight's."""
    found: dict[str, int] = {}
    for value in graph.inputs:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            name = dim.value if isinstance(dim, ir.SymbolicDim) else None
            if name is not None:
                for size in _contracted(value, axis, _STEPS):
                    found.setdefault(name, size)
    return found


def _contracted(value: ir.Value, axis: int, steps: int) -> Iterator[int]:
    """The sizes of the weights' axes that an axis of a value meets, as far as nothing but copies lies between."""
    for node, index in value.uses():
        if index == 0 and node.op_type in ("Conv", "MatMul", "Gemm") and node.domain == "" and len(node.inputs) > 1:
            weight, rank = node.inputs[1], len(value.shape or ())
            if weight is None or weight.const_value is None:
                continue
            sizes = list(weight.const_value.shape.numpy())
            if node.op_type == "Conv" and axis == 1:
                yield sizes[1] * ops.attribute(node, "group", 1)
            elif node.op_type == "MatMul" and axis == rank - 1 and len(sizes) > 1:
                yield sizes[-2]
            elif node.op_type == "Gemm" and axis == (0 if ops.attribute(node, "transA", 0) else 1):
                yield sizes[1 if ops.attribute(node, "transB", 0) else 0]
        elif index == 0 and steps and node.op_type in _ALONG and _shapes_alike(node):
            yield from _contracted(node.outputs[0], _moved(node, axis, len(value.shape or ())), steps - 1)


def _shapes_alike(node: ir.Node) -> bool:
    """Whether a node's other operands are constants that widen nothing."""
    return all(v is None or v.const_value is not None for v in node.inputs[1:]) and len(
        node.outputs[0].shape or ()
    ) == len(node.inputs[0].shape or () if node.inputs[0] is not None else ())


def _moved(node: ir.Node, axis: int, rank: int) -> int:
    if node.op_type != "Transpose":
        return axis
    order = list(ops.attribute(node, "perm", None) or reversed(range(rank)))
    return order.index(axis)
