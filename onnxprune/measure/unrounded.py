"""Quantised graphs without the rounding of what flows through them: the same weights, in numbers.

Where activations are rounded, the last digit of a sum decides between two steps, and deep graphs make much of it: two
computations of one file may be a tenth of its outputs' scale apart. Without rounding, graphs that are the same agree to
the last digits, and others do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune.graph import model as models
from onnxprune.graph import outputs
from onnxprune.graph.ops.base import operand
from onnxprune.graph.prepare import quantised
from onnxprune.graph.quantised_operators import forget, noted
from onnxprune.graph.values import constant, succeed


def unrounded(model: ir.Model) -> ir.Model:
    """A clone of a graph (`model.load` or `quantised.fold` gave it) in which no activation is rounded."""
    clone = model.clone()
    for node in clone.graph:
        node.version = clone.opset_imports.get(node.domain, 1)
        note = noted(node)
        if note is not None and note.rounds:
            forget(node)
    while any(_lifted(clone, node) for node in list(clone.graph)):
        pass
    for node in list(clone.graph):
        source = (
            node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
        )
        if source is None or source.op_type != "QuantizeLinear" or source.inputs[0] is None or not _alike(source, node):
            continue
        succeed(node, [ir.node("Identity", [source.inputs[0]], name=node.name, version=node.version)])
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            clone.graph.remove(source, safe=True)
    return clone


_MOVERS = frozenset(
    ("Pad", "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather", "MaxPool", "Expand", "Concat")
)
"""What changes where codes stand and none of them, so that numbers may take the same way."""


def _lifted(model: ir.Model, node: ir.Node) -> bool:
    """Whether a DequantizeLinear was moved in front of what moved its codes, towards what rounded them."""
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    source = codes.producer() if codes is not None else None
    grid = [operand(node, i) for i in (1, 2)]
    if source is None or source.op_type not in _MOVERS or source.domain != "" or len(source.outputs) > 1:
        return False
    if any(v is not None and (v.const_value is None or v.const_value.size != 1) for v in grid):
        return False
    given = list(source.inputs)
    if source.op_type == "Pad":
        scale, zero = (0 if v is None or v.const_value is None else v.const_value.numpy().reshape(()) for v in grid)
        filled = operand(source, 2)
        if (filled is not None and filled.const_value is None) or operand(node, 1) is None:
            return False
        code = 0 if filled is None or filled.const_value is None else int(filled.const_value.numpy().reshape(()))
        number = np.asarray((code - int(zero)) * scale, dtype=np.asarray(scale).dtype)
        given += [None] * (3 - len(given))
        given[2] = constant(model, number, f"{source.name}_number")
    made: list[ir.Node] = []
    for i in range(len(given)) if source.op_type == "Concat" else (0,):
        value = given[i]
        if value is None:
            return False
        numbers = ir.node(
            "DequantizeLinear", [value, *node.inputs[1:]], name=f"{node.name}_{i}_{source.name}", version=node.version
        )
        numbers.outputs[0].name, numbers.outputs[0].shape = f"{numbers.name}_output", value.shape
        numbers.outputs[0].type = node.outputs[0].type
        given[i] = numbers.outputs[0]
        made.append(numbers)
    told = dict(source.attributes)
    made.append(ir.node(source.op_type, given, told, name=f"{source.name}_{node.name}", version=source.version))
    succeed(node, made)
    if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
        model.graph.remove(source, safe=True)
    return True


def _alike(first: ir.Node, second: ir.Node) -> bool:
    """Whether two nodes round to one grid."""
    pairs = [(operand(first, i), operand(second, i)) for i in (1, 2)]
    return all(a is b or _same(a, b) for a, b in pairs)


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is None or b is None or a.const_value is None or b.const_value is None:
        return False
    return a.const_value.dtype == b.const_value.dtype and a.const_value.tobytes() == b.const_value.tobytes()


@contextmanager
def unrounded_file(file: Path) -> Iterator[Path]:
    """A file without its rounding, for as long as the block lasts."""
    model = models.read(file)
    quantised.fold(model)
    passes.RemoveUnusedNodesPass()(model)
    with outputs.scratch() as folder:
        yield models.save(unrounded(model), folder / "unrounded.onnx")[0]
