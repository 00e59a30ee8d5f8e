"""Side tensors: what is computed once and added to the scores of many layers (position biases, expanded masks), or
multiplied with their queries and keys (angles of rotary positions).

Element by element they would tie the heads, or the pairs of dimensions, of all layers into one unit. Each reader gets
an index of its own, so that every layer may keep others of the one table; indices that still name everything are taken
out again at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.dimensions import monomial
from onnxprune.graph.ops.base import attribute, broadcast
from onnxprune.graph.values import constant, dims, is_matrix

_COPY = "_for_"
"""In the name of a node that was made once more, for the reader whose name follows."""
_INDEX = "_side_"
"""In the name of an index of a reader's own."""


def index_sides(model: ir.Model) -> None:
    """Let every reader of a side tensor have its own: an Expand anew, of others a Gather of all indices before it.

    The indices are on the axes before the last two, and on the last one of what is multiplied; where heads stand in one
    axis with the batch (ALiBi of BLOOM), on the tensor that the axis was made of, and the steps from there are the
    reader's own too.
    """
    deep = _deep(model.graph)
    mixes = cache(partial(_mixes, deep=deep))  # a node of thousands of inputs is asked by each of them
    for node in [n for n in model.graph if n.op_type == "Expand" and n.domain == "" and n.outputs[0] not in deep]:
        if any(size != 1 for size in (dims(node.inputs[0]) or (None,))[:-2]):
            continue  # what it reads has the axis already
        for reader, i in list(node.outputs[0].uses())[1:]:
            if mixes(reader):
                reader.replace_input_with(i, _again(node, reader))
    mixers = _mixers(model.graph, deep, mixes)
    for value in [v for n in model.graph for v in n.outputs if v not in deep] + list(model.graph.initializers.values()):
        readers = [(node, i) for node, i in value.uses() if mixes(node)]
        scales = all(node.op_type == "Mul" for node, _ in readers)
        table, axes, steps = _table(value, scales) if readers else (value, [], [])
        if not axes or not _shared(table, axes, mixers):
            continue
        for node, i in readers:
            own = indexed(model, node, table, axes)
            for step in steps:
                own = _again(step, node, own)
            node.replace_input_with(i, own)


def drop_whole_indices(model: ir.Model) -> None:
    """Take out every Gather that names all there is, in order, and what was made twice for nothing."""
    seen: dict[tuple[str, tuple[ir.Value | None, ...]], ir.Node] = {}
    picked: dict[tuple[ir.Value, int, bytes], ir.Node] = {}
    for node in list(model.graph):
        if (node.op_type == "Expand" or _COPY in (node.name or "")) and node.domain == "":
            first = seen.setdefault((f"{node.op_type} {node.attributes}", tuple(node.inputs)), node)
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
        elif _INDEX in (node.name or ""):
            same = picked.setdefault((data, axis, names.tobytes()), node)
            if same is not node:
                node.outputs[0].replace_all_uses_with(same.outputs[0])
                model.graph.remove(node, safe=True)


def _mixers(
    graph: ir.Graph, deep: set[ir.Value], mixes: Callable[[ir.Node], bool]
) -> dict[ir.Value, frozenset[ir.Node]]:
    """Value -> the nodes that mix it with what is deep, at once or after steps of its own."""
    found: dict[ir.Value, frozenset[ir.Node]] = {}
    outputs = [v for node in reversed(graph) for v in node.outputs if v not in deep]
    for value in [*outputs, *graph.initializers.values()]:
        nodes: set[ir.Node] = set()
        for node, _ in value.uses():
            nodes |= {node} if mixes(node) else {n for v in node.outputs for n in found.get(v, ())}
        found[value] = frozenset(nodes)
    return found


