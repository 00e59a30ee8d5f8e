"""Operators that multiply codes with a weight's codes and give numbers, as the ones on numbers that they stand for.

QAttention, MatMulIntegerToFloat, DynamicQuantizeMatMul and DynamicQuantizeLSTM of com.microsoft: what they read was
rounded beforehand, by its own range or on a scale that is known, or they round it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import operand
from onnxprune.graph.prepare.quantised.weights import Known, constant
from onnxprune.graph.quantised import Form, Names, Parts, Quantised
from onnxprune.graph.quantised_operators import Note, noted
from onnxprune.graph.values import succeed

Place = tuple[int, int, int]
"""Where codes, their scale and their zero point stand among the operands."""


@dataclass(frozen=True)
class Kind:
    """Where an operator has its operands.

    Attributes:
        operator, domain: what it does to numbers.
        operands: those of the operator on numbers, in its order: a place of a quantised weight, or of anything else.
        source: of what is rounded beforehand; None where the operator rounds its first operand itself.
        bias: one that is added afterwards.
        perm: how a weight's axes are turned into those of the operator on numbers.
        axes: of the codes, those that scales may follow.
    """

    operator: str
    domain: str
    operands: tuple[int | Place, ...]
    source: Place | None = None
    bias: int | None = None
    perm: tuple[int, ...] = (0, 1)
    axes: tuple[int, ...] = (1,)


KINDS: Mapping[str, Kind] = {
    "QAttention": Kind("Attention", "com.microsoft", ((1, 4, 7), 2, 5, 8), source=(0, 3, 6)),
    "MatMulIntegerToFloat": Kind("MatMul", "", ((1, 3, 5),), source=(0, 2, 4), bias=6),
    "DynamicQuantizeMatMul": Kind("MatMul", "", ((1, 2, 3),), bias=4),
    "DynamicQuantizeLSTM": Kind(
        "LSTM", "", ((1, 8, 9), (2, 10, 11), 3, 4, 5, 6, 7), perm=(0, 2, 1), axes=(0, 2)
    ),
}  # fmt: skip


def fold(model: ir.Model) -> None:
    """Write every such operator whose weights are constants as the one on numbers, in place."""
    known = Known(model)
    for node in list(model.graph):
        kind = KINDS.get(node.op_type) if node.domain == "com.microsoft" else None
        if kind is not None:
            _replace(known, node, kind)


def _replace(known: Known, node: ir.Node, kind: Kind) -> None:
    places = [place for place in kind.operands if isinstance(place, tuple)]
    weights = {place: _weight(node, place, kind) for place in places}
    if any(tensor is None for tensor in weights.values()):
        return
    names: dict[str, str] = {}
    source = node.inputs[0] if kind.source is None else _source(known, node, kind.source, names)
    if source is None:
        return
    inputs: list[ir.Value | None] = [source]
    for place in kind.operands:
        if isinstance(place, tuple):
            tensor, codes = weights[place], operand(node, place[0])
            assert tensor is not None and codes is not None
            inputs.append(known.value(tensor, f"{codes.name}_numbers"))
        else:
            inputs.append(operand(node, place))
    while inputs[-1] is None:
        inputs.pop()
    result, bias = node.outputs[0], operand(node, kind.bias) if kind.bias is not None else None
    kept = list(node.attributes.values())
    made = ir.Node(kind.domain, kind.operator, inputs, kept, name=node.name, num_outputs=len(node.outputs))
    for value, old in zip(made.outputs, node.outputs, strict=True):
        value.name = old.name if not old.name else f"{old.name}_made"
    ranks = {place[0]: _ranks(node, place) for place in places}
    if bias is None:
        noted(made, Note(node.op_type, node.domain, node.name or "", names, {"ranks": ranks}))
        succeed(node, [made])
        return
    noted(made, Note(node.op_type, node.domain, node.name or "", names | {"bias": bias.name or ""}, {"ranks": ranks}))
    made.outputs[0].name = f"{result.name}_unshifted"
    succeed(node, [made, ir.node("Add", [made.outputs[0], bias], name=f"{node.name}_bias")])


def _source(known: Known, node: ir.Node, place: Place, names: dict[str, str]) -> ir.Value | None:
    """What an operator reads, as numbers: before it was rounded by its own range, or dequantised."""
    codes, scale, zero = (operand(node, i) for i in place)
    if codes is None or scale is None:
        return None
    rounding = codes.producer()
    if rounding is not None and rounding.op_type == "DynamicQuantizeLinear":
        if scale is not rounding.outputs[1] or zero is not rounding.outputs[2]:
            return None
        names["rounding"] = rounding.name or ""
        return rounding.inputs[0]
    if not constant(scale) or scale.const_value is None or scale.const_value.size > 1:
        return None
    given = [codes, scale] if zero is None else [codes, scale, zero]
    title = f"{node.name or node.outputs[0].name}_source"
    new = ir.node("DequantizeLinear", given, name=title)
    new.outputs[0].name = f"{title}_numbers"
    node.prepend(new)
    return new.outputs[0]


def _weight(node: ir.Node, place: Place, kind: Kind) -> Quantised | None:
    """A weight as numbers; None where codes, scales and zero points are no constants, or do not go together."""
    codes, scale, zero = (operand(node, i) for i in place)
    if not constant(codes) or not constant(scale) or not (zero is None or constant(zero)):
        return None
    assert codes is not None and codes.const_value is not None and scale is not None and scale.const_value is not None
    shape = tuple(codes.const_value.shape.numpy())
    if len(shape) != len(kind.perm):
        return None
    scales = _spread(scale.const_value.numpy(), shape, kind.axes)
    points = None if zero is None or zero.const_value is None else _spread(zero.const_value.numpy(), shape, kind.axes)
    if scales is None or (zero is not None and points is None):
        return None
    points = None if points is None else np.broadcast_to(points, scales.shape) if points.size == 1 else points
    if points is not None and points.shape != scales.shape:
        return None
    names = Names(codes.name or "", scale.name or "", (zero.name or "") if zero is not None else "")
    several = [axis for axis, size in enumerate(scales.shape) if size > 1]
    # Where it has to be written apart from its operator: what follows two axes has no DequantizeLinear.
    rank = len(shape)
    form = Form("Cast", names, (rank, rank))
    if len(several) < 2:
        form = Form("DequantizeLinear", names, (len(several),) * 2, axis=several[0] if several else None)
    return Quantised(Parts(codes.const_value, scales, points), form, scale.const_value.dtype, None, kind.perm)


def _ranks(node: ir.Node, place: Place) -> tuple[int, int]:
    """Axes of a scale and a zero point in the file."""
    held = [v.const_value if v is not None else None for v in (operand(node, i) for i in place[1:])]
    first, second = (0 if tensor is None else len(tensor.shape) for tensor in held)
    return first, second


def _spread(parameter: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray | None:
    """A scale or zero point with an axis for each of the codes'; it follows the first of `axes`, or all of them."""
    if parameter.size == 1:
        return parameter.reshape([1] * len(shape))
    for count in range(1, len(axes) + 1):
        if parameter.shape == tuple(shape[a] for a in axes[:count]):
            return parameter.reshape([shape[a] if a in axes[:count] else 1 for a in range(len(shape))])
    return None


def shaped(parameter: np.ndarray, rank: int, axes: tuple[int, ...]) -> np.ndarray:
    """The reverse of reading: a scale or zero point as its operator takes it."""
    if parameter.size == 1:
        return parameter.reshape([1] * rank)
    if rank == 0 and (parameter == parameter.flat[0]).all():
        return np.asarray(parameter.flat[0])
    return parameter.reshape([parameter.shape[a] for a in axes[: max(rank, 1)]])
