"""Graphs put together into one, by the names of `wiring`."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import UnsupportedError
from onnxprune.graph.joined.wiring import NEXT
from onnxprune.graph.model import Wires
from onnxprune.graph.prepare import optional_inputs
from onnxprune.graph.values import dims, is_matrix

_NAME = re.compile(r"[A-Za-z_]\w*(?!\w*\()")
_INFERRED = "onnxprune.shape"

Shared = dict[str, dict[str, str]]
"""Graph -> own initializer -> the one that stands for it."""


def join(graphs: Mapping[str, ir.Model], wires: Mapping[str, Wires]) -> tuple[ir.Model, Shared]:
    """One model of several; those given are used up.

    Args:
        graphs: by name, each behind those whose results it takes. Inner names come behind their graph's name ("/").
        wires: by the same names.

    Returns:
        (the model, which initializers stand for several).

    Raises:
        UnsupportedError: the graphs are of different operator sets.
    """
    imports = _imports(graphs)
    versions = [model.ir_version for model in graphs.values()]
    whole = ir.Graph([], [], nodes=[], opset_imports=imports, name="joined")
    model = ir.Model(whole, ir_version=max(*versions, optional_inputs.CONSTANT_BEFORE), producer_name="onnxprune")
    known: dict[str, ir.Value] = {}
    symbols: set[str] = set()
    held: dict[str, list[ir.Value]] = {}
    for name, part in graphs.items():
        optional_inputs.set_aside(part)
        _name_apart(part.graph, wires[name], f"{name}/")
        _rename_sizes(part.graph, wires[name], known, symbols, name)
        held[name] = _move(part.graph, whole, wires[name], known)
    return model, _share(whole, held)


def _imports(graphs: Mapping[str, ir.Model]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, model in graphs.items():
        for domain, version in model.opset_imports.items():
            if found.setdefault(domain, version) != version:
                raise UnsupportedError(
                    f"{name}.onnx is of opset {version} of {domain or 'ai.onnx'}, the graphs beside it of "
                    f"{found[domain]}: they cannot be cut as one; export them with one opset"
                )
    return found


def _name_apart(graph: ir.Graph, wires: Wires, prefix: str) -> None:
    """Give what lies inside names of its own; the interface keeps its names for now."""
    stated = {*wires.inputs, *wires.outputs}
    taken = {node.name for node in graph.all_nodes()}
    for place, node in enumerate(graph.all_nodes()):
        node.name = f"{prefix}{node.name or _free(f'{node.op_type}_{place}', taken)}"
        for value in node.outputs:
            if value.name and not (value.name in stated and node.graph is graph):
                value.name = f"{prefix}{value.name}"
    for held in (graph, *graph.subgraphs()):
        for value in list(held.initializers.values()):
            if held is graph and value.name in stated:
                continue
            del held.initializers[value.name or ""]
            value.name = f"{prefix}{value.name}"
            held.register_initializer(value)
        if held is not graph:
            for value in held.inputs:
                value.name = f"{prefix}{value.name}"


def _free(name: str, taken: Container[str | None]) -> str:
    """A name for a node that has none: sessions open no graph in which two nodes share one."""
    while name in taken:
        name += "_"
    return name


def _rename_sizes(graph: ir.Graph, wires: Wires, known: Mapping[str, ir.Value], symbols: set[str], name: str) -> None:
    """Say the names of sizes as the graphs before say them, where they are the same, and apart where they are not."""
    own: dict[str, int | str] = {}
    free: list[str] = []
    for value in graph.inputs:
        met = known.get(wires.inputs.get(value.name or "", ""))
        there = dims(met) if met is not None else None
        for axis, dim in enumerate(dims(value) or ()):
            if not isinstance(dim, str):
                continue
            other = there[axis] if there is not None and axis < len(there) else None
            if other is not None and dim.isidentifier():
                own.setdefault(dim, other)
            else:
                free += [n for n in _NAME.findall(dim) if n not in free]
    stem = re.sub(r"\W", "_", name)
    for dim in free:
        mark = NEXT if wires.follows else f"{stem}_"
        own.setdefault(dim, f"{mark}{dim}" if dim in symbols else dim)
    symbols.update(d for d in own.values() if isinstance(d, str))

    def renamed(dim: int | str | None) -> int | str | None:
        if not isinstance(dim, str):
            return dim
        if dim in own:
            return own[dim]
        text = _NAME.sub(lambda m: _bracketed(own.get(m[0], f"{stem}_{m[0]}")), dim)
        return int(text) if text.isdecimal() and text != dim else text

    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(d if isinstance(d, int) else d.value) for d in value.shape])
        for key, held in list(value.meta.items()):
            if isinstance(held, ir.Shape):
                value.meta[key] = ir.Shape([renamed(d if isinstance(d, int) else d.value) for d in held])


def _bracketed(dim: int | str) -> str:
    return str(dim) if isinstance(dim, int) or dim.isidentifier() else f"({dim})"


def _values(graph: ir.Graph) -> list[ir.Value]:
    inner = [v for node in graph.all_nodes() for v in node.outputs]
    return [*graph.inputs, *inner, *(v for g in graph.subgraphs() for v in g.inputs)]


def _move(graph: ir.Graph, whole: ir.Graph, wires: Wires, known: dict[str, ir.Value]) -> list[ir.Value]:
    """Put one graph's nodes and weights into the whole; its initializers."""
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    through = {id(v) for v in inputs} | {id(v) for v in graph.initializers.values()}
    for place, value in enumerate(outputs):
        # A value that goes through, or is given twice, gets a node that makes it the graph's own.
        if id(value) in through:
            passed = ir.node("Identity", [value], name=f"{value.name}_passed")
            result = passed.outputs[0]
            result.shape, result.type, result.name = value.shape, value.type, list(wires.outputs)[place]
            graph.append(passed)
            outputs[place] = result
        through.add(id(outputs[place]))
    held = list(graph.initializers.values())
    graph.outputs.clear()
    graph.inputs.clear()
    graph.initializers.clear()
    nodes = list(graph)
    graph.remove(nodes)
    for value in inputs:
        name = wires.inputs[value.name or ""]
        if name in known:
            value.replace_all_uses_with(known[name])
        else:
            value.name = name
            known[name] = value
            whole.inputs.append(value)
    for own, value in zip(wires.outputs, outputs, strict=True):
        value.name = wires.outputs[own]
        known[value.name] = value
    whole.extend(nodes)
    whole.outputs.extend(outputs)
    for value in held:
        whole.register_initializer(value)
    return held


