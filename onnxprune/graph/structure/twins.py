"""Residual branches and products of several graphs, and which of them are one: those that read the same weights.

A decoder and the one that goes on behind its caches are two graphs of one function. What is learned and chosen is
learned and chosen in the first; the second follows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import Layout
from onnxprune.graph.joined import nodes_of
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Branch, Group, Structure
from onnxprune.graph.structure.branches import find_branches
from onnxprune.graph.values import is_matrix


def branches_of(
    model: Model, layouts: Mapping[str, tuple[Layout, ...]], groups: Sequence[Group]
) -> tuple[tuple[Branch, ...], dict[str, tuple[str, ...]]]:
    """(every residual branch, branch -> the same one in graphs that follow)."""
    if not model.parts:
        return find_branches(list(model.graph), layouts, groups), {}
    counters: dict[str, int] = defaultdict(int)
    led: list[Branch] = []
    twins: dict[str, list[str]] = defaultdict(list)
    copies: list[Branch] = []
    unlike: set[str] = set()
    weights = _weights_of(model.graph)
    for part in sorted(model.parts, key=lambda p: p.wires.follows):
        nodes = nodes_of(model.graph, part.wires)
        if not part.wires.follows:
            led += find_branches(nodes, layouts, groups, counters)
            continue
        own = list(find_branches(nodes, layouts, groups))
        read = {w for n in nodes for w in weights.get(n.name or "", ())}
        for branch in led:
            key = _key(branch, weights)
            match = next((b for b in own if _key(b, weights) and _key(b, weights) <= key), None)
            if match is not None:
                own.remove(match)
                copies.append(replace(match, id=f"{branch.id}@{part.file.stem}", kind=branch.kind, layer=branch.layer))
                twins[branch.id].append(copies[-1].id)
            elif key & read:  # it stays: in that graph its nodes are no branch that could leave
                unlike.add(branch.id)
    found = (*(b for b in led if b.id not in unlike), *(c for c in copies if c.id.split("@")[0] not in unlike))
    return found, {name: tuple(ids) for name, ids in twins.items() if name not in unlike}


def mirrors(model: Model) -> dict[str, tuple[str, ...]]:
    """What a product gives -> what the same weight gives in graphs that follow."""
    if not any(part.wires.follows for part in model.parts):
        return {}
    given: list[dict[str, list[str]]] = []
    for part in sorted(model.parts, key=lambda p: p.wires.follows):
        found: dict[str, list[str]] = defaultdict(list)
        for node in nodes_of(model.graph, part.wires):
            operator = ops.lookup(node)
            if operator is not None and operator.macs is not None:
                for weight in _matrices(node):
                    found[weight].append(next((v.name for v in node.outputs if v.name), ""))
        if part.wires.follows:
            given.append(found)
        else:
            given.insert(0, found) if not given else given[0].update(found)
    leader, *followers = given
    result: dict[str, list[str]] = defaultdict(list)
    for follower in followers:
        for weight, values in follower.items():
            for value, other in zip(leader.get(weight, ()), values, strict=False):
                result[value].append(other)
    return {name: tuple(others) for name, others in result.items()}


def leading(model: Model, structure: Structure) -> tuple[Model, Structure]:
    """The graphs that are learned from and measured, without those that follow them."""
    if not any(part.wires.follows for part in model.parts):
        return model, structure
    led = [part for part in model.parts if not part.wires.follows]
    keep = {n.name for part in led for n in nodes_of(model.graph, part.wires)}
    clone = replace(model.clone(), parts=tuple(led))
    graph = clone.graph
    wanted = {name for part in led for name in part.wires.outputs.values()}
    taken = {name for part in led for name in part.wires.inputs.values()}
    outputs = [v for v in graph.outputs if v.name in wanted]
    inputs = [v for v in graph.inputs if v.name in taken]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    graph.remove([n for n in graph if n.name not in keep])
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    copies = {t for found in structure.twins.values() for t in found}
    groups = (replace(g, readers=tuple(r for r in g.readers if r.node in keep)) for g in structure.groups)
    told = replace(
        structure,
        groups=tuple(g for g in groups if g.readers),
        branches=tuple(b for b in structure.branches if b.id not in copies),
        twins={},
        mirrors={},
    )
    return clone, told


def _key(branch: Branch, weights: Mapping[str, set[str]]) -> set[str]:
    """The matrices that a branch reads."""
    return {w for node in branch.nodes for w in weights.get(node, ())}


def _weights_of(graph: ir.Graph) -> dict[str, set[str]]:
    return {node.name or "": set(_matrices(node)) for node in graph}


def _matrices(node: ir.Node) -> Iterable[str]:
    for value in node.inputs:
        if value is not None and is_matrix(value.const_value):
            yield value.name or ""
