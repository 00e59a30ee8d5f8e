"""Micro-models: one kind of module, cut out of the real graph at any width, at one shape, ready to be timed.

A module is what a group of units touches: the nodes that read or write its axis, and the rest of its residual branch,
which leaves with the last unit. What flows into it becomes the micro-model's inputs, with fixed shapes, so that shape
arithmetic folds and is not timed with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import rewrite
from onnxprune.errors import UnsupportedError
from onnxprune.graph import joined, prepare
from onnxprune.graph.axes import atoms_of
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.flow import Flow, is_flow
from onnxprune.graph.model import Part
from onnxprune.graph.nested import reads
from onnxprune.graph.plan import Branch, Plan
from onnxprune.graph.structure.sites import Site
from onnxprune.graph.values import constant, dims
from onnxprune.measure.calls import taken
from onnxprune.measure.cost import Costs
from onnxprune.measure.latency import symbols
from onnxprune.measure.tables.timing_script import drawn
from onnxprune.rewrite import cleanup, cut

IDLE, MAP, WHOLE, UNCUT = "idle", "map", "model", "uncut"
"""Kinds besides the groups' own: a module that is gone, a map in its place, the model, and it rewritten uncut."""

_TOLD = 4096
"""Bytes up to which whole numbers in a constant are part of what a graph computes (shape operands, axes)."""


@dataclass(frozen=True)
class Port:
    """What one input is fed: numbers drawn from `low` to `high`, or N(0, 1) where these are None."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, eq=False)
class Micro:
    """A graph to time.

    Attributes:
        signature: of what it computes and at which sizes; equal graphs take equal time.
        kind: of the module's units, or `IDLE`, `MAP`, `WHOLE`.
        units, of: how many of its units are there.
        model: the graph; None for the whole model, which is a file.
        ports: its inputs.
        file: the whole model's.
        fixed: of what has symbolic sizes, what they are here.
    """

    signature: str
    kind: str
    units: int
    of: int
    model: ir.Model | None
    ports: tuple[Port, ...]
    file: Path | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Values for its inputs."""
        return drawn([asdict(p) for p in self.ports], seed)


