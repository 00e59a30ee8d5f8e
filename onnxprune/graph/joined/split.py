"""Graphs taken out of the one that they are together, each with the interface of its own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune.graph.model import Part, Wires
from onnxprune.graph.nested import bodies, reads
from onnxprune.graph.prepare import stamp
from onnxprune.graph.values import forget_names


def nodes_of(graph: ir.Graph, wires: Wires) -> list[ir.Node]:
    """The nodes between one graph's inputs and its outputs, in order."""
    values = _by_name(graph)
    ends = {id(values[name]) for name in wires.inputs.values() if name in values}
    pending = [values[name] for name in wires.outputs.values()]
    found: set[ir.Node] = set()
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or id(value) in ends or node in found:
            continue
        found.add(node)
        pending += [v for v in reads(node) if v is not None]
    return [node for node in graph if node in found]


def owners(graph: ir.Graph, parts: Sequence[Part]) -> dict[str, list[int]]:
    """Node -> the positions of the graphs that it belongs to: one, but for what several have in common."""
    found: dict[str, list[int]] = {}
    for place, part in enumerate(parts):
        for node in nodes_of(graph, part.wires):
            found.setdefault(node.name or "", []).append(place)
    return found


def split(whole: ir.Model, part: Part) -> ir.Model:
    """One graph out of the whole, which stays as it is."""
    model = whole.clone()
    graph, own = model.graph, part.model.normal
    nodes = nodes_of(graph, part.wires)
    values = _by_name(graph)
    inner = {n for node in nodes for n in (node, *(n for body in bodies(node) for n in body.all_nodes()))}
    inputs: list[ir.Value] = []
    for like in own.graph.inputs:
        stood = values[part.wires.inputs[like.name or ""]]
        value = ir.Value(name=like.name)
        for node, index in list(stood.uses()):
            if node in inner:
                node.replace_input_with(index, value)
        inputs.append(_as(value, like))
    outputs = [_as(values[part.wires.outputs[like.name or ""]], like) for like in own.graph.outputs]
    read = {v for node in nodes for v in reads(node) if v is not None and v.const_value is not None}
    held = [v for v in graph.initializers.values() if v in read]
    graph.outputs.clear()
    graph.inputs.clear()
    graph.initializers.clear()
    graph.remove(list(graph))
    back = {joined: name for name, joined in part.shared.items()}
    stated = {v.name for v in (*inputs, *outputs)}
    made = ir.Graph(
        inputs, outputs, nodes=nodes, opset_imports=dict(own.opset_imports), name=own.graph.name,
        doc_string=own.graph.doc_string, metadata_props=dict(own.graph.metadata_props),
    )  # fmt: skip
    for node in made.all_nodes():
        node.name = (node.name or "").removeprefix(part.prefix)
        for value in node.outputs:
            _own_name(value, part.prefix, stated)
        made.opset_imports.setdefault(node.domain, model.opset_imports.get(node.domain, 1))
    for value in held:
        if value.name in back:
            value.name = back[value.name]
        else:
            _own_name(value, part.prefix, stated)
        made.register_initializer(value)
    made.meta.update(own.graph.meta)
    forget_names(made)
    return stamp(
        ir.Model(
            made, ir_version=own.ir_version, producer_name=own.producer_name, producer_version=own.producer_version,
            domain=own.domain, model_version=own.model_version, doc_string=own.doc_string,
            metadata_props=dict(own.metadata_props),
        )
    )  # fmt: skip


def _own_name(value: ir.Value, prefix: str, stated: set[str | None]) -> None:
    name = (value.name or "").removeprefix(prefix)
    if value.name and name not in stated:
        value.name = name


def _as(value: ir.Value, like: ir.Value) -> ir.Value:
    """Name, type and shape as the file of the graph has them."""
    value.name, value.shape, value.type, value.doc_string = like.name, like.shape, like.type, like.doc_string
    value.metadata_props.clear()
    value.metadata_props.update(like.metadata_props)
    value.meta.clear()
    value.meta.update(like.meta)
    return value


def _by_name(graph: ir.Graph) -> Mapping[str, ir.Value]:
    found = {v.name or "": v for v in graph.inputs}
    return found | {v.name or "": v for node in graph for v in node.outputs if v.name}
