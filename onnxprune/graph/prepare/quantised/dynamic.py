"""Products of integers whose operand is quantised at run time, as products of numbers.

DynamicQuantizeLinear, MatMulInteger or ConvInteger, Cast and two Mul are a MatMul or Conv of which the interpreter
rounds what is read. What ONNX Runtime fuses them to is read by `fused`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.prepare.quantised.weights import Known, constant, quantised
from onnxprune.graph.quantised import Form, Names
from onnxprune.graph.quantised_operators import Note, noted
from onnxprune.graph.values import succeed

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@dataclass(frozen=True)
class _Found:
    """A product, the activation that it rounds, its weight's scale, and the node whose result is in numbers."""

    source: ir.Value
    scale: ir.Value
    last: ir.Node
    names: dict[str, str]


def fold(model: ir.Model) -> None:
    """Write such products as those of numbers, in place."""
    known = Known(model)
    for node in list(model.graph):
        if node.domain in ("", "ai.onnx") and node.op_type in _PRODUCTS:
            found = _scaled(node)
            if found is not None:
                _replace(known, node, found)


def _scaled(node: ir.Node) -> _Found | None:
    """What surrounds a product of integers; None where it is anything else."""
    codes, weight, zero, weight_zero = (operand(node, i) for i in range(4))
    rounding = codes.producer() if codes is not None else None
    if rounding is None or rounding.op_type != "DynamicQuantizeLinear" or zero is not rounding.outputs[2]:
        return None
    if not constant(weight) or not (weight_zero is None or constant(weight_zero)) or rounding.inputs[0] is None:
        return None
    cast = _reader(node.outputs[0], "Cast")
    first = _reader(cast.outputs[0], "Mul") if cast is not None else None
    if cast is None or first is None or attribute(cast, "to", 0) != ir.DataType.FLOAT:
        return None
    names = {"rounding": rounding.name or "", "cast": cast.name or "", "last": first.name or ""}
    other = _other(first, cast.outputs[0])
    if other is None:
        return None
    if other is rounding.outputs[1]:  # (product · scale of the activation) · scale of the weight
        second = _reader(first.outputs[0], "Mul")
        scale = _other(second, first.outputs[0]) if second is not None else None
        if second is None or scale is None or not constant(scale):
            return None
        return _Found(rounding.inputs[0], scale, second, names | {"last": second.name or "", "apart": first.name or ""})
    scales = other.producer()
    if scales is None or scales.op_type != "Mul":
        return None
    scale = _other(scales, rounding.outputs[1])
    if scale is None or not constant(scale):
        return None
    return _Found(rounding.inputs[0], scale, first, names | {"scales": scales.name or ""})


def _reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only reader of a value, if it is of this type."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][0].op_type != op_type:
        return None
    return uses[0][0]


def _other(node: ir.Node, operand: ir.Value) -> ir.Value | None:
    """The operand of a Mul beside this one."""
    rest = [v for v in node.inputs if v is not operand]
    return rest[0] if len(rest) == 1 and len(node.inputs) == 2 else None


def _replace(known: Known, node: ir.Node, found: _Found) -> None:
    operator = _PRODUCTS[node.op_type]
    codes, zero = operand(node, 1), operand(node, 3)
    assert codes is not None and codes.const_value is not None and found.scale.const_value is not None
    rank = len(codes.const_value.shape)
    axis = rank - 1 if operator == "MatMul" else 0
    scale = found.scale.const_value
    outputs = codes.const_value.shape.numpy()[axis]
    # One for every output lies where the result has its outputs.
    places = scale.shape.numpy()
    if scale.size > 1:
        place = len(places) - 1 if operator == "MatMul" else len(places) - (rank - 1)
        if place < 0 or places[place] != outputs or scale.size != outputs:
            return
    flat = ir.Tensor(scale.numpy().reshape(-1) if scale.size > 1 else scale.numpy(), dtype=scale.dtype, name=scale.name)
    names = Names(codes.name or "", found.scale.name or "", (zero.name or "") if zero is not None else "")
    form = Form("DequantizeLinear", names, axis=axis if scale.size > 1 else None)
    tensor = quantised(codes.const_value, flat, None if zero is None else zero.const_value, form, axis)
    if tensor is None:
        return
    weight = known.value(tensor, f"{codes.name}_numbers")
    made = ir.Node("", operator, [found.source, weight], list(node.attributes.values()), name=node.name)
    note = Note(node.op_type, "", node.name or "", found.names, {"shape": [-1 if n > 1 else 1 for n in places]})
    noted(made, note)
    succeed(found.last, [made])
