"""Convolutions over channels-first sequences, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, register


def spatial_pads(
    node: Any, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) per spatial axis, from `pads` or `auto_pad`."""
    how = attribute(node, "auto_pad", "NOTSET")
    rank = len(sizes)
    if how in ("NOTSET", "VALID"):
        pads = attribute(node, "pads", [0] * 2 * rank) if how == "NOTSET" else [0] * 2 * rank
        return [(pads[i], pads[i + rank]) for i in range(rank)]
    found = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small = total // 2
        found.append((small, total - small) if how == "SAME_UPPER" else (total - small, small))
    return found


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """torch.nn.functional.pad's order: last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]


def conv(torch: Any, node: Any, x: Any, w: Any, b: Any = None) -> Any:
    """Conv of opset 1 to 22."""
    rank = x.dim() - 2
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    pads = spatial_pads(node, tuple(x.shape[2:]), list(w.shape[2:]), strides, dilations)
    if any(a != z for a, z in pads):
        x = torch.nn.functional.pad(x, flat_pads(pads))
        pads = [(0, 0)] * rank
    function = getattr(torch.nn.functional, f"conv{rank}d")
    return function(x, w, b, tuple(strides), tuple(p[0] for p in pads), tuple(dilations), attribute(node, "group", 1))


def _stays(node: Any, axis: int, rank: int) -> bool:
    """Whether a kernel of 1 along a spatial axis gives every position of it, and no other."""
    stated = attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    pads = attribute(node, "pads", [0] * 2 * rank) if stated else [0] * 2 * rank
    return attribute(node, "strides", [1] * rank)[axis] == 1 and not pads[axis] and not pads[axis + rank]


def conv_axes(node: Any, c: Constraints) -> None:
    """Channels in are read, channels out are written.

    Of groups, whole ones can go, and of what each reads the same channels in all (the weight shows one group's for
    all), and of what each writes as many.
    """
    x, w = node.inputs[:2]
    (result,) = node.outputs
    groups = attribute(node, "group", 1)
    c.same(c.dims(x)[0], c.dims(result)[0])
    c.same(c.dims(w)[0], c.dims(result)[1])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        c.same(c.dims(node.inputs[2])[0], c.dims(w)[0])
    for axis in range(2, len(c.sizes(w))):
        if c.sizes(w)[axis] == 1 and _stays(node, axis - 2, len(c.sizes(w)) - 2):
            c.same(c.dims(x)[axis], c.dims(result)[axis])  # each position alone: features, where channels are tokens
            continue
        for value in (x, w, result):
            c.pin(value, [axis], "the space a convolution moves over")
    if groups == 1:
        c.same(c.dims(x)[1], c.dims(w)[1])
        c.reads(node, 0, 1)
        c.reads(node, 1, 1)
        return
    group = c.fresh(groups)
    c.flat([c.dims(x)[1]], [group, c.dims(w)[1]])
    c.flat([c.dims(w)[0]], [group, c.fresh(c.sizes(w)[0] // groups)])
    if c.sizes(w)[1] > 1:
        c.reads(node, 0, 1)
        c.reads(node, 1, 1)


def conv_macs(node: Any, s: Sizes) -> int:
    """Every output element reads one kernel of (channels of its group) x (space)."""
    return math.prod(s.shape(node.outputs[0])) * math.prod(s.shape(node.inputs[1])[1:])


def conv_resize(node: Any, s: Sizes) -> Change:
    """How many groups are left, by the channels within one."""
    if attribute(node, "group", 1) > 1:
        return Change(attributes={"group": s.shape(node.inputs[0])[1] // s.shape(node.inputs[1])[1]})
    return Change()


register({"Conv": conv}, axes=conv_axes, macs=conv_macs, resize=conv_resize)


def _crops(node: Any, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """What ConvTranspose cuts off before and after each spatial axis; negative where it adds."""
    rank = len(sizes)
    how, target = attribute(node, "auto_pad", "NOTSET"), attribute(node, "output_shape")
    if target is None and how in ("NOTSET", "VALID"):
        pads = attribute(node, "pads", [0] * 2 * rank)
        return [(pads[i], pads[i + rank]) for i in range(rank)]
    wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)] if target is None else target[-rank:]
    found = []
    for size, out in zip(full, wanted, strict=True):
        total = size - out
        small = max(total, 0) // 2
        # What is missing is added at the end.
        found.append((small, total - small) if how == "SAME_UPPER" or total < 0 else (total - small, small))
    return found


def _conv_transpose(torch: Any, node: Any, x: Any, w: Any, b: Any = None) -> Any:
    rank = x.dim() - 2
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    extra = attribute(node, "output_padding", [0] * rank)
    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    full = function(x, w, None, tuple(strides), 0, 0, attribute(node, "group", 1), tuple(dilations))
    if any(extra):
        full = torch.nn.functional.pad(full, flat_pads([(0, e) for e in extra]))
    crops = _crops(node, tuple(x.shape[2:]), tuple(full.shape[2:]), strides)
    if any(a or z for a, z in crops):
        full = torch.nn.functional.pad(full, flat_pads([(-a, -z) for a, z in crops]))
    return full if b is None else full + b.reshape(-1, *[1] * rank)


def _conv_transpose_axes(node: Any, c: Constraints) -> None:
    x, w = node.inputs[:2]
    (result,) = node.outputs
    c.same(c.dims(x)[0], c.dims(result)[0])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        c.same(c.dims(node.inputs[2])[0], c.dims(result)[1])
    for value in (x, w, result):
        c.pin(value, range(2, len(c.sizes(value))), "the space a convolution moves over")
    groups = attribute(node, "group", 1)
    if groups == 1:
        c.same(c.dims(x)[1], c.dims(w)[0])
        c.same(c.dims(w)[1], c.dims(result)[1])
        c.reads(node, 0, 1)
        c.reads(node, 1, 0)
        return
    group, inner = c.fresh(groups), c.fresh(c.sizes(x)[1] // groups)
    c.same(c.dims(x)[1], c.dims(w)[0])
    c.flat([c.dims(x)[1]], [group, inner])
    c.flat([c.dims(result)[1]], [group, c.dims(w)[1]])
    if c.sizes(x)[1] > groups:
        c.reads(node, 0, 1)
        c.reads(node, 1, 0)


def _conv_transpose_macs(node: Any, s: Sizes) -> int:
    return math.prod(s.shape(node.inputs[0])) * math.prod(s.shape(node.inputs[1])[1:])


def _conv_transpose_resize(node: Any, s: Sizes) -> Change:
    if attribute(node, "group", 1) == 1:
        return Change()
    return Change(attributes={"group": s.shape(node.outputs[0])[1] // s.shape(node.inputs[1])[1]})


register(
    {"ConvTranspose": _conv_transpose},
    axes=_conv_transpose_axes,
    macs=_conv_transpose_macs,
    resize=_conv_transpose_resize,
)