def _share(whole: ir.Graph, held: Mapping[str, Sequence[ir.Value]]) -> Shared:
    """Let equal matrices of several graphs be one; of several equal ones in a graph, each has its own partner."""
    shapes: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for name, values in held.items():
        for value in values:
            if (shape := _matrix(value)) is not None:
                shapes[shape].add(name)
    shared: Shared = {name: {} for name in held}
    first: dict[tuple[object, ...], tuple[str, ir.Value]] = {}
    for name, values in held.items():
        seen: dict[bytes, int] = defaultdict(int)
        for value in values:
            shape = _matrix(value)
            if shape is None or len(shapes[shape]) < 2 or value.const_value is None:
                continue
            digest = hashlib.blake2b(value.const_value.tobytes(), digest_size=16).digest()
            key = (*shape, digest, seen[digest])
            seen[digest] += 1
            owner, kept = first.setdefault(key, (name, value))
            if kept is value:
                continue
            shared[name][(value.name or "").removeprefix(f"{name}/")] = kept.name or ""
            shared[owner][(kept.name or "").removeprefix(f"{owner}/")] = kept.name or ""
            value.replace_all_uses_with(kept)
            del whole.initializers[value.name or ""]
    return shared


def _matrix(value: ir.Value) -> tuple[object, ...] | None:
    """What two matrices must have in common to be compared; None for what is no matrix."""
    tensor = value.const_value
    if tensor is None or value.is_graph_output() or not is_matrix(tensor):
        return None
    return tensor.dtype, tuple(tensor.shape.numpy())
