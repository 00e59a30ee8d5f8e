"""Opening control flow: bodies' nodes and weights come into the graph, with nodes that say where they were."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph.flow.nodes import (
    CHOICE,
    DOMAIN,
    ENTER,
    LEAVE,
    MOST_AXES,
    enter_of,
    holds_flow,
    ints,
    is_flow,
    kind,
    state_pairs,
)  # fmt: skip
from onnxprune.graph.nested import bodies
from onnxprune.graph.values import dims, forget_names, succeed, take_over

_VERSION = 1
_OPENED = {"If": 1, "Loop": 1, "Scan": 9}
"""Operator -> the first version of it that is opened; Scan had other inputs once."""


def open_up(model: ir.Model) -> None:
    """Open every If, Loop and Scan whose values are tensors throughout, in place, those within others too."""
    graph = model.graph
    names = _Names(graph)
    ahead = list(graph)[::-1]
    while ahead:
        node = ahead.pop()
        if not _opens(node, model):
            continue
        ahead += [inner for body in bodies(node) for inner in body][::-1]
        if node.op_type == "If":
            _open_choice(graph, node, names)
        else:
            _open_turns(graph, node, names)
        model.opset_imports[DOMAIN] = _VERSION
    forget_names(graph)


def choose_known(model: ir.Model) -> None:
    """Put the side that is taken in the place of every Choice whose condition is a constant."""
    for node in list(model.graph):
        condition = node.inputs[0] if is_flow(node) and node.op_type == CHOICE else None
        if condition is None or condition.const_value is None or condition.is_graph_input():
            continue
        half = len(node.outputs)
        first = 1 if condition.const_value.numpy().reshape(-1)[0] else 1 + half
        taken = list(node.inputs[first : first + half])
        if any(old.is_graph_output() for old in node.outputs):
            _pass_on(model, node, taken)
            continue
        for old, new in zip(node.outputs, taken, strict=True):
            assert new is not None
            old.replace_all_uses_with(new)
        model.graph.remove(node, safe=True)
    if not holds_flow(model.graph):
        model.opset_imports.pop(DOMAIN, None)


def widened(model: ir.Model) -> bool:
    """Note dimensions of states that a turn of a Loop may change, which inference took for those they start with.

    A Scan's states keep their shape by its definition.

    Returns:
        Whether there were new ones: shapes of what depends on them are forgotten, and are to be inferred anew.
    """
    found = False
    for leave in [n for n in model.graph if is_flow(n) and n.op_type == LEAVE and kind(n) == "Loop"]:
        enter = enter_of(leave)
        known = set(ints(enter, "open"))
        for i, (_, begun, ended, _) in enumerate(state_pairs(leave)):
            before, after = dims(begun), dims(ended)
            if before is None:
                continue
            same = after is not None and len(after) == len(before)
            for axis, size in enumerate(before):
                if not same or after is None or size is None or after[axis] != size:
                    known.add(i * MOST_AXES + axis)
        if known != set(ints(enter, "open")):
            found = True
            for node in (enter, leave):
                node.attributes["open"] = ir.AttrInt64s("open", sorted(known))
            _forget_behind(model.graph, enter)
    return found


def _forget_behind(graph: ir.Graph, start: ir.Node) -> None:
    reached: set[ir.Value] = set()
    for node in graph:
        if node is start or any(v in reached for v in node.inputs if v is not None):
            reached.update(node.outputs)
            for value in node.outputs:
                value.meta.pop("onnxprune.shape", None)
                if not value.is_graph_output():
                    value.shape = None


class _Names:
    """Names of values that a graph has."""

    def __init__(self, graph: ir.Graph) -> None:
        self.taken = {v.name for v in (*graph.inputs, *graph.initializers.values())}
        self.taken |= {v.name for n in graph for v in n.outputs}

    def give(self, value: ir.Value, prefix: str) -> None:
        """Keep a value's name if it is free, else give it one."""
        name, count = value.name or f"{prefix}/value", 0
        unique = name
        while unique in self.taken:
            unique = f"{prefix}/{name}" if not count else f"{prefix}/{name}_{count}"
            count += 1
        value.name = unique
        self.taken.add(unique)


