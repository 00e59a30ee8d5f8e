"""Residual branches: `y = x + f(x)`, where f is nobody else's, so that it can leave as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence, Set

import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import Layout
from onnxprune.graph.plan import Branch, Group, Reader

MOST_PARALLEL = 64
"""Sums that one stands in, of which each may go back to the stream: as many as there are experts side by side."""


def find_branches(
    nodes: Sequence[ir.Node],
    layouts: Mapping[str, tuple[Layout, ...]],
    groups: Sequence[Group],
    counters: dict[str, int] | None = None,
) -> tuple[Branch, ...]:
    """Every residual branch that holds a weight, in graph order.

    Args:
        nodes: of a graph, or of one among several that are analysed as one: what others read of it, it gives out.
        counters: how many of each kind there are already; counted on.
    """
    index = {node: i for i, node in enumerate(nodes)}
    named = {node.name for node in nodes}
    ancestors, handing = _ancestors(nodes, index), _handing(nodes)
    found = []
    counters = defaultdict(int) if counters is None else counters
    own = {g.id: [r.node for r in g.readers if r.node in named] for g in groups}
    for add in nodes:
        if not adds(add) or any(
            v is None or v.const_value is not None or v.name not in layouts for v in add.inputs[:2]
        ):
            continue
        for operand in (0, 1):
            sources = (add.inputs[1 - operand], *_parallel(add))
            region = next((r for s in sources if (r := _region(nodes, index, ancestors, handing, add, operand, s))), [])
            if region:
                inside = {n.name for n in region}
                kind = "attention" if any(_is_attention(n) for n in region) else "block"
                held = tuple(name for name, readers in own.items() if readers and inside.issuperset(readers))
                if kind == "block" and any(g.kind == "neurons" for g in groups if g.id in held):
                    kind = "ffn"
                value, skip = add.inputs[operand], add.inputs[1 - operand]
                assert value is not None and skip is not None
                found.append(
                    Branch(
                        f"{kind}.{counters[kind]}",
                        kind,
                        counters[kind],
                        add.name or "",
                        operand,
                        value.name or "",
                        skip.name or "",
                        tuple(n.name or "" for n in region),
                        _tail(value, index),
                        held,
                    )
                )
                counters[kind] += 1
                if not _parallel(add):
                    break
    return tuple(found)


def adds(node: ir.Node) -> bool:
    """Whether a node adds its first two inputs, to give their sum or its norm."""
    if node.domain == "com.microsoft":
        return node.op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    return node.op_type == "Add" or (node.op_type == "Sum" and len(node.inputs) == 2)


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


def _handing(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes whose results the graph gives, after steps that cost nothing at most: keys and values on their way out."""
    found: set[ir.Node] = set()
    own = set(nodes)
    for node in reversed(nodes):
        users = [user for value in node.outputs for user, _ in value.uses() if not _beyond(user, node, own)]
        stated = any(value.is_graph_output() for value in node.outputs)
        if (users or stated) and found.issuperset(users) and not _costs(node) and not adds(node):
            found.add(node)
    return found


def _beyond(user: ir.Node, node: ir.Node, own: Container[ir.Node]) -> bool:
    """Whether a reader of what a node gives lies in another graph, of several that are analysed as one."""
    return user.graph is node.graph and user not in own


def _parallel(add: ir.Node) -> list[ir.Value]:
    """What else goes into a sum of several: in x + (f(x) + g(x)), the x that the inner sum is added to."""
    found: list[ir.Value] = []
    total = add.outputs[0]
    while (
        len(found) < MOST_PARALLEL
        and not total.is_graph_output()
        and len(uses := list(total.uses())) == 1
        and adds(uses[0][0])
        and uses[0][1] < 2
    ):
        node, operand = uses[0]
        other = node.inputs[1 - operand]
        if other is not None and other.const_value is None:
            found.append(other)
        total = node.outputs[0]
    return found


def _region(
    nodes: Sequence[ir.Node],
    index: Mapping[ir.Node, int],
    ancestors: Sequence[int],
    handing: Set[ir.Node],
    add: ir.Node,
    operand: int,
    skip: ir.Value | None,
) -> list[ir.Node]:
    """The nodes of f, or none where `operand` is no branch over `skip`."""
    branch = add.inputs[operand]
    last = branch.producer() if branch is not None else None
    if last is None or last not in index:
        return []
    inside: dict[ir.Node, None] = {}
    source = skip.producer() if skip is not None else None
    # A fused sum gives its norm beside it: what reads the norm is a function of the sum.
    starts = set(source.outputs) if source is not None and source.domain == "com.microsoft" and adds(source) else {skip}
    readers = [index[u] for v in starts if v is not None for u, _ in v.uses() if u in index]
    before = ancestors[index[last]]
    for i in range(min(readers, default=len(nodes)), index[last] + 1):
        node = nodes[i]
        # What is computed from the size of x alone (position tables, masks) is no part of f.
        if before >> i & 1 and any(
            v is not None and (v.producer() in inside or (v in starts and node.op_type not in ("Shape", "Size")))
            for v in node.inputs
        ):
            inside[node] = None
    given = {n for n in handing if not ancestors[index[n]] >> index[add] & 1} if inside else set()
    for node in reversed(list(inside)):
        users = [
            u
            for v in node.outputs
            for u, i in v.uses()
            if u not in inside and not (u is add and i == operand) and not _beyond(u, node, index)
        ]
        stated = any(value.is_graph_output() for value in node.outputs)
        if users or stated:
            # What others read too stays when the branch goes: a norm before attention and an FFN side by side. Behind
            # a product that others read, f would be no function of x but of what was made of it; keys and values that
            # the graph gives are computed as before.
            if stated or not given.isdisjoint(users):
                given.add(node)
            elif _costs(node):
                return []
            del inside[node]
    return list(inside) if any(_costs(n) and _weighted(n) for n in inside) else []


def _costs(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    return operator is not None and operator.macs is not None


def _weighted(node: ir.Node) -> bool:
    return any(v is not None and v.const_value is not None for v in node.inputs[1:])


def _is_attention(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    if operator is None or operator.macs is None:
        return False
    pair = node.op_type in ("MatMul", "FusedMatMul", "Einsum") and all(
        v is not None and v.const_value is None for v in node.inputs[:2]
    )
    return pair or node.op_type.endswith("Attention")


def _tail(value: ir.Value, index: Mapping[ir.Node, int]) -> Reader | None:
    """The last contraction with a weight before a branch ends, where only constants act after it."""
    open_nodes = {value.producer()}
    while open_nodes:
        if None in open_nodes or not all(n in index for n in open_nodes):
            return None
        node = max((n for n in open_nodes if n is not None), key=index.__getitem__)
        operator = ops.lookup(node)
        if operator is None:
            return None
        moving = [i for i, v in enumerate(node.inputs) if v is not None and v.const_value is None and _is_float(v)]
        if operator.macs is not None:
            if len(open_nodes) > 1 or len(moving) != 1 or moving[0] not in (0, 1) or len(node.inputs) < 2:
                return None
            return reader_of(node, moving[0])
        open_nodes.remove(node)
        open_nodes |= {v.producer() for i in moving if (v := node.inputs[i]) is not None}
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
