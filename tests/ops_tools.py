"""One operator alone: as a model for ONNX Runtime and the interpreter, and cut along every axis it leaves free."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper

from onnxprune.graph import ops
from onnxprune.graph.axes import Layout, Mask, Solver, atoms_of, flat_mask
from onnxprune.graph.ops import Change
from onnxprune.graph.prepare import stamp
from onnxprune.probe.interpreter import Interpreter

TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}


@dataclass(frozen=True)
class Case:
    """One node.

    Attributes:
        inputs: arrays by position; None where an optional one is left out.
        outputs: their number; 0 marks one that is left out.
        fixed: inputs that are initializers (shape operands).
        free: sizes of the atoms that the operator leaves free, sorted.
    """

    op_type: str
    inputs: Sequence[np.ndarray | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    opset: int = 21
    outputs: Sequence[int] = (1,)
    fixed: frozenset[int] = frozenset()
    free: tuple[int, ...] = ()
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op_type}-{self.label}" if self.label else self.op_type


def proto(case: Case) -> onnx.ModelProto:
    """The case as a model whose inputs are i0, i1 … and outputs o0, o1 …"""
    names = ["" if x is None else f"i{n}" for n, x in enumerate(case.inputs)]
    results = [f"o{n}" if wanted else "" for n, wanted in enumerate(case.outputs)]
    node = helper.make_node(case.op_type, names, results, name="node", domain=case.domain)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in case.attributes.items() if v is not None)
    present = [(n, x) for n, x in enumerate(case.inputs) if x is not None]
    inputs = [
        helper.make_tensor_value_info(f"i{n}", TYPES[x.dtype.name], x.shape) for n, x in present if n not in case.fixed
    ]
    constants = [onnx.numpy_helper.from_array(x, f"i{n}") for n, x in present if n in case.fixed]
    outputs = [helper.make_empty_tensor_value_info(name) for name in results if name]
    graph = helper.make_graph([node], "one", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", case.opset)] + ([helper.make_opsetid(case.domain, 1)] if case.domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds(case: Case) -> dict[str, np.ndarray]:
    return {f"i{n}": x for n, x in enumerate(case.inputs) if x is not None and n not in case.fixed}


def in_runtime(case: Case) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto(case).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds(case)))


def in_torch(case: Case) -> list[np.ndarray]:
    model = stamp(ir.from_proto(proto(case)))
    found = Interpreter(model.graph).run(feeds(case))
    return [found[str(value.name)].numpy() for value in model.graph.outputs]


def assert_agrees(case: Case, *, rtol: float = 1e-4, atol: float = 2e-5) -> None:
    """The interpreter gives what ONNX Runtime gives, types and shapes included."""
    expected = in_runtime(case)
    for got, wanted in zip(in_torch(case), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol, atol, err_msg=str(case), strict=True)


class Node:
    """A case's node under its own constraints: `ops.Constraints`, then `ops.Sizes` for a choice of masks."""

    def __init__(self, case: Case) -> None:
        model = stamp(ir.from_proto(proto(case)))
        (self.node,) = list(model.graph)
        operator = ops.lookup(self.node)
        assert operator is not None
        self.operator, self.solver = operator, Solver()
        self.read: list[tuple[int, int]] = []
        self.masks: dict[int, Mask] = {}
        arrays = [x for x in case.inputs if x is not None] + in_runtime(case)
        values = [v for v in (*self.node.inputs, *self.node.outputs) if v is not None and v.name]
        self._sizes = {str(v.name): x.shape for v, x in zip(values, arrays, strict=True)}
        self._dims = {name: tuple(map(self.solver.new, shape)) for name, shape in self._sizes.items()}
        operator.axes(self.node, self)
        self.layouts = {name: tuple(map(self.solver.resolve, dims)) for name, dims in self._dims.items()}
        shown = {name: dims for name, dims in self.layouts.items() if name not in {f"i{n}" for n in case.fixed}}
        found = {a for dims in shown.values() for d in dims for a in atoms_of(d)}
        self.free = sorted(a for a in found if a not in self.solver.pins and self.solver.sizes[a] > 1)

    # -- ops.Constraints

    def dims(self, value: ir.Value) -> Sequence[Layout]:
        return self._dims[str(value.name)]

    def sizes(self, value: ir.Value) -> tuple[int, ...]:
        return self._sizes[str(value.name)]

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        return None if value is None or value.const_value is None else value.const_value.numpy()

    def same(self, a: Layout, b: Layout) -> None:
        self.solver.same(a, b)

    def flat(self, a: Sequence[Layout], b: Sequence[Layout]) -> None:
        self.solver.flat(a, b)

    def pin(self, value: ir.Value | None, axes: Iterable[int] | None, why: str) -> None:
        if value is not None and value.name:
            for axis in range(len(self.dims(value))) if axes is None else axes:
                self.solver.pin(self.dims(value)[axis], why)

    def meets(self, node: ir.Node, index: int, axis: int, layout: Layout) -> None:
        self.read.append((index, axis))

    def reads(self, node: ir.Node, index: int, axis: int) -> None:
        self.read.append((index, axis))

    def fresh(self, size: int) -> Layout:
        return self.solver.new(size)

    def hold(self, layout: Layout, why: str) -> None:
        self.solver.pin(layout, why)

    # -- ops.Sizes

    def kept(self, value: ir.Value, axis: int) -> np.ndarray:
        return flat_mask(self.layouts[str(value.name)][axis], self.masks, self.solver.sizes)

    def ratio(self, value: ir.Value, axis: int) -> tuple[int, int]:
        kept = self.kept(value, axis)
        return int(kept.sum()), len(kept)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        return tuple(int(self.kept(value, axis).sum()) for axis in range(len(self.sizes(value))))

    def changed(self, value: ir.Value, axis: int) -> bool:
        return not self.kept(value, axis).all()

    def cut(self, name: str, array: np.ndarray) -> np.ndarray:
        for axis, layout in enumerate(self.layouts[name]):
            array = array.compress(flat_mask(layout, self.masks, self.solver.sizes), axis)
        return array


