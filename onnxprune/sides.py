"""Side tensors: what is computed once and added to the scores of many layers (position biases, expanded masks).

Element by element they would tie the heads of all layers into one unit. Each reader gets an index of its own, so that
every layer may keep other heads of the one table; indices that still name everything are taken out again at the end.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune import ops
from onnxprune.ops.base import attribute, broadcast
from onnxprune.values import constant, dims


def index_sides(model: ir.Model) -> None:
    """Let every reader of a side tensor have its own: an Expand anew, of others a Gather of all indices before it.

    The indices are on the axes before the last two.
    """
    deep = _deep(model.graph)
    for node in [n for n in model.graph if n.op_type == "Expand" and n.domain == "" and n.outputs[0] not in deep]:
        if any(size != 1 for size in (dims(node.inputs[0]) or (None,))[:-2]):
            continue  # what it reads has the axis already
        for reader, i in list(node.outputs[0].uses())[1:]:
            if _mixes(reader, deep):
                reader.replace_input_with(i, _again(node, reader))
    for value in [v for n in model.graph for v in n.outputs if v not in deep] + list(model.graph.initializers.values()):
        axes = [a for a, size in enumerate((dims(value) or ())[:-2]) if isinstance(size, int) and size > 1]
        readers = [(node, i) for node, i in value.uses() if _mixes(node, deep)]
        if not axes or len({node for node, _ in readers}) < 2:
            continue
        for node, i in readers:
            node.replace_input_with(i, _indexed(model, node, value, axes))


def drop_whole_indices(model: ir.Model) -> None:
    """Take out every Gather that names all there is, in order, and every Expand that was made twice for nothing."""
    seen: dict[tuple[ir.Value | None, ...], ir.Node] = {}
    for node in list(model.graph):
        if node.op_type == "Expand" and node.domain == "":
            first = seen.setdefault(tuple(node.inputs), node)
            if first is not node and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(first.outputs[0])
                model.graph.remove(node, safe=True)
            continue
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        data, indices = node.inputs
        known = dims(data)
        if data is None or indices is None or indices.const_value is None or known is None:
            continue
        axis = int(attribute(node, "axis", 0))
        names = indices.const_value.numpy()
        if names.ndim == 1 and known[axis] == len(names) and np.array_equal(names, np.arange(len(names))):
            node.outputs[0].replace_all_uses_with(data)
            model.graph.remove(node, safe=True)


def _deep(graph: ir.Graph) -> set[ir.Value]:
    """Values that a product with a weight went into."""
    deep: set[ir.Value] = set()
    for node in graph:
        operator = ops.lookup(node)
        weighted = (
            operator is not None
            and operator.macs is not None
            and any(v is not None and v.const_value is not None for v in node.inputs)
        )
        # What is computed from the size of a tensor alone is not computed from it.
        if weighted or (node.op_type not in ("Shape", "Size") and any(v in deep for v in node.inputs if v is not None)):
            deep |= set(node.outputs)
    return deep


def _mixes(node: ir.Node, deep: set[ir.Value]) -> bool:
    operator = ops.lookup(node)
    side_by_side = operator is not None and (operator.axes is broadcast or node.op_type == "GatherElements")
    return side_by_side and any(v in deep for v in node.inputs if v is not None)


def _again(node: ir.Node, reader: ir.Node) -> ir.Value:
    """A node once more, for one reader."""
    copy = ir.node(node.op_type, list(node.inputs), name=f"{node.name}_for_{reader.name}", version=node.version)
    result, old = copy.outputs[0], node.outputs[0]
    result.name, result.shape, result.type = f"{copy.name}_output", old.shape, old.type
    reader.prepend(copy)
    return result


def _indexed(model: ir.Model, node: ir.Node, value: ir.Value, axes: list[int]) -> ir.Value:
    for axis in axes:
        size = (dims(value) or ())[axis]
        assert isinstance(size, int)
        name = f"{node.name}_side_{axis}"
        everything = constant(model, np.arange(size, dtype=np.int64), f"{name}_indices")
        gather = ir.node("Gather", [value, everything], {"axis": axis}, name=name, version=node.version)
        result = gather.outputs[0]
        result.name, result.shape, result.type = f"{name}_output", ir.Shape(dims(value) or ()), value.type
        node.prepend(gather)
        value = result
    return value
