"""Quantised tensors: to and from integers, and products of integers.

A zero that gates a quantised operand is not its zero point, so that products of integers read no axis that can be cut.
Those that `prepare.quantised` knows stand in a loaded graph as products of numbers; what is left here is pinned.
"""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.ops.base import Constraints, Sizes, attribute, axis_of, opaque, register
from onnxprune.graph.ops.conv import conv, conv_macs
from onnxprune.graph.ops.elementwise import torch_dtype
from onnxprune.graph.quantised import GIVE_FLOATS


def _spread(node: Any, x: Any, parameter: Any) -> Any:
    """A scale or zero point, one a tensor, a channel or a block, as broadcasts against x."""
    if parameter is None or parameter.numel() == 1:
        return None if parameter is None else parameter.reshape(())
    axis, block = axis_of(node, x.dim(), 1), attribute(node, "block_size", 0)
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.dim())])


def _differentiated(torch: Any, x: Any) -> bool:
    """Whether a gradient may be taken of what is made of x: rounding then passes it on as it is (straight through)."""
    inside = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return bool(torch.is_grad_enabled() and (x.requires_grad or inside))


def _straight_through(torch: Any, x: Any, scale: Any, shift: Any, kind: Any) -> Any:
    """What `_quantize` gives, as floating-point numbers through which a gradient flows where they are not clipped."""
    info = torch.iinfo(kind)
    y = x / scale
    y = y + (torch.round(y) - y).detach()
    return torch.clamp(y if shift is None else y + shift.to(y.dtype), info.min, info.max)


def _saturated(torch: Any, x: Any, kind: Any) -> Any:
    """Rounded half to even and clipped to an integer type."""
    if kind.is_floating_point:
        raise NotImplementedError(f"quantisation to {kind}")
    info = torch.iinfo(kind)
    return torch.clamp(torch.round(x), info.min, info.max).to(torch.int64).to(kind)


def _quantize(torch: Any, node: Any, x: Any, scale: Any, zero: Any = None) -> Any:
    code = attribute(node, "output_dtype", 0)
    kind = zero.dtype if zero is not None else torch_dtype(torch, code) if code else torch.uint8
    shift = _spread(node, x, zero)
    if _differentiated(torch, x) and not kind.is_floating_point:
        return _straight_through(torch, x, _spread(node, x, scale), shift, kind)
    y = torch.round(x / _spread(node, x, scale))
    return _saturated(torch, y if shift is None else y + shift.to(y.dtype), kind)


def _dequantize(torch: Any, node: Any, x: Any, scale: Any, zero: Any = None) -> Any:
    code = attribute(node, "output_dtype", 0)
    whole = x if x.is_floating_point() else x.to(torch.int64)
    whole = whole if zero is None else whole - _spread(node, x, zero).to(whole.dtype)
    y = whole.to(torch.float32) * _spread(node, x, scale)
    return y.to(torch_dtype(torch, code) if code else scale.dtype)


def _scaled_axes(node: Any, c: Constraints) -> None:
    x, (y,) = node.inputs[0], node.outputs
    for before, after in zip(c.dims(x), c.dims(y), strict=True):
        c.same(before, after)
    rank = len(c.sizes(x))
    axis = axis_of(node, rank, 1)
    for parameter in node.inputs[1:]:
        if parameter is None or math.prod(c.sizes(parameter)) == 1:
            continue
        if len(c.sizes(parameter)) == 1:
            c.same(c.dims(parameter)[0], c.dims(x)[axis])
            continue
        for other in range(rank):
            if other != axis:
                c.same(c.dims(parameter)[other], c.dims(x)[other])
        c.pin(x, [axis], "quantised in blocks")
        c.pin(parameter, [axis], "quantised in blocks")


