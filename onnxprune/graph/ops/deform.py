"""Deformable convolution: every weight of a kernel reads where an offset says, between pixels if need be."""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.ops.base import Constraints, Sizes, attribute, operand, register


def _sampled(torch: Any, x: Any, down: Any, across: Any) -> Any:
    """Pictures [b, c, h, w] read at places [b, p] between their pixels, nothing outside: [b, c, p]."""
    height, width = x.shape[2:]
    flat, found = x.flatten(2), 0
    for row, near in _neighbours(torch, down):
        for column, nigh in _neighbours(torch, across):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            read = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1))
            found = found + read * (near * nigh * inside)[:, None]
    return found


def _neighbours(torch: Any, at: Any) -> list[tuple[Any, Any]]:
    """The whole numbers on both sides, each with how much of it a place between them is."""
    before = torch.floor(at)
    return [(before, 1 - (at - before)), (before + 1, at - before)]


def _deform(torch: Any, node: Any, x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None) -> Any:
    """DeformConv of opset 19 to 22, over pictures: offsets [n, fields·kernel·2, h', w'], rows before columns."""
    kernel, (rows, columns) = tuple(w.shape[2:]), tuple(offset.shape[2:])
    fields, count = attribute(node, "offset_group", 1), math.prod(kernel)
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    pads, like = attribute(node, "pads", [0, 0, 0, 0]), {"device": x.device, "dtype": x.dtype}
    moved = offset.reshape(-1, fields, count, 2, rows, columns)
    at = []
    for axis, size in enumerate((rows, columns)):
        start = torch.arange(size, **like) * strides[axis] - pads[axis]
        taps = torch.arange(kernel[axis], **like) * dilations[axis]
        start = start[:, None] if axis == 0 else start
        taps = (taps[:, None] if axis == 0 else taps).expand(kernel).reshape(count, 1, 1)
        at.append((moved[:, :, :, axis] + taps + start).reshape(-1, count * rows * columns))
    batch, channels = moved.shape[0], x.shape[1]
    patches = _sampled(torch, x.reshape(batch * fields, channels // fields, *x.shape[2:]), *at)
    patches = patches.reshape(batch, fields, channels // fields, count, rows * columns)
    if mask is not None:
        patches = patches * mask.reshape(batch, fields, 1, count, rows * columns)
    group = attribute(node, "group", 1)
    y = w.reshape(group, w.shape[0] // group, -1) @ patches.reshape(batch, group, -1, rows * columns)
    y = y.reshape(batch, w.shape[0], rows, columns)
    return y if b is None else y + b.reshape(-1, 1, 1)


def _axes(node: Any, c: Constraints) -> None:
    """As of a convolution; where kernels look stays. Channels that look alike go, as many of each field."""
    x, w, offset = node.inputs[:3]
    (result,) = node.outputs
    bias, mask = operand(node, 3), operand(node, 4)
    for value in (x, offset, mask):
        if value is not None:
            c.same(c.dims(value)[0], c.dims(result)[0])
    for value in (x, w, result, offset, mask):
        c.pin(value, (2, 3), "the space a convolution moves over")
    for value in (offset, mask):
        c.pin(value, (1,), "where a kernel looks")
    c.same(c.dims(w)[0], c.dims(result)[1])
    if bias is not None:
        c.same(c.dims(bias)[0], c.dims(w)[0])
    if attribute(node, "group", 1) > 1:
        for value, axes in ((x, (1,)), (w, (0, 1))):
            c.pin(value, axes, "groups of a deformable convolution")
        return
    fields = attribute(node, "offset_group", 1)
    if fields > 1:
        field = c.fresh(fields)
        c.flat([c.dims(x)[1]], [field, c.fresh(c.sizes(x)[1] // fields)])
        c.hold(field, "where a kernel looks")
    c.same(c.dims(x)[1], c.dims(w)[1])
    c.reads(node, 0, 1)
    c.reads(node, 1, 1)


def _macs(node: Any, s: Sizes) -> int:
    """The kernel's products; what reading between pixels takes is not counted, as a Resize is not."""
    return math.prod(s.shape(node.outputs[0])) * math.prod(s.shape(node.inputs[1])[1:])


register({"DeformConv": _deform}, axes=_axes, macs=_macs)
