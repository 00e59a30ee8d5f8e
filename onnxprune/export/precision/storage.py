"""Weights stored in fewer bits than they compute in: standard operators only, folded by runtimes when they load."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.graph.quantised import HALVES
from onnxprune.graph.values import constant

_SMALL = 1024
"""Elements below which a tensor is left alone: nothing to gain."""
_CHANNEL = {"MatMul": -1, "Conv": 0, "ConvTranspose": 1}
"""The axis of a weight whose slices get a scale of their own (Gemm: by its transB)."""


def widen(model: ir.Model) -> int:
    """Make weights that are stored in half precision single ones, in place: quantisers look for nothing else."""
    changed = 0
    for node in [n for n in model.graph if n.op_type == "Cast"]:
        held = node.inputs[0].const_value if node.inputs[0] is not None else None
        to = node.attributes["to"].as_int()
        if held is None or held.dtype not in HALVES or to != ir.DataType.FLOAT or node.outputs[0].is_graph_output():
            continue
        whole = constant(model, held.numpy().astype(np.float32), f"{held.name}_whole")
        node.outputs[0].replace_all_uses_with(whole)
        model.graph.remove(node, safe=True)
        changed += 1
    return _swept(model, changed)


def store_half(model: ir.Model, *, by_row: bool = True) -> int:
    """Keep float32 weights in half precision, in place; returns how many tensors were changed.

    Weights are cast as a whole, which runtimes do once, when they load. A table that a Gather reads stays half and its
    rows are cast, unless `by_row` is off (for runtimes without half precision). Tensors with values beyond what half
    precision holds are left alone.
    """
    changed = 0
    for value in list(model.graph.initializers.values()):
        numbers = _weights(value)
        if numbers is None or np.abs(numbers).max() > np.finfo(np.float16).max:
            continue
        tables, others = _readers(value, by_row)
        half = constant(model, numbers.astype(np.float16), f"{value.name}_half")
        for gather in tables:
            _rows(model, gather, half)
        if others:
            whole = _single(model, half)
            for node, index in others:
                node.replace_input_with(index, whole)
        changed += 1
    return _swept(model, changed)


def store_bytes(model: ir.Model, *, tables_only: bool = False, by_row: bool = True) -> int:
    """Keep float32 weights in 8-bit integers with a scale per row (tables) or output channel; returns how many.

    Args:
        tables_only: leave what is not looked up by a Gather as it is.
        by_row: scale the rows that are looked up; off: the whole table, once, when it is loaded.
    """
    changed = 0
    for value in list(model.graph.initializers.values()):
        numbers = _weights(value)
        if numbers is None or numbers.ndim < 2:
            continue
        tables, others = _readers(value, by_row)
        axes = {_axis(node, index) for node, index in others}
        weight = bool(others) and not tables_only and len(axes) == 1 and None not in axes
        if tables:
            held, scales = _stored(model, value, numbers, 0)
            for gather in tables:
                _rows(model, gather, held, scales)
        if weight:
            (axis,) = axes
            assert axis is not None
            whole = _single(model, *_stored(model, value, numbers, axis))
            for node, index in others:
                node.replace_input_with(index, whole)
        changed += bool(tables) or weight
    return _swept(model, changed)


def untranspose(model: ir.Model) -> int:
    """Turn Gemms with a transposed weight into ones without, in place; returns how many.

    The dynamic quantiser transposes such weights itself, under their old names, and stumbles over the shapes that the
    file states for them.
    """
    changed = 0
    for node in model.graph:
        held = node.attributes.get("transB")
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if (
            node.op_type == "Gemm"
            and held is not None
            and held.as_int()
            and weight is not None
            and weight.const_value is not None
        ):
            turned = np.ascontiguousarray(weight.const_value.numpy().T)
            node.replace_input_with(1, constant(model, turned, f"{weight.name}_turned"))
            node.attributes.pop("transB")
            changed += 1
    return _swept(model, changed)


def _stored(model: ir.Model, value: ir.Value, numbers: NDArray[np.float32], axis: int) -> tuple[ir.Value, ir.Value]:
    whole, scale = rounded(numbers, axis)
    return constant(model, whole, f"{value.name}_bytes"), constant(model, scale, f"{value.name}_scales")


def rounded(numbers: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric 8-bit values and their scales along one axis (kept, to broadcast): numbers ≈ values · scales."""
    axes = tuple(i for i in range(numbers.ndim) if i != axis % numbers.ndim)
    largest = np.abs(numbers).max(axis=axes, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(numbers / scale), -127, 127).astype(np.int8), scale