def _opens(node: ir.Node, model: ir.Model) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _OPENED:
        return False
    if model.opset_imports.get("", 1) < _OPENED[node.op_type]:
        return False
    if node.op_type == "Scan" and len(bodies(node)[0].inputs) > len(node.inputs):
        return False
    inside = [g for graph in bodies(node) for g in (graph, *(b for n in graph.all_nodes() for b in bodies(n)))]
    values = [v for g in inside for v in (*g.inputs, *g.outputs, *(o for n in g for o in n.outputs))]
    values += [v for v in (*node.inputs, *node.outputs) if v is not None]
    if any(v.type is not None and not isinstance(v.type, ir.TensorType) for v in values):
        return False
    return not any("Sequence" in n.op_type or "Optional" in n.op_type for g in inside for n in g)


def _open_choice(graph: ir.Graph, node: ir.Node, names: _Names) -> None:
    results: list[ir.Value] = []
    for side in ("then_branch", "else_branch"):
        results += _moved(graph, node, node.attributes[side].as_graph(), {}, names)
    made = ir.Node(DOMAIN, CHOICE, [node.inputs[0], *results], num_outputs=len(node.outputs), name=node.name)
    made.version = _VERSION
    succeed(node, [made])


def _open_turns(graph: ir.Graph, node: ir.Node, names: _Names) -> None:
    body = node.attributes["body"].as_graph()
    looping = node.op_type == "Loop"
    count = max(len(node.inputs) - 2, 0) if looping else len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    given = list(node.inputs) + [None] * (2 - len(node.inputs) if looping else 0)
    sliced, stacked = len(node.inputs) - count, len(node.outputs) - count
    common = [ir.AttrString("kind", node.op_type), ir.AttrInt64("states", count)]
    along = [] if looping else _along(node, "input", sliced, node.inputs[count:])
    enter = ir.Node(DOMAIN, ENTER, given, [*common, *along], num_outputs=len(body.inputs), name=f"{node.name}/enter")
    enter.version = _VERSION
    for old, new in zip(body.inputs, enter.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        names.give(new, node.name or node.op_type)
    graph.insert_before(node, enter)
    results = _moved(graph, node, body, dict(zip(body.inputs, enter.outputs, strict=True)), names)
    still = [ir.AttrInt64s("axes", [0] * stacked), ir.AttrInt64s("backwards", [0] * stacked)]
    along = still if looping else _along(node, "output", stacked, node.outputs[count:])
    if not looping:
        along.append(ir.AttrInt64("along", ints(enter, "axes")[0]))
    operands = [*results, enter.outputs[0], *([] if looping else [node.inputs[count]])]
    leave = ir.Node(DOMAIN, LEAVE, operands, [*common, *along], num_outputs=len(node.outputs), name=node.name)
    leave.version = _VERSION
    succeed(node, [leave])


def _along(node: ir.Node, what: str, count: int, values: Sequence[ir.Value | None]) -> list[ir.Attr]:
    """On which axis a Scan slices its inputs or stacks its outputs, and whether from the end; axes from the front."""
    axes = list(ints(node, f"scan_{what}_axes")) or [0] * count
    for i, value in enumerate(values):
        if axes[i] < 0 and value is not None and value.shape is not None:
            axes[i] += len(value.shape)
    backwards = list(ints(node, f"scan_{what}_directions")) or [0] * count
    return [ir.AttrInt64s("axes", axes), ir.AttrInt64s("backwards", backwards)]


def _moved(
    graph: ir.Graph, node: ir.Node, body: ir.Graph, inputs: dict[ir.Value, ir.Value], names: _Names
) -> list[ir.Value]:
    """Bring a body's nodes and weights into the graph, in front of its node; returns what the body gives."""
    for old, new in inputs.items():
        old.replace_all_uses_with(new)
    results = [inputs.get(value, value) for value in body.outputs]
    nodes, weights = list(body), list(body.initializers.values())
    body.outputs.clear()
    body.remove(nodes)
    body.initializers.clear()
    prefix = node.name or node.op_type
    for value in weights:
        names.give(value, prefix)
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.register_initializer(value)
    for inner in nodes:
        for value in inner.outputs:
            if value.name:
                names.give(value, prefix)
    graph.insert_before(node, nodes)
    return results


def _pass_on(model: ir.Model, node: ir.Node, taken: Sequence[ir.Value | None]) -> None:
    """An Identity for each result: outputs of the graph keep their names."""
    for place, value in enumerate(taken):
        assert value is not None
        made = ir.node("Identity", [value], name=f"{node.name}_{place}", version=model.opset_imports.get("", 1))
        node.prepend(made)
        take_over(node.outputs[place], made.outputs[0])
    model.graph.remove(node, safe=True)
