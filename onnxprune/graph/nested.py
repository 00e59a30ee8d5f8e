"""Graphs within nodes: the bodies of control flow, and what they read of the graph around them."""

from __future__ import annotations

import onnx_ir as ir


def reads(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """What a node reads: its inputs, then the outer values that its subgraphs capture."""
    graphs = bodies(node)
    if not graphs:
        return tuple(node.inputs)
    inner: set[ir.Value] = set()
    used: dict[ir.Value, None] = {}
    for graph in graphs:
        for part in (graph, *(g for n in graph.all_nodes() for g in bodies(n))):
            inner |= {*part.inputs, *part.initializers.values(), *(v for n in part for v in n.outputs)}
            used |= dict.fromkeys(v for n in part for v in n.inputs if v is not None)
            used |= dict.fromkeys(part.outputs)
    return (*node.inputs, *(v for v in used if v not in inner and v not in node.inputs))


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node of control flow holds."""
    return [graph for attribute in node.attributes.values() for graph in _subgraphs(attribute)]


def _subgraphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
