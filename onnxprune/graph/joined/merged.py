"""Two decoders in one file, behind an If that asks whether there is a cache: taken apart, and put together again.

Exporters merge a decoder with the one that goes on behind its caches (`decoder_model_merged.onnx`). They share their
weights there, and what only one of them gives stands as an empty constant in the other.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import onnx_ir as ir

from onnxprune.graph.nested import reads
from onnxprune.graph.prepare import stamp

ASKED = "use_cache_branch"
"""The input that tells the two apart."""
_STEPS = ("Cast", "Identity", "Squeeze", "Reshape", "Unsqueeze")
FIRST, BEHIND = "else_branch", "then_branch"
"""The decoder that begins, and the one behind a cache."""


def mentions(file: Path) -> bool:
    """Whether a file has the word that merged ones have: a quick look, which says nothing more."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
        return held.rfind(ASKED.encode()) >= 0


def branch_of(model: ir.Model) -> ir.Node | None:
    """The If that holds both graphs; None where a file is none of these."""
    nodes = [node for node in model.graph if node.op_type == "If"]
    if len(nodes) != 1 or any(v.producer() is not nodes[0] for v in model.graph.outputs):
        return None
    chain, value = {nodes[0]}, nodes[0].inputs[0]
    while value is not None and (node := value.producer()) is not None and node.op_type in _STEPS:
        chain.add(node)
        value = node.inputs[0]
    asked = value is not None and value.is_graph_input() and value.name == ASKED
    return nodes[0] if asked and len(chain) == model.graph.num_nodes() else None


def apart(model: ir.Model, which: str) -> ir.Model:
    """One of the two graphs as a model of its own; the merged one stays as it is.

    Args:
        model: one that has a `branch_of`.
        which: `FIRST` or `BEHIND`.
    """
    clone = model.clone()
    graph, node = clone.graph, branch_of(clone)
    assert node is not None
    body = node.attributes[which].as_graph()
    given = list(zip(graph.outputs, body.outputs, strict=True))
    held = [*graph.initializers.values(), *body.initializers.values()]
    inputs = list(graph.inputs)
    nodes, wanted = list(body), [(stated, value) for stated, value in given if not _empty(value)]
    passed = []
    inside = set(nodes)
    for stated, value in wanted:
        if value.producer() in inside:
            passed.append((stated, value))
            continue
        nodes.append(ir.node("Identity", [value], name=f"{stated.name}_passed"))
        passed.append((stated, nodes[-1].outputs[0]))
    body.outputs.clear()
    body.remove(list(body))
    body.initializers.clear()
    graph.outputs.clear()
    graph.inputs.clear()
    graph.initializers.clear()
    graph.remove(list(graph))
    names = {stated.name for stated, _ in passed}
    for value in (v for n in nodes for v in n.outputs):
        if value.name in names:
            value.name = f"{value.name}_inner"
    for stated, value in passed:
        value.name, value.shape, value.type = stated.name, stated.shape, stated.type
        value.metadata_props.update(stated.metadata_props)
    read = {v for n in nodes for v in reads(n) if v is not None}
    made = ir.Graph(
        [v for v in inputs if v in read], [value for _, value in passed], nodes=nodes, name=body.name,
        opset_imports=dict(graph.opset_imports),
    )  # fmt: skip
    for value in held:
        if value in read:
            made.register_initializer(value)
    found = ir.Model(made, ir_version=model.ir_version, producer_name=model.producer_name)
    return stamp(found)


def together(merged: ir.Model, first: ir.Model, behind: ir.Model) -> ir.Model:
    """The merged model with other graphs in the place of its two, which are used up.

    Args:
        merged: as it was read; it stays as it is.
    """
    model = merged.clone()
    graph, node = model.graph, branch_of(model)
    assert node is not None
    outer = {v.name: v for v in graph.inputs}
    graph.initializers.clear()
    graph.opset_imports.update({**first.opset_imports, **behind.opset_imports})
    weights: dict[tuple[object, ...], ir.Value] = {}
    taken = {v.name for v in graph.inputs} | {v.name for v in graph.outputs}
    for which, part in ((FIRST, first), (BEHIND, behind)):
        body = node.attributes[which].as_graph()
        kept = [value if _empty(value) else None for value in body.outputs]
        named = [value.name for value in body.outputs]
        own = {v.name: v for v in part.graph.outputs}
        results = [
            value if value is not None else own[stated.name] for value, stated in zip(kept, graph.outputs, strict=True)
        ]
        constants = [v.producer() for v in kept if v is not None]
        for value in part.graph.inputs:
            value.replace_all_uses_with(outer[value.name])
        for value in list(part.graph.initializers.values()):
            _share(graph, value, weights, taken)
        nodes = list(part.graph)
        part.graph.outputs.clear()
        part.graph.inputs.clear()
        part.graph.initializers.clear()
        part.graph.remove(nodes)
        body.outputs.clear()
        body.remove(list(body))
        body.initializers.clear()
        mark = "first" if which == FIRST else "behind"
        for inner in nodes:
            for value in inner.outputs:
                value.shape = value.shape if value in results else None
                if value.name:
                    value.name = f"{mark}/{value.name}"
        for value, name in zip(results, named, strict=True):
            value.name = name
        held = ir.Graph([], results, nodes=[*nodes, *(c for c in constants if c is not None)], name=body.name)
        node.attributes[which] = ir.AttrGraph(which, held)
    return stamp(model)


def _share(
    graph: ir.Graph, value: ir.Value, weights: dict[tuple[object, ...], ir.Value], taken: set[str | None]
) -> None:
    """Put a weight into the outer graph, once for both."""
    tensor = value.const_value
    assert tensor is not None
    key = tensor.dtype, tuple(tensor.shape.numpy()), hashlib.blake2b(tensor.tobytes(), digest_size=16).digest()
    known = weights.get(key)
    if known is not None:
        value.replace_all_uses_with(known)
        return
    held = ir.Value(name=_free(value.name or "weight", taken), shape=value.shape, type=value.type, const_value=tensor)
    value.replace_all_uses_with(held)
    graph.register_initializer(held)
    weights[key] = held


def _free(name: str, taken: set[str | None]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _empty(value: ir.Value) -> bool:
    """Whether a branch gives a constant without elements, in the place of what only the other gives."""
    node = value.producer()
    if node is None:
        return value.const_value is not None and value.const_value.size == 0
    held = node.attributes.get("value") if node.op_type == "Constant" else None
    return held is not None and held.as_tensor().size == 0
