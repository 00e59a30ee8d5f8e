"""Operands that exporters compute at run time, written as constants wherever the dimensions are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.values import constant, dims


def write_targets(model: ir.Model) -> None:
    """Turn computed operands of Reshape and Expand, and single dimensions read off a Shape, into constants."""
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ("Gather", "Slice") and node.inputs[0] is not None:
            _fold_dimension(model, node)
        elif node.op_type in ("Reshape", "Expand") and not _is_constant(node.inputs[1]) and not _own_target(node):
            target = _reshape_target(node) if node.op_type == "Reshape" else _expand_target(node)
            if target is not None:
                node.replace_input_with(1, _operand(model, node, target))


def _reshape_target(node: ir.Node) -> list[int | str] | None:
    """A Reshape's inferred output: sizes, 0 for "as in the input", at most one -1, and names for what else is open.

    `[0, 0, heads, head_dim]` is what ONNX Runtime's attention fusion recognises. Where several dimensions are only
    known at run time, one of them (a product, if there is one: it may hold what is cut) is the -1.
    """
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None or 0 in after:
        return None
    target = [d if isinstance(d, int) else 0 if i < len(before) and before[i] == d else -1 for i, d in enumerate(after)]
    node.attributes.pop("allowzero", None)
    open_axes = [i for i, d in enumerate(target) if d == -1]
    inferred = next((i for i in open_axes if not str(after[i]).isidentifier()), next(iter(open_axes), None))
    return [str(after[i]) if i in open_axes and i != inferred else d for i, d in enumerate(target)]


def _expand_target(node: ir.Node) -> list[int | str] | None:
    """An Expand's inferred output: 1 keeps the input's own dimension."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        return None
    lead = len(after) - len(before)
    target: list[int | str] = [
        1 if d is not None and i >= lead and before[i - lead] == d else d if isinstance(d, int) else str(d)
        for i, d in enumerate(after)
    ]
    # An operand shorter than the result does not have a number for every dimension.
    return target if dims(node.inputs[1]) == (len(after),) or not any(isinstance(d, str) for d in target) else None


def _operand(model: ir.Model, node: ir.Node, target: Sequence[int | str]) -> ir.Value:
    """A shape operand: one constant where all is known; else a Concat of constants and dimensions read at run time.

    Those are read off the graph's inputs, or else off the operand that the node had. The numbers stand apart, so that
    they can be rewritten.
    """
    if all(isinstance(size, int) for size in target):
        return constant(model, np.array(target, dtype=np.int64), f"{node.name}_shape")
    computed = node.inputs[1]
    assert computed is not None
    pieces: list[ir.Value] = []
    fixed: list[int] = []
    for axis, size in enumerate(target):
        if isinstance(size, int):
            fixed.append(size)
            continue
        if fixed:
            pieces.append(constant(model, np.array(fixed, dtype=np.int64), f"{node.name}_shape"))
            fixed = []
        pieces.append(_dimension(model, size) or _element(model, node, computed, axis))
    if fixed:
        pieces.append(constant(model, np.array(fixed, dtype=np.int64), f"{node.name}_shape"))
    return _insert(node, ir.node("Concat", pieces, {"axis": 0}, name=f"{node.name}_target"))


def _dimension(model: ir.Model, symbol: str) -> ir.Value | None:
    """A dimension that an input declares, read off that input: a vector of one number, made once per symbol."""
    known: dict[str, ir.Value] = model.graph.meta.setdefault("onnxprune.dimensions", {})
    if symbol in known and known[symbol].producer() is not None and known[symbol].producer().graph is not None:  # type: ignore[union-attr]
        return known[symbol]
    for value in model.graph.inputs:
        if symbol in (dims(value) or ()):
            axis = (dims(value) or ()).index(symbol)
            first = model.graph[0]
            shape = _insert(first, ir.node("Shape", [value], name=f"{value.name}_shape"))
            known[symbol] = _insert(first, _pick(model, shape, axis, f"{value.name}_dim_{axis}"))
            return known[symbol]
    return None


def _element(model: ir.Model, node: ir.Node, computed: ir.Value, axis: int) -> ir.Value:
    return _insert(node, _pick(model, computed, axis, f"{node.name}_dim_{axis}"))


def _pick(model: ir.Model, vector: ir.Value, position: int, name: str) -> ir.Node:
    index = constant(model, np.array([position], dtype=np.int64), f"{name}_index")
    return ir.node("Gather", [vector, index], {"axis": 0}, name=name)


def _insert(before: ir.Node, new: ir.Node) -> ir.Value:
    """Put a node that computes int64 numbers in front of another; returns its output."""
    new.version = before.version if before.domain == "" else 13
    new.outputs[0].name = f"{new.name}_output"
    new.outputs[0].dtype = ir.DataType.INT64
    before.prepend(new)
    return new.outputs[0]


def _own_target(node: ir.Node) -> bool:
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    return producer is not None and producer.name == f"{node.name}_target"


def _fold_dimension(model: ir.Model, node: ir.Node) -> None:
    """Replace `Shape(x)[i]` by its number where that dimension is a number."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != "Shape" or (known := dims(producer.inputs[0])) is None:
        return
    start = producer.attributes["start"].as_int() if "start" in producer.attributes else 0
    end = producer.attributes["end"].as_int() if "end" in producer.attributes else len(known)
    operands = [a for v in node.inputs[1:] if (a := _array(v)) is not None]
    if len(operands) < len(node.inputs) - 1:
        return
    vector = np.array(known[start:end], dtype=object)
    if node.op_type == "Gather":
        picked = vector[operands[0]]
    elif len(operands) >= 2:
        begin, stop = int(operands[0].ravel()[0]), int(operands[1].ravel()[0])
        step = int(operands[3].ravel()[0]) if len(operands) > 3 else 1
        picked = vector[begin:stop:step]
    else:
        return
    picked = np.asarray(picked, dtype=object)
    if all(isinstance(d, int) for d in picked.ravel()):
        result = node.outputs[0]
        value = constant(model, picked.astype(np.int64), f"{node.name}_dim")
        if not result.is_graph_output():
            result.replace_all_uses_with(value)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _array(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()