class Cutter:
    """Cuts micro-models out of one graph at one shape (`costs.bindings`).

    Args:
        keep_unread: positions that no output reads are computed, as in the files that will be written.
        part: of several graphs, the one.
    """

    def __init__(
        self, costs: Costs, sites: Sequence[Site], keep_unread: bool = False, part: Part | None = None
    ) -> None:
        self.costs, self.sites = costs, sites
        self.keep_unread, self.part = keep_unread, part
        self.graph = costs.model.graph
        self.nodes = list(self.graph) if part is None else joined.nodes_of(self.graph, part.wires)
        self._names = {node.name for node in self.nodes}
        self.structure = costs.structure
        branches = [s.branch.id for s in sites if s.branch is not None]
        self._shared = {b for b in branches if branches.count(b) > 1}
        self._modules: dict[str, ir.Model] = {}
        self._picks: set[str] = set()

    def whole(self) -> Micro:
        """The model itself, or the one of its graphs."""
        model = self.costs.model
        made = synthesize(model.inputs, dims=self.costs.bindings)
        if self.part is not None:
            made = next(taken(model, self.part, [made]))
            model = self.part.model
        ports = tuple(_port(name, array.dtype, array.shape, array) for name, array in made.items())
        fixed = symbols(model.inputs, made)
        return Micro(_signature(model.normal, ports), WHOLE, 1, 1, None, ports, model.path, fixed)

    def uncut(self) -> Micro:
        """The model as it is written when nothing is cut: what modules are taken off."""
        whole, made = self.whole(), self._uncut
        if self.part is not None:
            made = joined.split(made, self.part)
        return replace(whole, signature=_signature(made, whole.ports), kind=UNCUT, model=made, file=None)

    @cached_property
    def _uncut(self) -> ir.Model:
        made = rewrite.apply(self.costs.model, self.structure, Plan(self.structure.digest))
        if not self.keep_unread:
            rewrite.drop_unread(made)
        return made

    @cached_property
    def _read(self) -> dict[str, tuple[int, int]]:
        """Value -> (axis, positions), where the file computes some positions of an axis only."""
        found = {}
        before = {v.name: dims(v) for n in self.graph for v in n.outputs}
        for value in (v for n in self._uncut.graph for v in n.outputs):
            pairs = list(zip(before.get(value.name) or (), dims(value) or (), strict=False))
            differing = [(axis, new) for axis, (old, new) in enumerate(pairs) if old != new]
            if len(differing) == 1 and isinstance(differing[0][1], int):
                found[value.name or ""] = (differing[0][0], differing[0][1])
        return found

    def module(self, site: Site, units: int) -> Micro:
        """A site's module with `units` of its units left; with none, what stays of it: its inputs handed on.

        The site has nodes in the graph (`holds`).
        """
        whole = self._module(site)
        if units == 0:
            return self._micro(_idle(whole), IDLE, 0, site.group.size)
        model = prepare.stamp(whole.clone())
        if units < site.group.size:
            width = site.group.shape[-1]
            keep = tuple(r * width + i for r in range(site.rows) for i in range(units // site.rows))
            cut.units(model, self.structure, Plan(self.structure.digest, {site.id: keep}))
            cleanup.sweep(model)
        if any(node.name in self._picks for node in model.graph):
            prepare.infer(model)
            rewrite.drop_unread(model)
        return self._micro(model, site.group.kind, units, site.group.size)

    def holds(self, site: Site) -> bool:
        """Whether a site's units are in the graph."""
        return self.part is None or bool(self._region(site))

    def has(self, branch: Branch) -> bool:
        """Whether a residual branch is in the graph."""
        return branch.add in self._names

    def role(self, site: Site) -> tuple[tuple[int, int, int], ...]:
        """Where in its module a site's units are read: (position of the node, input, axis)."""
        position = {node.name: i for i, node in enumerate(self._module(site).graph)}
        readers = self.structure.group(site.id).readers
        return tuple((position[r.node], r.input, r.axis) for r in readers if r.node in position)

    def map(self, branch: Branch) -> Micro:
        """The linear map of the stream that may stand in for a residual branch."""
        values = {v.name: v for n in self.graph for v in n.outputs} | {v.name: v for v in self.graph.inputs}
        skip, value = values[branch.skip], values[branch.value]
        dtype = value.dtype or ir.DataType.FLOAT
        shape = self.costs.dense_shape(skip)
        x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(dtype))
        sizes = ((shape[-1], self.costs.dense_shape(value)[-1]), (self.costs.dense_shape(value)[-1],))
        tensors = [ir.Tensor(np.full(s, 0.01, dtype=dtype.numpy()), name=f"w{i}") for i, s in enumerate(sizes)]
        held = [ir.Value(name=t.name, shape=t.shape, type=ir.TensorType(dtype), const_value=t) for t in tensors]
        version = self.costs.model.opset
        product = ir.node("MatMul", [x, held[0]], name="map", version=version)
        shifted = ir.node("Add", [product.outputs[0], held[1]], name="rest", version=version)
        product.outputs[0].name, shifted.outputs[0].name = "mapped", "y"
        shifted.outputs[0].type = ir.TensorType(dtype)
        graph = ir.Graph([x], [shifted.outputs[0]], nodes=[product, shifted], initializers=held,
                         opset_imports=self.graph.opset_imports, name="map")  # fmt: skip
        return self._micro(ir.Model(graph, ir_version=self.costs.model.normal.ir_version), MAP, 1, 1)

    # ----------------------------------------------------------------------------------------------------------

    def _module(self, site: Site) -> ir.Model:
        """A site's module, whole."""
        if site.id not in self._modules:
            names = self._region(site)
            inside = [n for n in self.graph if n.name in names]
            outputs = [v for n in inside for v in n.outputs if _leaves(v, names)]
            graph = ir.convenience.extract(self.graph, list(self._boundary(inside)), outputs)
            # What is read by nobody here came along as an input of the graph.
            for value in [v for v in graph.inputs if not v.uses()]:
                graph.inputs.remove(value)
            known = {v.name: v for n in self.graph for v in n.outputs} | {v.name: v for v in self.graph.inputs}
            for value in (*graph.inputs, *graph.outputs):
                value.meta.pop("onnxprune.shape", None)
                value.shape = ir.Shape(self.costs.dense_shape(known[value.name]))
            model = ir.Model(graph, ir_version=self.costs.model.normal.ir_version)
            for i, value in enumerate(graph.outputs):
                if value.name in self._read:
                    graph.outputs[i] = _picked(model, value, *self._read[value.name])
                    self._picks.add(f"{value.name}_read")
            self._modules[site.id] = prepare.stamp(model)
        return self._modules[site.id]

    def _region(self, site: Site) -> set[str]:
        """The names of the nodes whose time depends on how many units there are, or whether there are any."""
        layouts, atom = self.structure.layouts, site.group.atom
        touched = {
            node.name or ""
            for node in self.nodes
            for value in (*reads(node), *node.outputs)
            if value is not None and any(atom in atoms_of(layout) for layout in layouts.get(value.name or "", ()))
        }
        if site.branch is not None and site.branch.id not in self._shared:
            same = [self.structure.branch(name) for name in self.structure.with_twins([site.branch.id])]
            touched |= {n for branch in same for n in branch.nodes if n in self._names}
        self._refuse_flow(site, touched)
        return touched

    def _refuse_flow(self, site: Site, touched: set[str]) -> None:
        """Refuse units whose time depends on the data: how often they run, or whether they run at all.

        Raises:
            UnsupportedError: names the units, and what to ask for instead.
        """
        flow = self._flow
        for node in self.graph if flow.home or flow.sides else ():
            if node.name in touched and (node in flow.home or node in flow.sides or is_flow(node)):
                where = "on one side of an If" if node in flow.sides else "in a loop"
                raise UnsupportedError(
                    f"latency: {site.id} (node {node.name}) runs {where}, so that its time depends on the data and no "
                    "table can hold it: give the budget as --flops, and time what is written with `onnxprune bench`"
                )

    @cached_property
    def _flow(self) -> Flow:
        return Flow(self.graph)

    def _boundary(self, inside: Sequence[ir.Node]) -> Iterator[ir.Value]:
        """What flows into nodes: activations, and inputs of the graph; shape operands are computed from these."""
        made = {v for n in inside for v in n.outputs}
        todo = [v for n in inside for v in reads(n)]
        seen: set[ir.Value] = set()
        while todo:
            value = todo.pop(0)
            if value is None or value in made or value in seen or value.const_value is not None:
                continue
            seen.add(value)
            producer = value.producer()
            here = producer is not None and producer.name in self._names
            if here and producer is not None and value.dtype is not None and value.dtype.is_integer():
                todo += reads(producer)
            else:
                yield value

    def _micro(self, model: ir.Model, kind: str, units: int, of: int) -> Micro:
        ports = tuple(_port(v.name or "", v.dtype, v.shape) for v in model.graph.inputs)
        return Micro(_signature(model, ports), kind, units, of, model, ports)


def _leaves(value: ir.Value, names: set[str]) -> bool:
    return value.is_graph_output() or any(user.name not in names for user, _ in value.uses())


def _picked(model: ir.Model, value: ir.Value, axis: int, count: int) -> ir.Value:
    """The first positions of an axis alone, so that only these are computed; which ones makes no difference."""
    index = constant(model, np.arange(count, dtype=np.int64), f"{value.name}_read")
    version = model.graph.opset_imports.get("", 13)
    node = ir.node("Gather", [value, index], {"axis": axis}, name=f"{value.name}_read", version=version)
    assert value.shape is not None
    result, shape = node.outputs[0], list(value.shape)
    shape[axis] = count
    result.name, result.type, result.shape = f"{value.name}_few", value.type, ir.Shape(shape)
    model.graph.append(node)
    return result


def _port(name: str, dtype: Any, shape: Any, array: np.ndarray | None = None) -> Port:
    """Masks are on, ids small: what floats mean does not matter for time, where numbers point to does."""
    kind = dtype.numpy() if isinstance(dtype, ir.DataType) else np.dtype(dtype)
    sizes = tuple(int(d) for d in shape)
    if np.dtype(kind).kind not in "iub":
        return Port(name, np.dtype(kind).name, sizes)
    low, high = (1, 1) if array is None or not array.size else (int(array.min()), int(array.max()))
    return Port(name, np.dtype(kind).name, sizes, low, high)


def _idle(module: ir.Model) -> ir.Model:
    """A model of the same inputs and outputs that computes nothing: what calling a micro-model costs by itself."""
    inputs, nodes, weights = [], [], []
    for value in module.graph.inputs:
        inputs.append(ir.Value(name=value.name, shape=value.shape, type=value.type))
    outputs = []
    for i, value in enumerate(module.graph.outputs):
        source = next((v for v in inputs if v.shape == value.shape and v.type == value.type), None)
        if source is None:
            assert value.dtype is not None and value.shape is not None
            tensor = ir.Tensor(np.zeros(value.shape.numpy(), dtype=value.dtype.numpy()), name=f"zeros_{i}")
            source = ir.Value(name=tensor.name, shape=tensor.shape, type=value.type, const_value=tensor)
            weights.append(source)
        node = ir.node("Identity", [source], name=f"idle_{i}", version=module.graph.opset_imports.get("", 17))
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"idle_{i}", value.shape, value.type
        nodes.append(node)
        outputs.append(node.outputs[0])
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, name="idle",
                     opset_imports=module.graph.opset_imports)  # fmt: skip
    return ir.Model(graph, ir_version=module.ir_version)


