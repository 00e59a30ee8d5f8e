"""Resampling of images: Resize, axis by axis as a weighted sum of taps, and GridSample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from onnxprune.graph.axes import DYNAMIC
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, register
from onnxprune.graph.ops.layout import integers
from onnxprune.graph.values import dims


def _coordinates(how: str, size: int, out: int, scale: float, region: tuple[float, float]) -> np.ndarray:
    """Where each output index lies on the input axis: float32 (out,), as ONNX Runtime computes it."""
    x, factor = np.arange(out, dtype=np.float32), np.float32(scale)
    half, one = np.float32(0.5), np.float32(1)
    if how == "asymmetric":
        return x / factor
    if how == "align_corners":
        return x * np.float32(size - 1) / np.float32(out - 1) if out > 1 else x * 0
    if how == "tf_crop_and_resize":
        start, end = (np.float32(r) for r in region)
        last = np.float32(size - 1)
        return (
            start * last + x * (end - start) * last / np.float32(out - 1)
            if out > 1
            else x + half * (start + end) * last
        )
    if how == "pytorch_half_pixel" and out == 1:
        return x * 0
    centred = (x + half) / factor - half
    if how == "half_pixel_symmetric":
        return centred + np.float32(size) / 2 * (one - np.float32(out) / (factor * np.float32(size)))
    return centred


def _kernel(mode: str, distance: np.ndarray, a: float) -> np.ndarray:
    """A tap's weight by its distance: a triangle, or Keys' cubic (IEEE TASSP 29(6), 1981)."""
    d = np.abs(distance)
    weights: np.ndarray
    if mode == "linear":
        weights = np.clip(1 - d, 0, None)
        return weights
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
    return weights


_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


@lru_cache(maxsize=256)
def _taps(
    mode: str, how: str, size: int, out: int, scale: float, region: tuple[float, float], options: tuple[Any, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices (taps, out), weights (taps, out), outside (out,)) of one axis."""
    a, exclude, antialias, rounding = options
    at = _coordinates(how, size, out, scale, region)
    outside = (at < 0) | (at > size - 1) if how == "tf_crop_and_resize" else np.zeros(out, dtype=bool)
    if mode == "nearest":
        rounded = _ROUNDINGS[rounding](at)
        return rounded.astype(np.int64).clip(0, size - 1)[None], np.ones((1, out)), outside
    squeeze = min(scale, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / squeeze)
    indices = np.floor(at).astype(np.int64) + np.arange(1 - reach, reach + 1)[:, None]
    weights = _kernel(mode, (indices - at.astype(np.float64)) * squeeze, a)
    if exclude:
        weights = np.where((indices < 0) | (indices >= size), 0, weights)
    used = np.abs(weights).max(axis=1) > 0
    weights = weights[used] / weights.sum(axis=0)
    return indices[used].clip(0, size - 1), weights, outside


def _targets(node: Any, sizes: Sequence[int], scales: Any, wanted: Any) -> list[tuple[int, float]]:
    """(output size, scale) of each resized axis."""
    if wanted is None:
        return [(math.floor(n * s), s) for n, s in zip(sizes, scales, strict=True)]
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    ratios = [w / n for w, n in zip(wanted, sizes, strict=True)]
    if policy == "stretch":
        return list(zip(wanted, ratios, strict=True))
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [(math.floor(ratio * n + 0.5), ratio) for n in sizes]


