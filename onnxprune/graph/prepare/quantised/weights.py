"""Quantised weights as numbers for everything that reads a graph.

Exporters and quantisers write them in many ways: DequantizeLinear of constants (one scale a tensor, a channel or a
block), a QuantizeLinear before it where they were trained so, or a Cast to floats, with a Sub for the zero point, and a
Mul; a Cast alone where they are stored in half precision. `fold` makes each an initializer that holds a `Quantised`;
`writing` puts the operators back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.quantised import HALVES, Form, Names, Parts, Quantised, steps_of

_BITS = 8
"""Codes of more are indices or counts, where a Cast and a Mul alone say that they are weights."""
_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def fold(model: ir.Model) -> None:
    """Make every quantised weight an initializer of its numbers, in place."""
    known = Known(model)
    for node in list(model.graph):
        result = node.outputs[0] if node.outputs else None
        read = _READ.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if read is None or result is None or result.is_graph_output():
            continue
        tensor = read(node)
        if tensor is not None:
            name, result.name = result.name or "", None
            result.replace_all_uses_with(known.value(tensor, name))
            model.graph.remove(node, safe=True)


class Known:
    """The quantised weights of a graph: what is the same weight in the file is one initializer."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        held = ((v, v.const_value) for v in model.graph.initializers.values())
        self._made = {_key(t): v for v, t in held if isinstance(t, Quantised)}

    def value(self, tensor: Quantised, name: str) -> ir.Value:
        """The initializer of some numbers, under a name if it is a new one."""
        key = _key(tensor)
        if key not in self._made:
            tensor.name = name
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
            self.model.graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]


def _key(tensor: Quantised) -> tuple[Any, ...]:
    parts = tensor.parts
    zero = None if parts.zero is None else parts.zero.tobytes()
    owners = None if parts.owners is None else parts.owners.tobytes()
    return parts.codes, tensor.dtype, tensor.perm, parts.scale.tobytes(), zero, parts.block, owners


def _dequantized(node: ir.Node) -> Quantised | None:
    """DequantizeLinear of constants, or of what QuantizeLinear makes of one."""
    codes, scale, zero = (operand(node, i) for i in range(3))
    rounded = codes.producer() if codes is not None else None
    if rounded is not None and rounded.op_type == "QuantizeLinear":
        return _rounded(node, rounded)
    if not constant(codes) or not constant(scale) or (zero is not None and not constant(zero)):
        return None
    assert codes is not None and codes.const_value is not None and scale is not None
    names = Names(codes.name or "", scale.name or "", "" if zero is None else zero.name or "", node.name or "")
    return _of(node, "DequantizeLinear", codes.const_value, names)


def _rounded(node: ir.Node, rounded: ir.Node) -> Quantised | None:
    """QuantizeLinear and DequantizeLinear of a constant, on one grid."""
    numbers, scale, zero = (operand(rounded, i) for i in range(3))
    same = [v.const_value if v is not None else None for v in (operand(node, 1), operand(node, 2))]
    own = [v.const_value if v is not None else None for v in (scale, zero)]
    if not constant(numbers) or own[0] is None or any(_differ(a, b) for a, b in zip(same, own, strict=True)):
        return None
    assert numbers is not None and numbers.const_value is not None and scale is not None
    code = attribute(rounded, "output_dtype", 0)
    kind = own[1].dtype if own[1] is not None else ir.DataType(code) if code else ir.DataType.UINT8
    # What is rounded twice may have been an initializer that several share, and is one of floats then.
    held = "" if isinstance(numbers.const_value, Quantised) else numbers.name or ""
    names = Names(held, scale.name or "", "" if zero is None else zero.name or "", node.name or "")
    empty = ir.Tensor(np.zeros(numbers.const_value.shape.numpy(), kind.numpy()), dtype=kind, name=numbers.name)
    grid = _of(node, "QuantizeLinear", empty, names)
    if grid is None:
        return None
    numbers_, parts = numbers.const_value.numpy(), grid.parts
    shift = 0 if parts.zero is None else parts.spread(parts.zero).astype(np.float64)
    codes = steps_of(numbers_.astype(np.float64) / parts.spread(parts.scale), kind, shift)
    tensor = ir.Tensor(codes.astype(kind.numpy()), dtype=kind, name=numbers.name)
    return Quantised(_with(parts, tensor), grid.form, grid.dtype, grid.name)


def _with(parts: Parts, codes: ir.TensorProtocol) -> Parts:
    return replace(parts, codes=codes)


def _differ(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    if a is None or b is None:
        return a is not b
    return a is not b and not (a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy()))


def _of(node: ir.Node, operators: str, codes: ir.TensorProtocol, names: Names) -> Quantised | None:
    """What a DequantizeLinear makes of some codes; None where scale and codes do not go together."""
    scale, zero = (None if (v := operand(node, i)) is None else v.const_value for i in (1, 2))
    assert scale is not None
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    code = attribute(node, "output_dtype", 0)
    kept = {"output_dtype": code} if code else {}
    form = Form(operators, names, axis=axis if "axis" in node.attributes else None, attributes=kept)
    return quantised(codes, scale, zero, form, axis, block, ir.DataType(code) if code else scale.dtype)