def choose(node: Node, rng: np.random.Generator) -> None:
    """Keep some, and not all, of every free atom."""
    for atom in node.free:
        size = node.solver.sizes[atom]
        kept = np.zeros(size, dtype=bool)
        kept[rng.choice(size, rng.integers(1, size), replace=False)] = True
        node.masks[atom] = Mask(kept)


def smaller(case: Case, node: Node) -> Case:
    """The case cut by the node's masks, its operands and attributes as `resize` has them."""
    inputs = [None if x is None else node.cut(f"i{n}", x) for n, x in enumerate(case.inputs)]
    change = node.operator.resize(node.node, node) if node.operator.resize else Change()
    for index, operand in change.inputs.items():
        inputs += [None] * (index + 1 - len(inputs))
        inputs[index] = operand
    for index, elements in change.elements.items():
        operand = np.array(inputs[index])
        for position, number in elements.items():
            operand[position] = number
        inputs[index] = operand
    fixed = case.fixed | set(change.inputs)
    return replace(case, inputs=inputs, attributes={**case.attributes, **change.attributes}, fixed=frozenset(fixed))


def gated(case: Case, node: Node) -> Case:
    """The case with what is cut zeroed where the operator reads it."""
    inputs = list(case.inputs)
    for index, axis in node.read:
        x = inputs[index]
        assert x is not None
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        inputs[index] = x * flat_mask(node.layouts[f"i{index}"][axis], node.masks, node.solver.sizes).reshape(
            shape
        ).astype(x.dtype)
    return replace(case, inputs=inputs)


def assert_cut_is_gated(case: Case) -> None:
    """What is left after a cut gives what the gated original gives, in ONNX Runtime and in the interpreter.

    All free atoms are cut at once, at random. The case states their sizes, so that it cannot pass with none free.
    """
    node = Node(case)
    assert tuple(sorted(node.solver.sizes[a] for a in node.free)) == case.free
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    for _ in range(3):
        choose(node, rng)
        little, zeroed = smaller(case, node), gated(case, node)
        if node.operator.macs is not None:
            alone = Node(little)
            assert node.operator.macs(node.node, node) == node.operator.macs(alone.node, alone)
        names = [str(v.name) for v in node.node.outputs if v.name]
        expected = [node.cut(name, y) for name, y in zip(names, in_runtime(zeroed), strict=True)]
        whole = [node.cut(name, y) for name, y in zip(names, in_torch(zeroed), strict=True)]
        for found in (in_runtime(little), in_torch(little), whole):
            for name, got, wanted in zip(names, found, expected, strict=True):
                np.testing.assert_allclose(got, wanted, 1e-4, 2e-5, err_msg=name, strict=True)