def _resize(torch: Any, node: Any, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    axes = [a % x.dim() for a in attribute(node, "axes", range(x.dim()))]
    wanted = integers(torch, sizes) if sizes is not None and sizes.numel() else None
    factors = None if scales is None else [float(s) for s in scales.tolist()]
    mode, how = attribute(node, "mode", "nearest"), attribute(node, "coordinate_transformation_mode", "half_pixel")
    options = (
        attribute(node, "cubic_coeff_a", -0.75),
        attribute(node, "exclude_outside", 0),
        attribute(node, "antialias", 0),
        attribute(node, "nearest_mode", "round_prefer_floor"),
    )
    regions = [(0.0, 1.0)] * len(axes)
    if how == "tf_crop_and_resize":
        ends = [float(r) for r in roi.tolist()]
        regions = list(zip(ends[: len(axes)], ends[len(axes) :], strict=True))
    y = x if mode == "nearest" or x.dtype == torch.float64 else x.float()
    outside = []
    targets = _targets(node, [x.shape[a] for a in axes], factors, wanted)
    for axis, (out, scale), region in zip(axes, targets, regions, strict=True):
        if out == x.shape[axis] and scale == 1.0 and how != "tf_crop_and_resize":
            continue
        indices, weights, beyond = _taps(mode, how, x.shape[axis], out, scale, region, options)
        y = _apply(torch, y, axis, indices, weights)
        if beyond.any():
            outside.append(
                torch.from_numpy(beyond).to(x.device).reshape([-1 if i == axis else 1 for i in range(x.dim())])
            )
    for mask in outside:
        y = torch.where(
            mask, torch.tensor(attribute(node, "extrapolation_value", 0.0), dtype=y.dtype, device=y.device), y
        )
    return y.to(x.dtype)


def _apply(torch: Any, x: Any, axis: int, indices: np.ndarray, weights: np.ndarray) -> Any:
    picks = [x.index_select(axis, torch.from_numpy(row).to(x.device)) for row in indices]
    if len(picks) == 1:
        return picks[0]
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    return sum(
        pick * torch.from_numpy(row).to(x.device, x.dtype).reshape(shape)
        for pick, row in zip(picks, weights, strict=True)
    )


def _by_ratio(node: Any) -> bool:
    """Whether more than an axis's own sizes decides what becomes of it: a region, or the ratio of another axis."""
    cropped = attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    sized = len(node.inputs) > 3 and node.inputs[3] is not None
    return cropped or (sized and attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch")


def _untouched(node: Any, rank: int, constant: Any) -> dict[int, int]:
    """Listed axes that surely keep their elements (a scale of 1, or a constant size): axis -> place in the operand."""
    if _by_ratio(node):
        return {}
    listed = [a % rank for a in attribute(node, "axes", range(rank))]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        known = _numbers(node.inputs[3], constant, len(listed))
        return {a: i for i, a in enumerate(listed) if known[i]}
    scales = constant(node.inputs[2])
    return {} if scales is None else {a: i for i, a in enumerate(listed) if float(scales[i]) == 1.0}


def _numbers(operand: Any, constant: Any, count: int) -> list[bool]:
    """Which elements of a vector of `count` are numbers: all, or those that stand so in its Concat."""
    if constant(operand) is not None:
        return [True] * count
    producer = operand.producer()
    found: list[bool] = []
    for piece in producer.inputs if producer is not None and producer.op_type == "Concat" else ():
        length = dims(piece)
        if length is None or len(length) != 1 or not isinstance(length[0], int):
            return [False] * count
        found += [constant(piece) is not None] * length[0]
    return found if len(found) == count else [False] * count


def _resize_axes(node: Any, c: Constraints) -> None:
    source, (result,) = node.inputs[0], node.outputs
    rank = len(c.sizes(source))
    passing = {a for a in range(rank) if a not in {b % rank for b in attribute(node, "axes", range(rank))}}
    passing |= set(_untouched(node, rank, c.constant))
    if len(node.inputs) > 3 and not _by_ratio(node):  # rows: as many before as behind, or their names would differ
        passing |= {axis for axis in range(rank) if c.sizes(source)[axis] >= DYNAMIC}
    for axis in range(rank):
        if axis in passing and c.sizes(source)[axis] == c.sizes(result)[axis]:
            c.same(c.dims(source)[axis], c.dims(result)[axis])
        else:
            c.pin(source, [axis], "resized")
            c.pin(result, [axis], "resized")


def _resize_resize(node: Any, s: Sizes) -> Change:
    source = node.inputs[0]
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return Change()
    places = _untouched(node, len(s.shape(source)), s.constant)
    new = {place: s.shape(source)[axis] for axis, place in places.items() if s.changed(source, axis)}
    return Change(elements={3: new} if new else {})


register({"Resize": _resize}, axes=_resize_axes, resize=_resize_resize)


def _grid_sample(torch: Any, node: Any, x: Any, grid: Any) -> Any:
    mode = attribute(node, "mode", "bilinear")
    return torch.nn.functional.grid_sample(
        x,
        grid,
        mode={"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode),
        padding_mode=attribute(node, "padding_mode", "zeros"),
        align_corners=bool(attribute(node, "align_corners", 0)),
    )


def _grid_sample_axes(node: Any, c: Constraints) -> None:
    (source, grid), (result,) = node.inputs, node.outputs
    c.same(c.dims(source)[0], c.dims(result)[0])
    c.same(c.dims(source)[1], c.dims(result)[1])
    c.same(c.dims(grid)[0], c.dims(result)[0])
    for value, first in ((source, 2), (result, 2), (grid, 1)):
        c.pin(value, range(first, len(c.sizes(value))), "the space GridSample looks up")


register({"GridSample": _grid_sample}, axes=_grid_sample_axes)
