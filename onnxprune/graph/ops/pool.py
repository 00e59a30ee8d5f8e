"""Pooling: windows that move over the space of each channel alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxprune.graph.ops.base import Constraints, attribute, outcome, register
from onnxprune.graph.ops.conv import flat_pads, spatial_pads

_Pads = list[tuple[int, int]]


def _pool_axes(node: Any, c: Constraints) -> None:
    source = node.inputs[0]
    results = [value for value in node.outputs if value.name]
    for result in results:
        for axis in (0, 1):
            c.same(c.dims(source)[axis], c.dims(result)[axis])
    for value in (source, *results):
        c.pin(value, range(2, len(c.sizes(value))), f"the space {node.op_type} moves over")


def _max_pool_axes(node: Any, c: Constraints) -> None:
    _pool_axes(node, c)
    if outcome(node, 1) is not None:
        c.pin(node.inputs[0], None, "MaxPool's indices count through the whole tensor")


def _windows(node: Any, x: Any) -> tuple[list[int], list[int], list[int], _Pads, _Pads]:
    """(kernel, strides, dilations, pads as written, pads with the last, partial window of `ceil_mode`)."""
    rank = x.dim() - 2
    kernel = list(attribute(node, "kernel_shape"))
    strides = list(attribute(node, "strides", [1] * rank))
    dilations = list(attribute(node, "dilations", [1] * rank))
    sizes = tuple(x.shape[2:])
    pads = spatial_pads(node, sizes, kernel, strides, dilations)
    return kernel, strides, dilations, pads, _ceil_pads(node, sizes, kernel, strides, dilations, pads)


def _ceil_pads(
    node: Any, sizes: Sequence[int], kernel: list[int], strides: list[int], dilations: list[int], pads: _Pads
) -> _Pads:
    if not attribute(node, "ceil_mode", 0):
        return list(pads)
    wide = []
    for size, k, stride, dilation, (before, after) in zip(sizes, kernel, strides, dilations, pads, strict=True):
        span = (k - 1) * dilation + 1
        count = math.ceil((size + before + after - span) / stride) + 1
        if (count - 1) * stride >= size + before:  # a window that starts in the padding at the end is dropped
            count -= 1
        wide.append((before, max((count - 1) * stride + span - size - before, after)))
    return wide


def _padded(torch: Any, x: Any, pads: _Pads, value: float) -> Any:
    return torch.nn.functional.pad(x, flat_pads(pads), value=value) if any(a or z for a, z in pads) else x


def _max_pool(torch: Any, node: Any, x: Any) -> Any:
    kernel, strides, dilations, _, pads = _windows(node, x)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    wide = _padded(torch, x, pads, lowest)
    function = getattr(torch.nn.functional, f"max_pool{x.dim() - 2}d")
    if len(node.outputs) == 1:
        return function(wide, kernel, strides, 0, dilations)
    y, at = function(wide, kernel, strides, 0, dilations, return_indices=True)
    places = torch.unravel_index(at, wide.shape[2:])
    places = [p - before for p, (before, _) in zip(places, pads, strict=True)]
    sizes = list(x.shape[2:])
    if attribute(node, "storage_order", 0):
        places, sizes = places[::-1], sizes[::-1]
    index = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * (x.dim() - 2))
    for place, size in zip(places, sizes, strict=True):
        index = index * size + place
    return y, index


def _sums(torch: Any, x: Any, kernel: list[int], strides: list[int], dilations: list[int]) -> Any:
    """The sum of each window."""
    window = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    function = getattr(torch.nn.functional, f"conv{x.dim() - 2}d")
    summed = function(x.reshape(-1, 1, *x.shape[2:]), window, stride=tuple(strides), dilation=tuple(dilations))
    return summed.reshape(*x.shape[:2], *summed.shape[2:])


def _average_pool(torch: Any, node: Any, x: Any) -> Any:
    kernel, strides, dilations, pads, wide = _windows(node, x)
    for axis, (size, (before, after)) in enumerate(zip(x.shape[2:], pads, strict=True)):
        if dilations[axis] == 1 and kernel[axis] > size + before + after:
            # One window, larger than all there is (EfficientNet's is as wide as its channels): what is past the end
            # adds nothing and counts nothing.
            kernel[axis], wide[axis] = size + before + after, (before, after)
    if not any(a or z for a, z in wide) and set(dilations) == {1}:
        return getattr(torch.nn.functional, f"avg_pool{x.dim() - 2}d")(x, kernel, strides)
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if attribute(node, "count_include_pad", 0):
        counted = _padded(torch, counted, pads, 1.0)
        counted = _padded(torch, counted, [(0, w[1] - p[1]) for w, p in zip(wide, pads, strict=True)], 0.0)
    else:
        counted = _padded(torch, counted, wide, 0.0)
    sums = _sums(torch, _padded(torch, x, wide, 0.0), kernel, strides, dilations)
    return sums / _sums(torch, counted, kernel, strides, dilations)


def _lp_pool(torch: Any, node: Any, x: Any) -> Any:
    kernel, strides, dilations, _, pads = _windows(node, x)
    p = attribute(node, "p", 2)
    return _sums(torch, _padded(torch, x.abs() ** p, pads, 0.0), kernel, strides, dilations) ** (1 / p)


def _global_pool(name: str) -> Any:
    def run(torch: Any, node: Any, x: Any) -> Any:
        return getattr(x, name)(tuple(range(2, x.dim())), keepdim=True)

    return run


def _global_lp_pool(torch: Any, node: Any, x: Any) -> Any:
    return torch.linalg.vector_norm(x, attribute(node, "p", 2), tuple(range(2, x.dim())), keepdim=True)


register({"MaxPool": _max_pool}, axes=_max_pool_axes)
register(
    {
        "AveragePool": _average_pool, "LpPool": _lp_pool,
        "GlobalAveragePool": _global_pool("mean"), "GlobalMaxPool": _global_pool("amax"),
        "GlobalLpPool": _global_lp_pool,
    },
    axes=_pool_axes,
)  # fmt: skip
