"""Putting control flow back: what is done each turn, or on one side only, goes into the body of a node again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxprune.graph.flow.nodes import (
    CHOICE,
    DOMAIN,
    LEAVE,
    ends,
    enter_of,
    holds_flow,
    ints,
    is_flow,
    kind,
    lead,
    states,
)
from onnxprune.graph.flow.regions import Flow
from onnxprune.graph.nested import bodies
from onnxprune.graph.values import dims, succeed


def closed(model: ir.Model) -> ir.Model:
    """The graph as a file has it.

    Returns:
        A clone, or the graph itself where nothing was opened.
    """
    if not holds_flow(model.graph):
        return model
    clone = model.clone()
    _close(clone.graph, model.opset_imports.get("", 1))
    clone.opset_imports.pop(DOMAIN, None)
    for node in clone.graph.all_nodes():
        node.version = clone.opset_imports.get(node.domain, 1)
        for body in bodies(node):
            outputs = list(body.outputs)
            for value in (v for n in body for v in n.outputs):
                # Sessions ask how many dimensions a body's outputs have; names of sizes mean nothing to them.
                known = dims(value) if value in outputs else None
                value.shape = None if known is None else _rank(known)
                value.meta.pop("onnxprune.shape", None)
    return clone


def _close(graph: ir.Graph, version: int) -> None:
    """Of what lies within one another the outer comes last, and first here.

    What belongs to whom is found once: what is put away takes with it all that lies within, and comes after the rest.
    """
    flow = Flow(graph)
    for node in reversed(list(graph)):
        if node.graph is graph and is_flow(node):
            made = _choice(graph, node, flow, version) if node.op_type == CHOICE else _turns(graph, node, flow, version)
            for attribute in made.attributes.values() if made is not None else ():
                if attribute.type == ir.AttributeType.GRAPH:
                    _close(attribute.as_graph(), version)


def _choice(graph: ir.Graph, node: ir.Node, flow: Flow, version: int) -> ir.Node:
    half = len(node.outputs)
    attributes = []
    for name, side in (("then_branch", True), ("else_branch", False)):
        nodes = [n for n in flow.first.get((node, side), ()) if n.graph is graph]
        results = node.inputs[1 : 1 + half] if side else node.inputs[1 + half :]
        body = _body(graph, nodes, [], results, f"{node.name}/{name}", version)
        attributes.append(ir.AttrGraph(name, body))
    made = ir.Node("", "If", [node.inputs[0]], attributes, num_outputs=half, name=node.name)
    succeed(node, [made])
    return made


def _turns(graph: ir.Graph, leave: ir.Node, flow: Flow, version: int) -> ir.Node | None:
    if leave.op_type != LEAVE:
        return None  # an Enter goes with its Leave
    enter = enter_of(leave)
    nodes = [n for n in graph if flow.home.get(n, ())[:1] == (leave,) and n is not enter]
    results, given = leave.inputs[: ends(leave)], list(enter.inputs)
    shapes = [dims(value) for value in enter.outputs]
    inputs = [
        ir.Value(name=v.name, type=v.type, shape=None if known is None else _rank(known))
        for v, known in zip(enter.outputs, shapes, strict=True)
    ]
    for value in inputs[: lead(enter)]:  # a Loop's counter and condition
        value.shape = ir.Shape([])
    axes, backwards = ints(enter, "axes"), ints(enter, "backwards")
    out_axes, out_backwards = ints(leave, "axes"), ints(leave, "backwards")
    for index in range(len(leave.inputs)):
        if index >= len(results):
            leave.replace_input_with(index, None)
    for value, new in zip(enter.outputs, inputs, strict=True):
        value.replace_all_uses_with(new)
    results = leave.inputs[: len(results)]
    body = _body(graph, nodes, inputs, results, f"{leave.name}/body", version)
    attributes: list[ir.Attr] = [ir.AttrGraph("body", body)]
    if kind(leave) == "Scan":
        attributes.append(ir.AttrInt64("num_scan_inputs", len(given) - states(enter)))
        attributes += [
            ir.AttrInt64s("scan_input_axes", axes), ir.AttrInt64s("scan_input_directions", backwards),
        ]  # fmt: skip
        if out_axes:
            attributes += [
                ir.AttrInt64s("scan_output_axes", out_axes), ir.AttrInt64s("scan_output_directions", out_backwards),
            ]  # fmt: skip
    made = ir.Node("", kind(leave), given, attributes, num_outputs=len(leave.outputs), name=leave.name)
    succeed(leave, [made])
    graph.remove(enter, safe=True)
    return made


def _body(
    graph: ir.Graph,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    results: Iterable[ir.Value | None],
    name: str,
    version: int,
) -> ir.Graph:
    """A graph of some nodes; what it gives but does not make is passed on."""
    graph.remove(nodes)
    inside = {v for n in nodes for v in n.outputs}
    held, outputs = list(nodes), []
    for place, value in enumerate(results):
        assert value is not None
        if value not in inside or value in outputs:
            passing = ir.node("Identity", [value], name=f"{name}/passed_{place}", version=version)
            passing.outputs[0].name, passing.outputs[0].type = f"{name}/passed_{place}_output", value.type
            passing.outputs[0].shape = None if (known := dims(value)) is None else _rank(known)
            held.append(passing)
            outputs.append(passing.outputs[0])
        else:
            outputs.append(value)
    return ir.Graph(inputs, outputs, nodes=held, name=name)


def _rank(known: Sequence[int | str | None]) -> ir.Shape:
    """A shape without names."""
    return ir.Shape([d if isinstance(d, int) else None for d in known])
