"""Operators that put elements elsewhere in space: padding, tiling, reversing, and blocks of pixels as channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.axes import DYNAMIC
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, operand, register
from onnxprune.graph.ops.layout import integers, part, written


def _pad(torch: Any, node: Any, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    amounts = attribute(node, "pads") if pads is None else integers(torch, pads)
    listed = range(x.dim()) if axes is None else [a % x.dim() for a in integers(torch, axes)]
    mode = {"edge": "replicate", "wrap": "circular"}.get(
        attribute(node, "mode", "constant"), attribute(node, "mode", "constant")
    )
    fill = attribute(node, "value", 0.0) if value is None else value.item()
    count = len(amounts) // 2
    for i, axis in enumerate(listed):
        before, after = int(amounts[i]), int(amounts[i + count])
        if before < 0 or after < 0:
            x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
            before, after = max(before, 0), max(after, 0)
        if before or after:
            x = _pad_one(torch, x, axis, before, after, mode, fill)
    return x


def _pad_one(torch: Any, x: Any, axis: int, before: int, after: int, mode: str, fill: float) -> Any:
    size = x.shape[axis]
    if mode == "constant":
        shape = list(x.shape)
        pieces = []
        for amount in (before, after):
            shape[axis] = amount
            pieces.append(torch.full(shape, fill, dtype=x.dtype, device=x.device))
        return torch.cat([pieces[0], x, pieces[1]], axis)
    index = np.arange(-before, size + after)
    if mode == "replicate":
        index = index.clip(0, size - 1)
    elif mode == "circular":
        index %= size
    else:  # reflect
        period = max(2 * (size - 1), 1)
        index = np.abs((index + size - 1) % period - (size - 1)) if size > 1 else index * 0
    return x.index_select(axis, torch.as_tensor(index, device=x.device))


def _padded(node: Any, rank: int, axes: Any) -> dict[int, tuple[int, int, int, int]]:
    """axis -> (before, after, where they stand among the pads); of those whose numbers stand in the file."""
    amounts = attribute(node, "pads") if "pads" in node.attributes else written(node.inputs[1])
    listed = operand(node, 3)
    if amounts is None or (listed is not None and axes is None):
        return {}
    named = [int(a) % rank for a in np.ravel(axes)] if listed is not None else range(rank)
    found: dict[int, tuple[int, int, int, int]] = {}
    for first, axis in enumerate(named):
        last = first + len(amounts) // 2
        before, after = amounts[first], amounts[last]
        if before is not None and after is not None:
            found[axis] = before, after, first, last
    return found


def _pad_axes(node: Any, c: Constraints) -> None:
    """A padded axis is a sum of what comes before it, itself, and what comes behind."""
    source, (result,) = node.inputs[0], node.outputs
    sizes = c.sizes(source)
    told = _padded(node, len(sizes), c.constant(operand(node, 3)))
    constant = attribute(node, "mode", "constant") == "constant"
    for axis, size in enumerate(sizes):
        before, after, *_ = told.get(axis, (-1, -1))
        if c.sizes(result)[axis] == size:
            c.same(c.dims(source)[axis], c.dims(result)[axis])
        elif constant and min(before, after) >= 0 and size < DYNAMIC and size + before + after == c.sizes(result)[axis]:
            c.same(c.dims(result)[axis], part(c, before, c.dims(source)[axis], after))
        else:
            c.pin(source, [axis], "padded")
            c.pin(result, [axis], "padded")


def _pad_resize(node: Any, s: Sizes) -> Change:
    source, (result,) = node.inputs[0], node.outputs
    rank = len(s.shape(source))
    new: dict[int, int] = {}
    for axis, (before, after, first, last) in _padded(node, rank, s.constant(operand(node, 3))).items():
        if (before or after) and s.changed(result, axis):
            kept = s.kept(result, axis)
            new |= {first: int(kept[:before].sum()), last: int(kept[len(kept) - after :].sum())}
    if "pads" in node.attributes:
        pads = list(attribute(node, "pads"))
        return Change(attributes={"pads": [new.get(i, amount) for i, amount in enumerate(pads)]} if new else {})
    return Change(elements={1: new} if new else {})


register({"Pad": _pad}, axes=_pad_axes, resize=_pad_resize)


def _tile_axes(node: Any, c: Constraints) -> None:
    """A repeated axis is the repeats times the axis; repeats that are numbers in the file can be fewer."""
    source, (result,) = node.inputs[0], node.outputs
    known = written(node.inputs[1])
    for axis, size in enumerate(c.sizes(source)):
        if c.sizes(result)[axis] == size:
            c.same(c.dims(source)[axis], c.dims(result)[axis])
        elif known is not None and size and c.sizes(result)[axis] % size == 0:
            repeats = c.fresh(c.sizes(result)[axis] // size)
            c.flat([c.dims(result)[axis]], [repeats, c.dims(source)[axis]])
            if known[axis] is None:
                c.hold(repeats, "tiled as often as is known at run time")
        else:
            c.pin(source, [axis], "tiled")
            c.pin(result, [axis], "tiled")


def _tile_resize(node: Any, s: Sizes) -> Change:
    source, (result,) = node.inputs[0], node.outputs
    known = written(node.inputs[1]) or []
    new = {}
    for axis, old in enumerate(known):
        if old is not None and old > 1:
            (kept, total), (inner, whole) = s.ratio(result, axis), s.ratio(source, axis)
            new[axis] = old * kept * whole // (total * inner)
    return Change(elements={1: {axis: n for axis, n in new.items() if n != known[axis]}})


register(
    {"Tile": lambda torch, node, x, repeats: x.repeat(*integers(torch, repeats))}, axes=_tile_axes, resize=_tile_resize
)


def _depth_to_space(torch: Any, node: Any, x: Any) -> Any:
    batch, depth, height, width = x.shape
    size = attribute(node, "blocksize")
    if attribute(node, "mode", "DCR") == "DCR":
        x = x.reshape(batch, size, size, depth // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(batch, depth // size**2, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, depth // size**2, height * size, width * size)


def _space_to_depth(torch: Any, node: Any, x: Any) -> Any:
    batch, depth, height, width = x.shape
    size = attribute(node, "blocksize")
    x = x.reshape(batch, depth, height // size, size, width // size, size)
    order = (0, 3, 5, 1, 2, 4) if attribute(node, "mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.permute(order).reshape(batch, depth * size**2, height // size, width // size)


def _blocks_axes(node: Any, c: Constraints) -> None:
    """The deep side's channels are the shallow side's times the pixels of a block; these and the space stay."""
    (source,), (result,) = node.inputs, node.outputs
    shallow, deep = (result, source) if node.op_type == "DepthToSpace" else (source, result)
    block = c.fresh(attribute(node, "blocksize") ** 2)
    parts = [block, c.dims(shallow)[1]]
    c.same(c.dims(source)[0], c.dims(result)[0])
    c.flat([c.dims(deep)[1]], parts if attribute(node, "mode", "DCR") == "DCR" else parts[::-1])
    c.hold(block, f"pixels that {node.op_type} moves")
    for value in (source, result):
        c.pin(value, (2, 3), f"pixels that {node.op_type} moves")


register({"DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth}, axes=_blocks_axes)


def _reverse_sequence(torch: Any, node: Any, x: Any, lengths: Any) -> Any:
    time, batch = attribute(node, "time_axis", 0), attribute(node, "batch_axis", 1)
    x = x.movedim((batch, time), (0, 1))
    steps = torch.arange(x.shape[1], device=x.device)
    ends = lengths.to(torch.int64)[:, None]
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, order].movedim((0, 1), (batch, time))


def _reverse_sequence_axes(node: Any, c: Constraints) -> None:
    (source, lengths), (result,) = node.inputs, node.outputs
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    c.same(c.dims(lengths)[0], c.dims(source)[attribute(node, "batch_axis", 1)])
    c.pin(source, [attribute(node, "time_axis", 0)], "reversed")


register({"ReverseSequence": _reverse_sequence}, axes=_reverse_sequence_axes)