def _signature(model: ir.Model, ports: Sequence[Port]) -> str:
    """A digest of operators, wiring, sizes and element types; names and weights play no part."""
    index: dict[ir.Value | None, Any] = {None: None}
    told: list[Any] = [[p.dtype, p.shape] for p in ports]
    for i, value in enumerate(model.graph.inputs):
        index[value] = f"i{i}"
    for node in model.graph:
        operands = [index[v] if v in index else _constant(v) for v in reads(node)]
        attributes = sorted((name, str(a.value)) for name, a in node.attributes.items())
        told.append([node.domain, node.op_type, operands, attributes, len(node.outputs)])
        for value in node.outputs:
            index[value] = f"v{len(index)}"
    told.append([index.get(v) for v in model.graph.outputs])
    text = json.dumps([told, sorted(model.opset_imports.items())], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _constant(value: ir.Value | None) -> Any:
    """A weight by its type and shape, whole numbers by their values."""
    if value is None or value.const_value is None:
        raise UnsupportedError(f"value {getattr(value, 'name', None)}: computed by nothing and no input")
    tensor = value.const_value
    numbers = tensor.dtype.is_integer() and tensor.nbytes <= _TOLD
    return [str(tensor.dtype), list(tensor.shape.numpy()), tensor.numpy().tolist() if numbers else None]
