"""Which nodes are done each turn of a loop, and which only where a choice falls on their side."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxprune.graph.flow.nodes import CHOICE, LEAVE, enter_of, is_flow, kind
from onnxprune.graph.nested import reads

Side = tuple[ir.Node, bool]
"""A Choice, and whether its condition holds."""


class Flow:
    """Where the nodes of an opened graph run.

    Attributes:
        home: node -> the Leaves of the loops that it is done each turn of, outermost first; others are not in it.
        sides: node -> the choices on which it depends whether it is done at all, outermost first; likewise.
        first: side of a choice -> the nodes of which it is the outermost, in order.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.home: dict[ir.Node, tuple[ir.Node, ...]] = {}
        self.sides: dict[ir.Node, tuple[Side, ...]] = {}
        nodes = list(graph)
        self.order = {node: i for i, node in enumerate(nodes)}
        if any(is_flow(node) for node in nodes):
            self._find_turns(nodes)
            self._find_sides(nodes, set(graph.outputs))
        self.first: dict[Side, list[ir.Node]] = {}
        for node in nodes:
            if node in self.sides:
                self.first.setdefault(self.sides[node][0], []).append(node)

    def unit(self, node: ir.Node, depth: int = 0) -> ir.Node:
        """What a node is done as a part of, within `depth` loops: a loop's Leave, or itself."""
        home = self.home.get(node, ())
        return home[depth] if len(home) > depth else node

    def units(self, nodes: Iterable[ir.Node], depth: int = 0) -> list[tuple[ir.Node, list[ir.Node]]]:
        """Nodes in an order in which they can run, as (unit, its nodes): of a loop, all that are done each turn."""
        parts: dict[ir.Node, list[ir.Node]] = {}
        for node in nodes:
            unit = self.unit(node, depth)
            parts.setdefault(unit, [])
            if node is not unit:
                parts[unit].append(node)
        return sorted(parts.items(), key=lambda part: self.order[part[0]])

    def sorted(self, nodes: Iterable[ir.Node], depth: int = 0) -> list[ir.Node]:
        """Nodes in an order in which they can run; those of a loop follow one another, its Leave is the last."""
        found = []
        for unit, inside in self.units(nodes, depth):
            found += self.sorted(inside, depth + 1) if inside else []
            found.append(unit)
        return found

    def _find_turns(self, nodes: list[ir.Node]) -> None:
        leaves = {enter_of(node): node for node in nodes if is_flow(node) and node.op_type == LEAVE}
        within: dict[ir.Node, frozenset[ir.Node]] = {}
        for node in nodes:
            found: frozenset[ir.Node] = frozenset()
            for value in reads(node):
                producer = value.producer() if value is not None else None
                if producer in within:
                    found |= within[producer]
            if node in leaves:
                found |= {node}
            elif is_flow(node) and node.op_type == LEAVE:
                found -= {enter_of(node)}
            if found:
                within[node] = found
                self.home[node] = tuple(sorted((leaves[enter] for enter in found), key=self.order.__getitem__))[::-1]

    def _find_sides(self, nodes: list[ir.Node], outputs: set[ir.Value]) -> None:
        found: dict[ir.Node, tuple[Side, ...]] = {}
        for node in reversed(nodes):
            own = () if any(v in outputs for v in node.outputs) else found.get(node, ())
            # Outside of a loop nothing depends on what is chosen in one of its turns.
            here = set(self.home.get(node, ()))
            inside = next((i for i, (c, _) in enumerate(own) if not here.issuperset(self.home.get(c, ()))), len(own))
            own = own[:inside]
            if own:
                self.sides[node] = own
            chooses, half = is_flow(node) and node.op_type == CHOICE, len(node.outputs)
            for index, value in enumerate(reads(node)):
                producer = value.producer() if value is not None else None
                if producer is None or producer not in self.order:
                    continue
                told = (*own, (node, index <= half)) if chooses and index else own
                found[producer] = _shared(found[producer], told) if producer in found else told


def _shared(a: tuple[Side, ...], b: tuple[Side, ...]) -> tuple[Side, ...]:
    """What two lists begin with."""
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:count]


def asks_rows(graph: ir.Graph) -> bool:
    """Whether what a condition says depends on the numbers of rows (of inputs with a dynamic first axis), not on sizes
    alone: of several rows at once it may say something else than of each."""
    asked = [node.inputs[0] for node in graph if is_flow(node) and node.op_type == CHOICE]
    for node in graph:
        if is_flow(node) and node.op_type == LEAVE and kind(node) == "Loop":
            asked += [node.inputs[0], *enter_of(node).inputs[:2]]
    stack = [v for v in asked if v is not None]
    seen: set[ir.Value] = set(stack)
    while stack:
        value = stack.pop()
        producer = value.producer()
        if producer is None:
            shape = value.shape if value.is_graph_input() else None
            if shape is not None and len(shape) and not isinstance(shape[0], int):
                return True
            continue
        if producer.op_type in ("Shape", "Size"):
            continue
        further = [v for v in reads(producer) if v is not None and v not in seen]
        seen.update(further)
        stack += further
    return False
