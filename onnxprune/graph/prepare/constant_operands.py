"""Operands that exporters compute at run time, written as constants wherever the dimensions are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.dimensions import monomial, quotient
from onnxprune.graph.values import constant, dims


def write_targets(model: ir.Model) -> None:
    """Turn computed operands of Reshape, Expand, Tile and ConstantOfShape, and dimensions read off a Shape, into
    constants."""
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ("Gather", "Slice") and node.inputs[0] is not None:
            _fold_dimension(model, node)
        elif node.op_type in ("Reshape", "Expand") and not _is_constant(node.inputs[1]) and not _own_target(node):
            target = _reshape_target(node) if node.op_type == "Reshape" else _expand_target(node)
            if target is not None:
                node.replace_input_with(1, _operand(model, node, target))
        elif node.op_type == "Tile" and not _is_constant(node.inputs[1]) and not _own_target(node):
            _write_repeats(model, node)
        elif node.op_type == "Resize" and len(node.inputs) > 3 and not _is_constant(node.inputs[3]):
            _write_sizes(model, node)
        elif node.op_type == "Equal":
            _fold_comparison(model, node)
        elif node.op_type == "ConstantOfShape" and not _is_constant(node.inputs[0]) and not _own_target(node, 0):
            _write_shape(model, node)


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
    stated = next((i for i, size in enumerate(_stated(node.inputs[1])) if size == -1), None)
    if stated in open_axes:
        inferred = stated  # a number read off the operand would be this -1
    return [str(after[i]) if i in open_axes and i != inferred else d for i, d in enumerate(target)]


def _stated(operand: ir.Value | None) -> list[int | None]:
    """The numbers of a shape operand that are constants in its Concat, None for the others."""
    producer = operand.producer() if operand is not None else None
    if producer is None or producer.op_type != "Concat":
        return []
    found: list[int | None] = []
    for piece in producer.inputs:
        numbers, known = _array(piece), dims(piece)
        if numbers is not None:
            found += [int(i) for i in numbers.ravel()]
        elif known is not None and len(known) == 1 and isinstance(known[0], int):
            found += [None] * known[0]
        else:
            return []
    return found


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


def _operand(model: ir.Model, node: ir.Node, target: Sequence[int | str], index: int = 1) -> ir.Value:
    """A shape operand: one constant where all is known; else a Concat of constants and dimensions read at run time.

    Those are read off the graph's inputs, or else off the operand that the node had. The numbers stand apart, so that
    they can be rewritten.
    """
    if all(isinstance(size, int) for size in target):
        return constant(model, np.array(target, dtype=np.int64), f"{node.name}_shape")
    computed = node.inputs[index]
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
        pieces.append(_dimension(model, size) or _product(model, node, size) or _element(model, node, computed, axis))
    if fixed:
        pieces.append(constant(model, np.array(fixed, dtype=np.int64), f"{node.name}_shape"))
    return _insert(node, ir.node("Concat", pieces, {"axis": 0}, name=f"{node.name}_target"))


def _dimension(model: ir.Model, symbol: str, *, scalar: bool = False) -> ir.Value | None:
    """A dimension that an input declares, read off that input: a vector of one number (or a scalar), made once."""
    known: dict[tuple[str, bool], ir.Value] = model.graph.meta.setdefault("onnxprune.graph.dimensions", {})
    found = known.get((symbol, scalar))
    if found is not None and (producer := found.producer()) is not None and producer.graph is not None:
        return found
    for value in model.graph.inputs:
        if symbol in (dims(value) or ()):
            axis = (dims(value) or ()).index(symbol)
            first = model.graph[0]
            shape = _insert(first, ir.node("Shape", [value], name=f"{value.name}_shape"))
            name = f"{value.name}_{'size' if scalar else 'dim'}_{axis}"
            known[symbol, scalar] = _insert(first, _pick(model, shape, axis if scalar else [axis], name))
            return known[symbol, scalar]
    return None


def _product(model: ir.Model, node: ir.Node, size: str) -> ir.Value | None:
    """A number times dimensions of the inputs; the number stands in the file, so that it can be rewritten."""
    parts = monomial(size)
    read = [_dimension(model, symbol) for symbol in parts[1]] if parts is not None else []
    factors = [v for v in read if v is not None]
    if parts is None or parts[0] <= 1 or not factors or len(factors) < len(read):
        return None
    value = factors[0]
    for i, factor in enumerate(factors[1:]):
        value = _insert(node, ir.node("Mul", [value, factor], name=f"{node.name}_size_{i}"))
    number = constant(model, np.array([parts[0]], dtype=np.int64), f"{node.name}_factor")
    return _insert(node, ir.node("Mul", [number, value], name=f"{node.name}_scaled"))


def _write_repeats(model: ir.Model, node: ir.Node) -> None:
    """A Tile's repeats: numbers, or dimensions of the inputs, where input and output sizes tell."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None or None in before or None in after:
        return
    ratios = [quotient(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    repeats = [str(r[0]) if not r[1] else "*".join((*([str(r[0])] if r[0] > 1 else []), *r[1])) for r in ratios if r]
    if len(repeats) == len(before):
        node.replace_input_with(1, _operand(model, node, [int(r) if r.isdigit() else r for r in repeats]))


def _write_sizes(model: ir.Model, node: ir.Node) -> None:
    """A Resize's target: numbers where it keeps a size that is known (the channels, which exporters read off the very
    tensor that is resized), the rest as it is computed."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if (
        before is None
        or after is None
        or "axes" in node.attributes
        or _own_target(node, 3)
        or len(before) != len(after)
    ):
        return
    if any(isinstance(a, int) and a == b for a, b in zip(after, before, strict=True)):
        node.replace_input_with(3, _operand(model, node, ["?" if d is None else d for d in after], 3))


def _write_shape(model: ir.Model, node: ir.Node) -> None:
    """The shape of a tensor of zeros, where a number of it is known: heads that nothing was computed for yet."""
    after = dims(node.outputs[0])
    if after and any(isinstance(d, int) and d > 1 for d in after) and 0 not in after and None not in after:
        node.replace_input_with(0, _operand(model, node, [d for d in after if d is not None], 0))


def _element(model: ir.Model, node: ir.Node, computed: ir.Value, axis: int) -> ir.Value:
    return _insert(node, _pick(model, computed, [axis], f"{node.name}_dim_{axis}"))


def _pick(model: ir.Model, vector: ir.Value, position: int | list[int], name: str) -> ir.Node:
    index = constant(model, np.array(position, dtype=np.int64), f"{name}_index")
    return ir.node("Gather", [vector, index], {"axis": 0}, name=name)


def _insert(before: ir.Node, new: ir.Node) -> ir.Value:
    """Put a node that computes int64 numbers in front of another; returns its output."""
    new.version = before.version if before.domain == "" else 13
    new.outputs[0].name = f"{new.name}_output"
    new.outputs[0].dtype = ir.DataType.INT64
    before.prepend(new)
    return new.outputs[0]


def _own_target(node: ir.Node, index: int = 1) -> bool:
    operand = node.inputs[index]
    producer = operand.producer() if operand is not None else None
    return producer is not None and producer.name == f"{node.name}_target"


def _fold_dimension(model: ir.Model, node: ir.Node) -> None:
    """Replace `Shape(x)[i]` by its number, or by the dimension of an input that it is: x itself is not read then."""
    picked = _sizes(node)
    if picked is not None and all(isinstance(d, int) for d in picked.ravel()):
        result = node.outputs[0]
        value = constant(model, picked.astype(np.int64), f"{node.name}_dim")
        if not result.is_graph_output():
            result.replace_all_uses_with(value)
    elif picked is not None and picked.size == 1 and not _of_input(node) and not node.outputs[0].is_graph_output():
        found = _dimension(model, str(picked.item()), scalar=picked.ndim == 0)
        if found is not None and picked.ndim < 2:
            node.outputs[0].replace_all_uses_with(found)


def _fold_comparison(model: ir.Model, node: ir.Node) -> None:
    """A dimension equals itself whatever it is: conditions of exported Python ifs are decided by that."""
    first, second = (_extent(v) for v in node.inputs)
    shape, result = dims(node.outputs[0]), node.outputs[0]
    if first is None or first != second or shape is None or result.is_graph_output():
        return
    sizes = [d for d in shape if isinstance(d, int)]
    if len(sizes) == len(shape):
        result.replace_all_uses_with(constant(model, np.ones(sizes, dtype=bool), f"{node.name}_holds"))


def _extent(value: ir.Value | None) -> int | str | None:
    """The one dimension that a value is, read off a shape; None where it is anything else."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Squeeze", "Unsqueeze", "Cast", "Identity"):
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    found = _sizes(producer)
    return found.item() if found is not None and found.size == 1 else None


def _of_input(node: ir.Node) -> bool:
    """Whether sizes are read off an input of the graph already."""
    while node.op_type != "Shape":
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert producer is not None
        node = producer
    return node.inputs[0] is not None and node.inputs[0].is_graph_input()


def _sizes(node: ir.Node | None) -> np.ndarray | None:
    """What a Shape holds, or what was picked of it by constant index, however often; names where they are dynamic."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Shape":
        known = dims(node.inputs[0])
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(known or ())
        return None if known is None else np.array(known[start:end], dtype=object)
    if node.op_type not in ("Gather", "Slice") or node.inputs[0] is None:
        return None
    vector = _sizes(node.inputs[0].producer())
    operands = [a for v in node.inputs[1:] if (a := _array(v)) is not None]
    if vector is None or vector.ndim != 1 or len(operands) < len(node.inputs) - 1 or not operands:
        return None
    if node.op_type == "Gather":
        return np.asarray(vector[operands[0]], dtype=object)
    if len(operands) < 2:
        return None
    begin, stop = int(operands[0].ravel()[0]), int(operands[1].ravel()[0])
    step = int(operands[3].ravel()[0]) if len(operands) > 3 else 1
    return np.asarray(vector[begin:stop:step], dtype=object)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _array(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()