def quantised(
    codes: ir.TensorProtocol,
    scale: ir.TensorProtocol,
    zero: ir.TensorProtocol | None,
    form: Form,
    axis: int = 1,
    block: int = 0,
    dtype: ir.DataType | None = None,
) -> Quantised | None:
    """A weight of codes, scales and zero points as DequantizeLinear takes them; None where they do not go together."""
    shape = tuple(codes.shape.numpy())
    along = axis + len(shape) if axis < 0 else axis
    arrays = [_aligned(t.numpy(), shape, along, block) if t is not None else None for t in (scale, zero)]
    if arrays[0] is None or (zero is not None and arrays[1] is None):
        return None
    points = arrays[1]
    if points is not None and points.size == 1:
        points = np.broadcast_to(points, arrays[0].shape)
    ranks = (len(scale.shape), 0 if zero is None else len(zero.shape))
    parts = Parts(codes, arrays[0], points, block, along if block else 0)
    return Quantised(parts, replace(form, ranks=ranks), dtype or scale.dtype, None)


def _aligned(parameter: np.ndarray, shape: Sequence[int], axis: int, block: int) -> np.ndarray | None:
    """A scale or zero point with one axis for each of the codes'; None where it does not fit them."""
    if parameter.size == 1:
        return parameter.reshape([1] * len(shape))
    if block:
        fits = parameter.ndim == len(shape) and all(
            n == (-(-size // block) if a == axis else size)
            for a, (n, size) in enumerate(zip(parameter.shape, shape, strict=True))
        )
        return parameter if fits else None
    if parameter.ndim == 1 and axis < len(shape) and len(parameter) == shape[axis]:
        return parameter.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return None


def _scaled(node: ir.Node) -> Quantised | None:
    """Mul of a constant scale with a Cast of constant codes, less a zero point perhaps."""
    for index in (0, 1):
        scale, rest = _number(node.inputs[index]), node.inputs[1 - index]
        shifted = rest.producer() if rest is not None else None
        if scale is None or shifted is None:
            continue
        zero = None
        cast: ir.Node | None = shifted
        if shifted.op_type == "Sub":
            zero = _number(shifted.inputs[1])
            cast = shifted.inputs[0].producer() if shifted.inputs[0] is not None else None
            if zero is None:
                continue
        if cast is None or cast.op_type != "Cast":
            continue
        source = cast.inputs[0]
        if source is None or not constant(source) or source.const_value is None or rest is None:
            continue
        held = source.const_value
        if held.dtype.bitwidth > _BITS or held.dtype == ir.DataType.BOOL or attribute(cast, "to", 0) != scale.dtype:
            continue
        arrays = [None if t is None else _broadcast(t.numpy(), tuple(held.shape.numpy())) for t in (scale, zero)]
        if arrays[0] is None or (zero is not None and arrays[1] is None):
            continue
        if arrays[1] is not None:
            # As a code, if it is one: a zero point between two of them has no place on the grid.
            rounded = arrays[1].astype(held.dtype.numpy())
            if not np.array_equal(rounded.astype(np.float64), arrays[1].astype(np.float64)):
                continue
            arrays[1] = np.broadcast_to(rounded, arrays[0].shape) if rounded.size == 1 else rounded
            if arrays[1].shape != arrays[0].shape:
                continue
        ranks = (len(scale.shape), 0 if zero is None else len(zero.shape))
        own = [v.name or "" if v is not None and v.is_initializer() else "" for v in (node.inputs[index],)]
        return Quantised(
            Parts(held, arrays[0], arrays[1]),
            Form("Cast", Names(source.name or "", own[0], "", node.name or ""), ranks),
            scale.dtype,
            None,
        )
    return None


def _half(node: ir.Node) -> Quantised | None:
    """Cast of a constant in half precision, which is its own grid; vectors are folded as others are."""
    source, kind = node.inputs[0], ir.DataType(attribute(node, "to", 0))
    if source is None or not constant(source) or source.const_value is None or kind not in _WIDE:
        return None
    held = source.const_value
    if held.dtype not in HALVES or len(held.shape) < 2:
        return None
    form = Form("Cast", Names(source.name or "", node=node.name or ""), unwritten=("scale",))
    return Quantised(Parts(held, np.ones([1] * len(held.shape), kind.numpy()), None), form, kind, None)


def _broadcast(parameter: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A parameter with as many axes as the codes, along each one number or one for every index."""
    if parameter.ndim > len(shape):
        return None
    wide = parameter.reshape([1] * (len(shape) - parameter.ndim) + list(parameter.shape))
    return wide if all(n in (1, size) for n, size in zip(wide.shape, shape, strict=True)) else None


def _number(value: ir.Value | None) -> ir.TensorProtocol | None:
    """A floating-point constant, or one that a Cast makes of a constant."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast" and constant(producer.inputs[0]):
        held, kind = producer.inputs[0], ir.DataType(attribute(producer, "to", 0))
        assert held is not None and held.const_value is not None
        return ir.Tensor(held.const_value.numpy().astype(kind.numpy()), dtype=kind, name=held.name)
    if value is None or not constant(value) or value.const_value is None:
        return None
    return value.const_value if value.const_value.dtype.is_floating_point() else None


def _turned(node: ir.Node) -> Quantised | None:
    """Transpose of a quantised weight."""
    source = node.inputs[0]
    if source is None or not isinstance(source.const_value, Quantised):
        return None
    rank = len(source.const_value.shape)
    return source.const_value.turned(attribute(node, "perm", list(range(rank))[::-1]), None)


_READ: dict[str, Callable[[ir.Node], Quantised | None]] = {
    "DequantizeLinear": _dequantized,
    "Cast": _half,
    "Mul": _scaled,
    "Transpose": _turned,
}


def constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer."""
    return value is not None and value.const_value is not None and value.producer() is None