for _domain in ("", "com.microsoft"):
    register({"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}, axes=_scaled_axes, domain=_domain)


def _dynamic(torch: Any, node: Any, x: Any) -> Any:
    low, high = torch.clamp(x.amin(), max=0), torch.clamp(x.amax(), min=0)
    scale = torch.where(high > low, (high - low) / 255, torch.ones_like(low))
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return _saturated(torch, torch.round(x / scale) + zero, torch.uint8), scale, zero.to(torch.uint8)


register({"DynamicQuantizeLinear": _dynamic}, axes=opaque)


def rounded_dynamically(x: Any, torch: Any = None) -> Any:
    """What DynamicQuantizeLinear leaves of an array, numpy's or torch's; gradients pass straight through.

    The range holds 0, so that units which are gated count for it as those that are gone.
    """
    low, high = x.min(), x.max()
    low, high = low * (low < 0), high * (high > 0)
    scale = (high - low) / 255
    scale = scale + (scale == 0)
    zero = (-low / scale).round().clip(0, 255)
    y = (((x / scale).round() + zero).clip(0, 255) - zero) * scale
    if torch is None:
        return y.astype(x.dtype)
    return x + (y - x).detach() if _differentiated(torch, x) else y


def _on_integers(node: Any, c: Constraints) -> None:
    """Products that were not recognised as those of numbers (`prepare.quantised`)."""
    for value in (*node.inputs, *node.outputs):
        c.pin(value, None, f"{node.op_type} {node.name}: {GIVE_FLOATS}")


def _centred(torch: Any, x: Any, zero: Any, place: int) -> Any:
    """Integers less their zero point, as float64, in which products and sums of them are exact."""
    x = x.double()
    if zero is None:
        return x
    return x - (zero.reshape(()) if zero.numel() == 1 else zero.unsqueeze(place) if zero.dim() == 1 else zero).double()


def _matmul_integer(torch: Any, node: Any, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    # A zero point a row of a, or a column of b.
    return torch.matmul(_centred(torch, a, a_zero, -1), _centred(torch, b, b_zero, 0)).to(torch.int32)


def _matmul_macs(node: Any, s: Sizes) -> int:
    return math.prod(s.shape(node.outputs[0])) * s.shape(node.inputs[0])[-1]


def _qlinear_matmul(
    torch: Any,
    node: Any,
    a: Any,
    a_scale: Any,
    a_zero: Any,
    b: Any,
    b_scale: Any,
    b_zero: Any,
    y_scale: Any,
    y_zero: Any,
) -> Any:
    total = torch.matmul(_centred(torch, a, a_zero, -1), _centred(torch, b, b_zero, 0))
    rows = a_scale.unsqueeze(-1) if a_scale.dim() == 1 and a_scale.numel() > 1 else a_scale
    return _saturated(torch, torch.round(total * (rows * b_scale / y_scale).double()) + y_zero.double(), y_zero.dtype)


register({"MatMulInteger": _matmul_integer, "QLinearMatMul": _qlinear_matmul}, axes=_on_integers, macs=_matmul_macs)


def _conv_integer(torch: Any, node: Any, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None) -> Any:
    return torch.round(conv(torch, node, _centred(torch, x, x_zero, 0), _filters(torch, w, w_zero))).to(torch.int32)


def _filters(torch: Any, w: Any, zero: Any) -> Any:
    per_filter = zero is not None and zero.numel() > 1
    return _centred(torch, w, zero.reshape(-1, *[1] * (w.dim() - 1)) if per_filter else zero, 0)


def _qlinear_conv(
    torch: Any, node: Any, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, y_scale: Any,
    y_zero: Any, b: Any = None,
) -> Any:  # fmt: skip
    total = conv(
        torch, node, _centred(torch, x, x_zero, 0), _filters(torch, w, w_zero), None if b is None else b.double()
    )
    factor = (x_scale * w_scale / y_scale).double()
    factor = factor.reshape(-1, *[1] * (x.dim() - 2)) if factor.numel() > 1 else factor
    return _saturated(torch, torch.round(total * factor) + y_zero.double(), y_zero.dtype)


def _qlinear_conv_macs(node: Any, s: Sizes) -> int:
    return math.prod(s.shape(node.outputs[0])) * math.prod(s.shape(node.inputs[3])[1:])


register({"ConvInteger": _conv_integer}, axes=_on_integers, macs=conv_macs)
register({"QLinearConv": _qlinear_conv}, axes=_on_integers, macs=_qlinear_conv_macs)
