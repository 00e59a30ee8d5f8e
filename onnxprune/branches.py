"""Residual branches: `y = x + f(x)`, where f is nobody else's, so that it can leave as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune import ops
from onnxprune.axes import Layout
from onnxprune.plan import Branch, Group, Reader


def find_branches(
    graph: ir.Graph, layouts: Mapping[str, tuple[Layout, ...]], groups: Sequence[Group]
) -> tuple[Branch, ...]:
    """Every residual branch that holds a weight, in graph order."""
    nodes = list(graph)
    index = {node: i for i, node in enumerate(nodes)}
    ancestors = _ancestors(nodes, index)
    found = []
    counters: dict[str, int] = defaultdict(int)
    for add in nodes:
        if (
            add.op_type not in ("Add", "Sum")
            or len(add.inputs) != 2
            or any(v is None or v.const_value is not None for v in add.inputs)
        ):
            continue
        for operand in (0, 1):
            region = _region(nodes, index, ancestors, add, operand)
            if region:
                inside = {n.name for n in region}
                kind = "attention" if any(_is_attention(n) for n in region) else "block"
                held = tuple(g.id for g in groups if all(r.node in inside for r in g.readers))
                if kind == "block" and any(g.kind == "neurons" for g in groups if g.id in held):
                    kind = "ffn"
                value, skip = add.inputs[operand], add.inputs[1 - operand]
                found.append(
                    Branch(
                        f"{kind}.{counters[kind]}", kind, counters[kind], add.name or "", operand, value.name or "", skip.name or "",
                        tuple(n.name or "" for n in region), _tail(value), held,
                    )
                )  # fmt: skip
                counters[kind] += 1
                break
    return tuple(found)


def _ancestors(nodes: Sequence[ir.Node], index: Mapping[ir.Node, int]) -> list[int]:
    """Per node, the set of nodes it depends on and itself, as a bit mask."""
    masks: list[int] = []
    for i, node in enumerate(nodes):
        mask = 1 << i
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer in index:
                mask |= masks[index[producer]]
        masks.append(mask)
    return masks


def _region(
    nodes: Sequence[ir.Node], index: Mapping[ir.Node, int], ancestors: Sequence[int], add: ir.Node, operand: int
) -> list[ir.Node]:
    """The nodes of f, or none where `operand` is no branch over the other one."""
    last, origin = add.inputs[operand].producer(), add.inputs[1 - operand].producer()
    if last is None or origin is None or not ancestors[index[last]] >> index[origin] & 1 or last is origin:
        return []
    start = index[origin]
    before = ancestors[start]
    picked = ancestors[index[last]] & ~before
    region = [nodes[i] for i in range(len(nodes)) if picked >> i & 1 and ancestors[i] >> start & 1]
    inside = set(region)
    weighted = False
    for node in region:
        for value in node.outputs:
            if value.is_graph_output() or any(
                user not in inside and not (user is add and i == operand) for user, i in value.uses()
            ):
                return []
        operator = ops.lookup(node)
        if operator is not None and operator.macs is not None:
            weighted |= any(v is not None and v.const_value is not None for v in node.inputs[1:])
    # f must start at x itself: the skip connection and the branch share their source.
    reads_skip = any(v is add.inputs[1 - operand] for node in region for v in node.inputs)
    return region if weighted and reads_skip else []


def _is_attention(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    if operator is None or operator.macs is None:
        return False
    pair = node.op_type in ("MatMul", "FusedMatMul", "Einsum") and all(
        v is not None and v.const_value is None for v in node.inputs[:2]
    )
    return pair or "num_heads" in node.attributes or "q_num_heads" in node.attributes


def _tail(value: ir.Value) -> Reader | None:
    """The last contraction with a weight before a branch ends, where only constants act after it."""
    node = value.producer()
    while node is not None:
        operator = ops.lookup(node)
        if operator is None:
            return None
        moving = [i for i, v in enumerate(node.inputs) if v is not None and v.const_value is None and _is_float(v)]
        if operator.macs is not None:
            if len(moving) == 1 and moving[0] in (0, 1) and len(node.inputs) > 1:
                return reader_of(node, moving[0])
            return None
        if len(moving) != 1 or moving[0] not in (0, 1):
            return None
        producer = node.inputs[moving[0]]
        node = producer.producer() if producer is not None else None
    return None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def reader_of(node: ir.Node, index: int) -> Reader | None:
    """How `index` of a MatMul, Gemm or Conv is contracted with its weight."""
    weight, source = node.inputs[1 - index], node.inputs[index]
    if weight is None or source is None or weight.shape is None or source.shape is None:
        return None
    rank, weight_rank = len(source.shape), len(weight.shape)
    if node.op_type == "MatMul":
        axis, weight_axis = (rank - 1, max(weight_rank - 2, 0)) if index == 0 else (max(rank - 2, 0), weight_rank - 1)
    elif node.op_type == "Gemm":
        flipped = [ops.attribute(node, "transA", 0), ops.attribute(node, "transB", 0)]
        inner = [0 if flipped[0] else 1, 1 if flipped[1] else 0]
        axis, weight_axis = inner[index], inner[1 - index]
    elif node.op_type == "Conv" and index == 0 and ops.attribute(node, "group", 1) == 1:
        axis, weight_axis = 1, 1
    else:
        return None
    return Reader(node.name or "", index, axis, weight.name, weight_axis)
