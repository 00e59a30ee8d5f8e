"""Cutting units: weights are indexed along every axis that shows them, shape operands and attributes follow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import DYNAMIC, Mask, atoms_of, flat_mask, flat_order, kept_ratio
from onnxprune.graph.ops.layout import factor_of
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.quantised import taken
from onnxprune.graph.values import constant, dims


class Cut:
    """Dimensions after the cut (`ops.Sizes`); dynamic ones keep their stand-in size."""

    def __init__(self, structure: Structure, masks: Mapping[int, Mask]) -> None:
        self.structure = structure
        self.masks = masks
        self._shapes: dict[str, tuple[int, ...]] = {}

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        name = value.name or ""
        if name not in self._shapes:
            self._shapes[name] = tuple(
                kept_ratio(layout, self.masks, self.structure.sizes)[0] for layout in self.structure.layouts[name]
            )
        return self._shapes[name]

    def changed(self, value: ir.Value, axis: int) -> bool:
        layout = self.structure.layouts.get(value.name or "", ())
        return bool(layout) and bool(atoms_of(layout[axis]) & self.masks.keys())

    def kept(self, value: ir.Value, axis: int) -> np.ndarray:
        return flat_mask(self.structure.layouts[value.name or ""][axis], self.masks, self.structure.sizes)

    def ratio(self, value: ir.Value, axis: int) -> tuple[int, int]:
        """(kept, total) of a dimension, dynamic ones too."""
        return kept_ratio(self.structure.layouts[value.name or ""][axis], self.masks, self.structure.sizes)

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        return None if value is None or value.const_value is None else value.const_value.numpy()


def units(model: ir.Model, structure: Structure, plan: Plan) -> None:
    """Cut every unit the plan leaves out, and write the others in the plan's order."""
    sizes = Cut(structure, plan.masks(structure))
    orders = plan.orders(structure)
    changes = [(node, _change(node, sizes)) for node in model.graph]
    for value in model.graph.initializers.values():
        layouts = structure.layouts.get(value.name or "", ())
        axes = [a for a, layout in enumerate(layouts) if atoms_of(layout) & (sizes.masks.keys() | orders.keys())]
        if axes and value.const_value is not None:
            takes = [(flat_order(layouts[a], sizes.masks, orders, structure.sizes), a) for a in axes]
            value.const_value = taken(value.const_value, takes, value.name)
            value.shape = ir.Shape(value.const_value.shape.numpy())
    for node, change in changes:
        carry_out(model, node, change)
    for node in model.graph:
        for value in node.outputs:
            _reshape_info(value, sizes)


def carry_out(model: ir.Model, node: ir.Node, change: ops.Change) -> None:
    """Give a node its new shape operands and attributes."""
    for index, elements in change.elements.items():
        _set_elements(model, node, index, elements)
    for index, array in change.inputs.items():
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(index, constant(model, array, f"{node.name}_operand"))
    for name, attribute in change.attributes.items():
        if attribute is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, attribute)


def _change(node: ir.Node, sizes: Cut) -> ops.Change:
    operator = ops.lookup(node)
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if operator is None or operator.resize is None:
        return ops.Change()
    if not any(sizes.changed(v, a) for v in values for a in range(len(sizes.structure.layouts.get(v.name or "", ())))):
        return ops.Change()
    return operator.resize(node, sizes)


def _set_elements(model: ir.Model, node: ir.Node, index: int, elements: Mapping[int, int]) -> None:
    """Replace single numbers of a shape operand, in a copy: a constant, or the constant pieces of a Concat."""
    operand = node.inputs[index]
    if not elements or operand is None:
        return
    if operand.const_value is not None:
        array = np.array(operand.const_value.numpy())
        for position, number in elements.items():
            array.reshape(-1)[position] = number
        node.replace_input_with(index, constant(model, array, f"{operand.name}_cut"))
        return
    concat = operand.producer()
    assert concat is not None and concat.op_type == "Concat"
    pieces, start = [], 0
    for old in concat.inputs:
        assert old is not None
        piece = old
        length = math.prod(d for d in dims(piece) or (1,) if isinstance(d, int))
        inside = {p - start: n for p, n in elements.items() if start <= p < start + length}
        factor = factor_of(piece) if inside and piece.const_value is None else None
        if factor is not None:
            piece = _scaled(model, node, piece, next(iter(inside.values())))
        elif inside and piece.const_value is not None:
            array = np.array(piece.const_value.numpy())
            for position, number in inside.items():
                array.reshape(-1)[position] = number
            piece = constant(model, array, f"{piece.name}_cut")
        pieces.append(piece)
        start += length
    copy = ir.node("Concat", pieces, {"axis": 0}, name=f"{concat.name}_{node.name}_cut", version=concat.version)
    copy.outputs[0].name, copy.outputs[0].dtype, copy.outputs[0].shape = (
        f"{copy.name}_output",
        ir.DataType.INT64,
        operand.shape,
    )
    node.prepend(copy)
    node.replace_input_with(index, copy.outputs[0])


def _scaled(model: ir.Model, node: ir.Node, piece: ir.Value, number: int) -> ir.Value:
    """A size that is a constant times a dimension, with another constant."""
    old = piece.producer()
    assert old is not None
    name = f"{old.name}_{node.name}_cut"
    made = ir.node(
        "Mul",
        [constant(model, np.array([number], dtype=np.int64), f"{name}_factor"), old.inputs[1]],
        name=name,
        version=old.version,
    )
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = f"{name}_output", piece.type, piece.shape
    node.prepend(made)
    return made.outputs[0]


def _reshape_info(value: ir.Value, sizes: Cut) -> None:
    """Write a value's new sizes into its description: stale shapes cost in-session fusions."""
    known = dims(value)
    if known is None or value.name not in sizes.structure.layouts or value.is_graph_output():
        return
    after = []
    for axis, dim in enumerate(known):
        if not sizes.changed(value, axis):
            after.append(dim)
            continue
        size = sizes.shape(value)[axis]
        after.append(size if size < DYNAMIC else None)
    value.shape = ir.Shape(after)
