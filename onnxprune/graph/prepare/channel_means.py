"""Means over channels that scale them (global response normalisation, ConvNeXt V2), as sums over a number that stays.

A mean counts its elements, so its axis cannot be cut; a sum over the number of channels that there were can: what is
gone adds what zero adds. Only means of one statistic a channel that something is divided by are rewritten: those of
norms are of values that lie side by side, and a norm over fewer is another one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.values import constant, dims, succeed

_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_STATISTICS = frozenset((*_POOLS, "ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare", "ReduceMax", "ReduceMean"))
"""What gives one number a channel, of all its positions."""
_ELEMENTWISE = frozenset(("Sqrt", "Pow", "Abs", "Add", "Max", "Clip", "QuantizeLinear", "DequantizeLinear"))
"""What may stand between it and the mean, or between the mean and the division, beside constants."""


def sum_up(model: ir.Model) -> None:
    """Write every such ReduceMean as a ReduceSum times one over its length, in place."""
    for node in list(model.graph):
        axis = _one_axis(node)
        size = (dims(node.inputs[0]) or ())[axis] if axis is not None else None
        if axis is not None and isinstance(size, int) and size > 1 and _of_channels(node, axis) and _divides(node):
            _rewrite(model, node, axis, size)


def _one_axis(node: ir.Node) -> int | None:
    """The axis of a mean over one, counted from the front."""
    if node.op_type != "ReduceMean" or node.domain != "":
        return None
    shape, listed = dims(node.inputs[0]), _axes(node)
    if not shape or listed is None or len(listed) != 1:
        return None
    return listed[0] % len(shape)


def _axes(node: ir.Node) -> list[int] | None:
    given = operand(node, 1)
    if given is not None:
        return None if given.const_value is None else [int(a) for a in given.const_value.numpy().reshape(-1)]
    found = attribute(node, "axes")
    return None if found is None else [int(a) for a in found]


def _of_channels(node: ir.Node, axis: int) -> bool:
    """Whether what a mean is of is one statistic a channel: other axes were reduced right before, this one was not."""
    value = node.inputs[0]
    while value is not None and (made := value.producer()) is not None and made.domain == "":
        if made.op_type in _STATISTICS:
            if made.op_type in _POOLS:
                return axis == 1
            shape, listed = dims(made.inputs[0]), _axes(made)
            kept = bool(attribute(made, "keepdims", 1))
            return bool(shape and listed and kept) and axis not in [a % len(shape or ()) for a in listed or ()]
        if not _beside_constants(made, value := made.inputs[0]):
            return False
    return False


def _divides(node: ir.Node) -> bool:
    """Whether a mean is read as a denominator alone."""
    (result,) = node.outputs
    while len(result.uses()) == 1 and not result.is_graph_output():
        ((reader, index),) = result.uses()
        if reader.domain != "":
            return False
        if reader.op_type in ("Div", "Reciprocal"):
            return reader.op_type == "Reciprocal" or index == 1
        if not _beside_constants(reader, result):
            return False
        result = reader.outputs[0]
    return False


def _beside_constants(node: ir.Node, value: ir.Value | None) -> bool:
    """Whether an element-wise operator changes a value by constants alone."""
    others = [v for v in node.inputs if v is not None and v is not value]
    return node.op_type in _ELEMENTWISE and all(v.const_value is not None and v.const_value.size == 1 for v in others)


def _rewrite(model: ir.Model, node: ir.Node, axis: int, size: int) -> None:
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    if kind is None or not kind.is_floating_point():
        return
    version = model.opset_imports.get("", 1)
    keep = {"keepdims": int(attribute(node, "keepdims", 1))}
    if version < 13:
        total = ir.node("ReduceSum", [node.inputs[0]], {**keep, "axes": [axis]}, name=f"{node.name}_sum")
    else:
        axes = constant(model, np.array([axis], np.int64), f"{node.name}_axes")
        total = ir.node("ReduceSum", [node.inputs[0], axes], keep, name=f"{node.name}_sum")
    share = constant(model, np.array(1 / size).astype(kind.numpy()), f"{node.name}_share")
    mean = ir.node("Mul", [total.outputs[0], share], name=f"{node.name}_mean")
    result = total.outputs[0]
    result.name, result.type, result.shape = f"{node.name}_sum_output", node.outputs[0].type, node.outputs[0].shape
    for made in (total, mean):
        made.version = version
    succeed(node, (total, mean))