def _table(value: ir.Value, scales: bool = False) -> tuple[ir.Value, list[int], list[ir.Node]]:
    """Where the heads of a side tensor can be indexed: (tensor, axes, the steps from it to `value`); no axes, if none.

    They are axes of the value itself, or a number times the batch is: then the axis of that size, some steps before.

    Args:
        scales: it is multiplied: the last axis, along which dimensions stand, is indexed, too.
    """
    known = dims(value) or ()
    places = [*range(len(known) - 2), *([len(known) - 1] if scales and len(known) > 1 else [])]
    axes = [a for a in places if isinstance(size := known[a], int) and size > 1]
    if axes:
        return value, axes, []
    joined = [m[0] for d in known[:-2] if isinstance(d, str) and (m := monomial(d)) is not None and m[0] > 1]
    steps: list[ir.Node] = []
    table = value
    while joined and (producer := table.producer()) is not None:
        moving = [v for v in producer.inputs if v is not None and v.const_value is None and v.dtype == table.dtype]
        if len(moving) != 1 or len(producer.outputs) != 1:
            break
        steps.insert(0, producer)
        table = moving[0]
        if joined[0] in (found := dims(table) or ()):
            return table, [found.index(joined[0])], steps
    return value, [], []


def _shared(table: ir.Value, axes: list[int], mixers: dict[ir.Value, frozenset[ir.Node]]) -> bool:
    """Whether several nodes mix in what has these axes: the tensor, or one before it that its heads come from."""
    sizes = {(dims(table) or ())[a] for a in axes}
    open_values, seen = [table], {table}
    while open_values:
        value = open_values.pop()
        if len(mixers.get(value, ())) > 1:
            return True
        producer = value.producer()
        for source in producer.inputs if producer is not None else ():
            if source is not None and source not in seen and sizes & set(dims(source) or ()):
                seen.add(source)
                open_values.append(source)
    return False


def _deep(graph: ir.Graph) -> set[ir.Value]:
    """Values that a product with a matrix of weights went into."""
    deep: set[ir.Value] = set()
    for node in graph:
        operator = ops.lookup(node)
        weighted = (
            operator is not None
            and operator.macs is not None
            # Angles are positions times a vector of frequencies.
            and any(v is not None and is_matrix(v.const_value) for v in node.inputs)
        )
        # What is computed from the size of a tensor alone is not computed from it.
        if weighted or (node.op_type not in ("Shape", "Size") and any(v in deep for v in node.inputs if v is not None)):
            deep |= set(node.outputs)
    return deep


def _mixes(node: ir.Node, deep: set[ir.Value]) -> bool:
    operator = ops.lookup(node)
    side_by_side = operator is not None and (operator.axes is broadcast or node.op_type in ("GatherElements", "Concat"))
    return side_by_side and any(v in deep for v in node.inputs if v is not None)


def _again(node: ir.Node, reader: ir.Node, source: ir.Value | None = None) -> ir.Value:
    """A node once more, for one reader; `source` stands in for what it is computed from."""
    result, old = ir.Value(), node.outputs[0]
    kind = old.dtype
    inputs = [
        v if source is None or v is None or v.const_value is not None or v.dtype != kind else source
        for v in node.inputs
    ]
    copy = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        name=f"{node.name}{_COPY}{reader.name}",
        version=node.version,
        outputs=[result],
    )
    result.name, result.shape, result.type = f"{copy.name}_output", old.shape, old.type
    reader.prepend(copy)
    return result


def indexed(model: ir.Model, node: ir.Node, value: ir.Value, axes: list[int], kind: str = "side") -> ir.Value:
    """A value through a Gather of all indices on each of some axes, in front of the node that reads it."""
    for axis in axes:
        size = (dims(value) or ())[axis]
        assert isinstance(size, int)
        name = f"{node.name}_{kind}_{axis}"
        everything = constant(model, np.arange(size, dtype=np.int64), f"{name}_indices")
        gather = ir.node("Gather", [value, everything], {"axis": axis}, name=name, version=node.version)
        result = gather.outputs[0]
        result.name, result.shape, result.type = f"{name}_output", ir.Shape(dims(value) or ()), value.type
        node.prepend(gather)
        value = result
    return value
