"""QLinearConv, QLinearMatMul and their like as the operators they stand for, between DequantizeLinear and
QuantizeLinear.

They read integers with scales and zero points, and give integers on a scale of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.prepare.quantised.weights import Known, constant, quantised
from onnxprune.graph.quantised import Form, Names
from onnxprune.graph.quantised_operators import Note, noted
from onnxprune.graph.values import succeed


@dataclass(frozen=True)
class Kind:
    """Where an operator has its operands.

    Attributes:
        operator: what it does to numbers.
        operands: (codes, scale, zero point) of each.
        result: (scale, zero point) of what it gives.
        bias: of 32 bits, on the product of both operands' scales.
        plain: operands that are no quantised numbers, in front of the others.
        axis: of a weight's scales, one an output.
        own: attributes of this operator alone.
    """

    operator: str
    operands: tuple[tuple[int, int, int], ...]
    result: tuple[int, int]
    bias: int | None = None
    plain: tuple[int, ...] = ()
    axis: int = 0
    own: tuple[str, ...] = ()


_TWO = ((0, 1, 2), (3, 4, 5))
_ONE = ((0, 1, 2),)
KINDS: Mapping[str, Kind] = {
    "QLinearConv": Kind("Conv", _TWO, (6, 7), bias=8),
    "QLinearMatMul": Kind("MatMul", _TWO, (6, 7), axis=-1),
    "QGemm": Kind("Gemm", _TWO, (7, 8), bias=6),
    "QLinearAdd": Kind("Add", _TWO, (6, 7), axis=-1),
    "QLinearMul": Kind("Mul", _TWO, (6, 7), axis=-1),
    "QLinearSigmoid": Kind("Sigmoid", _ONE, (3, 4)),
    "QLinearLeakyRelu": Kind("LeakyRelu", _ONE, (3, 4)),
    "QLinearSoftmax": Kind("Softmax", _ONE, (3, 4), own=("opset",)),
    "QLinearAveragePool": Kind("AveragePool", _ONE, (3, 4), own=("channels_last",)),
    "QLinearGlobalAveragePool": Kind("GlobalAveragePool", _ONE, (3, 4), own=("channels_last",)),
    "QLinearWhere": Kind("Where", ((1, 2, 3), (4, 5, 6)), (7, 8), plain=(0,)),
}


def kind_of(note: Note | None, inputs: int = 0) -> Kind | None:
    """Where the operator of a note has its operands, of which there are `inputs`."""
    if note is not None and note.operator == "QLinearConcat":
        return Kind("Concat", tuple((i, i + 1, i + 2) for i in range(2, 2 + 3 * inputs, 3)), (0, 1))
    return KINDS.get(note.operator) if note is not None else None


def fold(model: ir.Model) -> None:
    """Write every such operator as the one on numbers, in place."""
    known = Known(model)
    made: dict[tuple[ir.Value | None, ...], ir.Value] = {}
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            continue
        note = Note(node.op_type, node.domain, node.name or "")
        kind = kind_of(note, (len(node.inputs) - 2) // 3)
        if kind is None or attribute(node, "channels_last", 0) or operand(node, kind.result[0]) is None:
            continue
        inputs = [_numbers(known, made, node, kind, *(operand(node, i) for i in place)) for place in kind.operands]
        if any(v is None for v in inputs):
            continue
        bias = operand(node, kind.bias) if kind.bias is not None else None
        if bias is not None and (held := _bias(known, node, kind, bias)) is not None:
            inputs.append(held)
        elif bias is not None:
            continue
        _replace(node, kind, note, [*(operand(node, i) for i in kind.plain), *inputs])


def _numbers(
    known: Known,
    made: dict[tuple[ir.Value | None, ...], ir.Value],
    node: ir.Node,
    kind: Kind,
    codes: ir.Value | None,
    scale: ir.Value | None,
    zero: ir.Value | None,
) -> ir.Value | None:
    """An operand as numbers: a weight's, or what DequantizeLinear makes of an activation."""
    if codes is None or scale is None:
        return None
    if constant(codes) and constant(scale) and (zero is None or constant(zero)):
        assert codes.const_value is not None and scale.const_value is not None
        axis = kind.axis if kind.operator != "Gemm" else 0 if attribute(node, "transB", 0) else 1
        axis += len(codes.const_value.shape) if axis < 0 else 0
        names = Names(codes.name or "", scale.name or "", (zero.name or "") if zero is not None else "")
        form = Form("DequantizeLinear", names, axis=axis if scale.const_value.size > 1 else None)
        tensor = quantised(codes.const_value, scale.const_value, None if zero is None else zero.const_value, form, axis)
        return None if tensor is None else known.value(tensor, f"{codes.name}_numbers")
    if scale.const_value is not None and scale.const_value.size > 1:
        return None
    if (codes, scale, zero) not in made:
        given = [codes, scale] if zero is None else [codes, scale, zero]
        # A file that was read once and written may have such names.
        graph, count = known.model.graph, len(made)
        taken = {n.name for n in graph} | {v.name for n in graph for v in n.outputs}
        while {f"{codes.name}_dequantize_{count}", f"{codes.name}_numbers_{count}"} & taken:
            count += 1
        new = ir.node("DequantizeLinear", given, name=f"{codes.name}_dequantize_{count}")
        new.outputs[0].name = f"{codes.name}_numbers_{count}"
        producer = codes.producer()
        if producer is None:
            known.model.graph.insert_before(known.model.graph[0], new)
        else:
            producer.append(new)
        made[codes, scale, zero] = new.outputs[0]
    return made[codes, scale, zero]


def _bias(known: Known, node: ir.Node, kind: Kind, bias: ir.Value) -> ir.Value | None:
    """A bias of 32 bits as numbers; None where its scale is not known."""
    scales = [operand(node, place[1]) for place in kind.operands]
    arrays = [v.const_value.numpy() for v in scales if v is not None and v.const_value is not None]
    if len(arrays) < len(scales) or not constant(bias) or bias.const_value is None or len(bias.const_value.shape) != 1:
        return None
    factor = np.float32(attribute(node, "alpha", 1.0)) if kind.operator == "Gemm" else np.float32(1)
    scale = (arrays[0].reshape(-1) * arrays[1].reshape(-1) * factor).astype(arrays[0].dtype)
    axis, names = 0 if scale.size > 1 else None, Names(bias.name or "", f"{bias.name}_scale")
    form = Form("DequantizeLinear", names, axis=axis, unwritten=("scale",))
    held = ir.Tensor(scale if scale.size > 1 else scale.reshape(()), name=f"{bias.name}_scale")
    tensor = quantised(bias.const_value, held, None, form, 0)
    return None if tensor is None else known.value(tensor, f"{bias.name}_numbers")


def _replace(node: ir.Node, kind: Kind, note: Note, inputs: Sequence[ir.Value | None]) -> None:
    """Put the operator on numbers, and QuantizeLinear behind it, in a node's place."""
    result = node.outputs[0]
    kept = [a for name, a in node.attributes.items() if name not in kind.own]
    own = {name: attribute(node, name) for name in kind.own if name in node.attributes}
    new = ir.Node("", kind.operator, inputs, kept, name=node.name or f"{result.name}_{kind.operator}")
    noted(new, Note(note.operator, note.domain, note.name, attributes=own))
    new.outputs[0].name = f"{result.name}_unrounded"
    scale, zero = (operand(node, i) for i in kind.result)
    given = [new.outputs[0], scale] if zero is None else [new.outputs[0], scale, zero]
    rounded = ir.node("QuantizeLinear", given, name=f"{new.name}_quantize")
    succeed(node, [new, rounded])
