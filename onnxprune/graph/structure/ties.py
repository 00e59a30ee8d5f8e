"""What every node says of the axes that it touches: which of them are one, and which must stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UnsupportedError, reading
from onnxprune.graph import flow, ops
from onnxprune.graph.axes import Layout, Solver, symbol_size
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.nested import bodies, reads
from onnxprune.graph.ops.base import operand
from onnxprune.graph.ops.normalize import narrow_axes, narrows
from onnxprune.graph.quantised import GIVE_FLOATS, ORDERED, Quantised
from onnxprune.graph.sizes_told import sizes_told
from onnxprune.graph.values import dims

IN_BODY = "{} {} holds graphs of its own, which run or not as data decide, and is not cut"


class Ties:
    """The graph's dimensions under the constraints of its operators (`ops.Constraints`)."""

    def __init__(self, graph: ir.Graph, *, hidden: bool = False) -> None:
        self.graph = graph
        self.hidden = hidden
        self.solver = Solver()
        self.read: list[tuple[ir.Node, int, int]] = []
        self.met: list[tuple[ir.Node, int, int, Layout]] = []
        self._symbols = sizes_told(graph)  # what a weight meets has its size, whatever it is called
        self._sizes: dict[ir.Value, tuple[int, ...] | None] = {}
        self._dims: dict[ir.Value, tuple[Layout, ...]] = {}

    def add(self, node: ir.Node) -> None:
        """State a node's constraints; pin what it touches where it, or a shape, is unknown."""
        operator = ops.lookup(node)
        values = [v for v in (*reads(node), *node.outputs) if v is not None and v.name]
        if flow.is_flow(node) and node.op_type == flow.LEAVE:  # a loop is known from its beginning to its end, or not
            enter = flow.enter_of(node)
            values += [v for v in (*enter.inputs, *enter.outputs) if v is not None and v.name]
        if bodies(node):
            why = IN_BODY.format(node.op_type, node.name)
        elif operator is None:
            why = f"{node.op_type} ({node.domain or 'ai.onnx'}, opset {node.version}) is not known" + _hint(node)
        elif any(self._known(v) is None and not _is_shape_operand(v) for v in values):
            why = f"the shape around {node.op_type} {node.name} is not known"
        else:
            where = f"node {node.name} ({node.op_type}, opset {node.version}): not formed as its operator asks"
            with reading(where, UnsupportedError):
                (narrow_axes if self.hidden and narrows(node) else operator.axes)(node, self)
            return
        for value in values:
            self.pin(value, None, why)

    # -- ops.Constraints ---------------------------------------------------------------------------------------

    def dims(self, value: ir.Value) -> tuple[Layout, ...]:
        if value not in self._dims:
            self._dims[value] = tuple(self.solver.new(size) for size in self.sizes(value))
        return self._dims[value]

    def sizes(self, value: ir.Value) -> tuple[int, ...]:
        sizes = self._known(value)
        assert sizes is not None
        return sizes

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        return None if value is None or value.const_value is None else value.const_value.numpy()

    def same(self, a: Layout, b: Layout) -> None:
        self.solver.same(a, b)

    def flat(self, a: Sequence[Layout], b: Sequence[Layout]) -> None:
        self.solver.flat(a, b)

    def pin(self, value: ir.Value | None, axes: Iterable[int] | None, why: str) -> None:
        if value is None or self._known(value) is None:
            return
        found = self.dims(value)
        for axis in range(len(found)) if axes is None else axes:
            self.solver.pin(found[axis], why)

    def hold(self, layout: Layout, why: str) -> None:
        self.solver.pin(layout, why)

    def reads(self, node: ir.Node, index: int, axis: int) -> None:
        self.read.append((node, index, axis))

    def meets(self, node: ir.Node, index: int, axis: int, layout: Layout) -> None:
        self.met.append((node, index, axis, layout))

    def fresh(self, size: int) -> Layout:
        return self.solver.new(size)

    # ----------------------------------------------------------------------------------------------------------

    def keep_blocks(self, value: ir.Value) -> None:
        """State that of indices which share a scale as many of every block stay, or all of some blocks.

        The latter where other sizes of blocks have no kernels, or slow ones.
        """
        tensor = value.const_value
        if not isinstance(tensor, Quantised) or self._known(value) is None:
            return
        for axis, (layout, size) in enumerate(zip(self.dims(value), self.sizes(value), strict=True)):
            block = tensor.block_along(axis)
            if not block:
                continue
            if tensor.ordered_along(axis):
                self.solver.pin(layout, ORDERED)
                continue
            if size % block:
                self.solver.pin(layout, f"quantised in blocks of {block}, the last of which is smaller")
                continue
            blocks, inner = self.solver.new(size // block), self.solver.new(block)
            self.solver.flat([layout], [blocks, inner], f"quantised in blocks of {block}")
            self.solver.pin(inner if tensor.whole_blocks else blocks, f"quantised in blocks of {block}")

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """Every value's dimensions, resolved."""
        return {v.name or "": tuple(self.solver.resolve(d) for d in found) for v, found in self._dims.items()}

    def _known(self, value: ir.Value) -> tuple[int, ...] | None:
        if value not in self._sizes:
            found = dims(value)
            self._sizes[value] = (
                None if found is None or None in found else tuple(self._size(d) for d in found if d is not None)
            )
        return self._sizes[value]

    def _size(self, dim: int | str) -> int:
        return (
            evaluate(dim, self._symbols, self._new_symbol)
            if isinstance(dim, int) or dim in self._symbols
            else self._parse(dim)
        )

    def _parse(self, dim: str) -> int:
        while True:
            try:
                return evaluate(dim, self._symbols)
            except KeyError as missing:
                name = str(missing.args[0])
                if name == dim and not name.isidentifier():
                    return self._new_symbol(dim)
                self._new_symbol(_first_free(dim, self._symbols) or dim)

    def _new_symbol(self, name: str) -> int:
        self._symbols[name] = symbol_size(len(self._symbols))
        return self._symbols[name]


_QUANTISED = re.compile(r"Q[A-Z]|DynamicQuantize|MatMul(Integer|NBits|Bnb4|Fp)|GatherBlockQuantized|QMoE|.*Quantize")
"""Operators on integers, or on weights of few bits."""


def _hint(node: ir.Node) -> str:
    """What can be done about an operator that is not known."""
    if node.domain == "com.microsoft" and node.op_type == "MatMulNBits" and operand(node, 4) is not None:
        return f": {ORDERED}"
    if node.domain == "com.microsoft" and _QUANTISED.match(node.op_type):
        return f": {GIVE_FLOATS}"
    if node.domain == "com.microsoft.nchwc":
        return ": saved from a session for one machine's caches; save it at optimisation level basic or extended"
    return ""


def _is_shape_operand(value: ir.Value) -> bool:
    """Whether a value of unknown shape holds sizes computed at run time: its contents matter, not its own shape."""
    return (
        value.dtype == ir.DataType.INT64
        and all(
            node.op_type in ("Reshape", "Expand", "Slice", "Tile", "ConstantOfShape", "Split", "Resize", "Pad")
            and index > 0
            for node, index in value.uses()
        )
        and bool(value.uses())
    )


def _first_free(expression: str, known: dict[str, int]) -> str | None:
    """The first name in an expression that has no size yet."""
    import ast

    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return next(
        (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id not in known and n.id not in called), None
    )