def _weights(value: ir.Value) -> NDArray[np.float32] | None:
    tensor = value.const_value
    if tensor is None or value.is_graph_output() or value.dtype != ir.DataType.FLOAT or tensor.size < _SMALL:
        return None
    if value.is_graph_input() or any(node.graph is not value.graph for node, _ in value.uses()):
        return None  # an override from outside, or a subgraph's weight
    numbers: NDArray[np.float32] = tensor.numpy()
    return numbers if np.isfinite(numbers).all() else None


def _readers(value: ir.Value, by_row: bool) -> tuple[list[ir.Node], list[tuple[ir.Node, int]]]:
    """Nodes that look rows up in a table, if those are wanted apart, and all other uses."""
    tables: list[ir.Node] = []
    others: list[tuple[ir.Node, int]] = []
    for node, index in value.uses():
        axis = node.attributes.get("axis")
        rows = node.op_type == "Gather" and index == 0 and (axis is None or axis.as_int() == 0)
        if by_row and rows and not node.outputs[0].is_graph_output():
            tables.append(node)
        else:
            others.append((node, index))
    return tables, others


def _axis(node: ir.Node, index: int) -> int | None:
    if node.op_type == "Gemm" and index == 1:
        held = node.attributes.get("transB")
        return 0 if held is not None and held.as_int() else 1
    if node.op_type in ("Gather", "GatherND") and index == 0:
        return 0  # a table
    return _CHANNEL.get(node.op_type) if index == 1 else None


def _single(model: ir.Model, held: ir.Value, scales: ir.Value | None = None) -> ir.Value:
    """The weight in single precision again, computed at the start of the graph."""
    back = _node(model, "Cast", [held], f"{held.name}/Cast", to=int(ir.DataType.FLOAT))
    made = [back]
    if scales is not None:
        made.append(_node(model, "Mul", [back.outputs[0], scales], f"{held.name}/Mul"))
    model.graph.insert_before(model.graph[0], made)
    return made[-1].outputs[0]


def _rows(model: ir.Model, gather: ir.Node, held: ir.Value, scales: ir.Value | None = None) -> None:
    """Let a Gather read a table of fewer bits; what it gives is cast, and scaled by the rows' own scales."""
    result = gather.outputs[0]
    readers = list(result.uses())
    gather.replace_input_with(0, held)
    result.type = held.type
    cast = _node(model, "Cast", [result], f"{gather.name}/Cast", to=int(ir.DataType.FLOAT))
    made = [cast]
    if scales is not None:
        axis = {"axis": 0}
        scale = _node(model, "Gather", [scales, gather.inputs[1]], f"{gather.name}/scales", **axis)
        made += [scale, _node(model, "Mul", [cast.outputs[0], scale.outputs[0]], f"{gather.name}/Mul")]
    model.graph.insert_after(gather, made)
    for node, index in readers:
        node.replace_input_with(index, made[-1].outputs[0])


def _node(model: ir.Model, kind: str, inputs: list[ir.Value | None], name: str, **attributes: int) -> ir.Node:
    node = ir.node(kind, inputs, attributes, name=name)
    node.version = model.opset_imports.get("", 18)
    node.outputs[0].name = f"{name}_output"
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node


def _swept(model: ir.Model, changed: int) -> int:
    """Without the tensors that nobody reads any more."""
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        if not model.graph.initializers[name].is_graph_input():
            del model.graph.initializers[name]
    return changed
