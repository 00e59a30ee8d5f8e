"""Operators that name elements anew: reshaping, transposing, joining, cutting apart and expanding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.graph.axes import DYNAMIC, ONE, Layout
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, axis_of, opaque, operand, register


def integers(torch: Any, x: Any) -> list[int]:
    """A shape operand as plain integers."""
    return [int(i) for i in x.reshape(-1).tolist()]


def _reshape(torch: Any, node: Any, x: Any, shape: Any) -> Any:
    target = integers(torch, shape)
    if not attribute(node, "allowzero", 0):
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


def _flatten(torch: Any, node: Any, x: Any) -> Any:
    axis = axis_of(node, x.dim(), 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _flat_axes(node: Any, c: Constraints) -> None:
    c.flat(c.dims(node.inputs[0]), c.dims(node.outputs[0]))


def written(operand: Any) -> list[int | None] | None:
    """The numbers of a shape operand that stand in the file, and so can be rewritten; None for those computed.

    Constants, or a Concat of constants and computed single dimensions (`targets.write_targets` leaves that form); of a
    constant times a computed dimension the constant.
    """
    if operand.const_value is not None:
        return [int(i) for i in operand.const_value.numpy().reshape(-1)]
    producer = operand.producer()
    if producer is None or producer.op_type != "Concat":
        return None
    numbers: list[int | None] = []
    for piece in producer.inputs:
        if piece.const_value is not None:
            numbers += [int(i) for i in piece.const_value.numpy().reshape(-1)]
        elif (factor := factor_of(piece)) is not None and factor.const_value is not None:
            numbers.append(int(factor.const_value.numpy().reshape(-1)[0]))
        elif piece.shape is not None and len(piece.shape) == 1 and isinstance(piece.shape[0], int):
            numbers += [None] * piece.shape[0]
        else:
            return None
    return numbers


def factor_of(piece: Any) -> Any:
    """The constant of a size that is a constant times a dimension; None where it is anything else."""
    producer = piece.producer()
    if producer is None or producer.op_type != "Mul" or not (producer.name or "").endswith("_scaled"):
        return None
    return producer.inputs[0] if producer.inputs[0].const_value is not None else None


def number(s: Sizes, value: Any, axis: int, old: int) -> int:
    """The number that stands for a dimension after the cut: its size, or its share of a constant factor."""
    kept, total = s.ratio(value, axis)
    return old * kept // total


def _reshape_axes(node: Any, c: Constraints) -> None:
    (result,) = node.outputs
    c.flat(c.dims(node.inputs[0]), c.dims(result))
    target = written(node.inputs[1])
    computed = [axis for axis in range(len(c.sizes(result))) if target is None or target[axis] is None]
    c.pin(result, computed, "its Reshape's target is computed at run time")


def _reshape_resize(node: Any, s: Sizes) -> Change:
    (result,) = node.outputs
    target = written(node.inputs[1]) or []
    new = {
        axis: number(s, result, axis, size)
        for axis, size in enumerate(target)
        if size and size > 0 and s.changed(result, axis)
    }
    return Change(elements={1: new} if new else {})


register({"Reshape": _reshape}, axes=_reshape_axes, resize=_reshape_resize)
register({"Flatten": _flatten}, axes=_flat_axes)


def _squeeze(torch: Any, node: Any, x: Any, axes: Any = None) -> Any:
    listed = attribute(node, "axes") if axes is None else integers(torch, axes)
    return x.squeeze() if listed is None else x.squeeze(tuple(listed))


def _unsqueeze(torch: Any, node: Any, x: Any, axes: Any = None) -> Any:
    listed = attribute(node, "axes") if axes is None else integers(torch, axes)
    rank = x.dim() + len(listed)
    for axis in sorted(a % rank for a in listed):
        x = x.unsqueeze(axis)
    return x


register({"Squeeze": _squeeze, "Unsqueeze": _unsqueeze}, axes=_flat_axes)


def _transpose(torch: Any, node: Any, x: Any) -> Any:
    return x.permute(*attribute(node, "perm", range(x.dim() - 1, -1, -1)))


def _transpose_axes(node: Any, c: Constraints) -> None:
    dims = c.dims(node.inputs[0])
    for axis, source in enumerate(attribute(node, "perm", range(len(dims) - 1, -1, -1))):
        c.same(dims[source], c.dims(node.outputs[0])[axis])


register({"Transpose": _transpose}, axes=_transpose_axes)


def _summable(c: Constraints, value: Any, axis: int, *parts: int) -> bool:
    """Whether an axis may be written as a sum of parts of these sizes.

    A single index has no atom to stand for it, and needs none: it stays. Of a dimension that is known at run time only
    one is not taken out, so that the others remain one atom with the same dimension elsewhere.
    """
    return c.sizes(value)[axis] < DYNAMIC or 1 not in parts


def _concat_axes(node: Any, c: Constraints) -> None:
    (result,) = node.outputs
    axis = axis_of(node, len(c.sizes(result)), 0)
    parts = tuple(term for value in node.inputs if c.sizes(value)[axis] for term in c.dims(value)[axis])
    if parts and _summable(c, result, axis, *(c.sizes(value)[axis] for value in node.inputs)):
        c.same(c.dims(result)[axis], parts)
    else:
        for value in (*node.inputs, result):
            c.pin(value, [axis], "joined with a part of size 1")
    for value in node.inputs:
        for other, dim in enumerate(c.dims(value)):
            if other != axis:
                c.same(dim, c.dims(result)[other])


register({"Concat": lambda torch, node, *xs: torch.cat(xs, attribute(node, "axis"))}, axes=_concat_axes)


def _split(torch: Any, node: Any, x: Any, split: Any = None) -> Any:
    axis = axis_of(node, x.dim(), 0)
    sizes = attribute(node, "split") if split is None else integers(torch, split)
    if sizes is None:
        chunk = -(-x.shape[axis] // len(node.outputs))
        sizes = [min(chunk, x.shape[axis] - i * chunk) for i in range(len(node.outputs))]
    return torch.split(x, list(sizes), axis)


def _split_axes(node: Any, c: Constraints) -> None:
    source = node.inputs[0]
    if not all(value.name for value in node.outputs):  # a part that nobody reads has no shape
        opaque(node, c)
        return
    axis = axis_of(node, len(c.sizes(source)), 0)
    sizes = operand(node, 1)
    parts = tuple(term for value in node.outputs for term in c.dims(value)[axis])
    known = sizes is None or written(sizes) is not None
    if known and _summable(c, source, axis, *(c.sizes(v)[axis] for v in node.outputs)):
        c.same(c.dims(source)[axis], parts)
    else:
        for value in (source, *node.outputs):
            c.pin(value, [axis], "split into parts of computed sizes, or taken one by one from a dynamic dimension")
    for value in node.outputs:
        for other, dim in enumerate(c.dims(value)):
            if other != axis:
                c.same(dim, c.dims(source)[other])


def _split_resize(node: Any, s: Sizes) -> Change:
    axis = axis_of(node, len(s.shape(node.inputs[0])), 0)
    if not s.changed(node.inputs[0], axis):
        return Change()
    sizes = [s.shape(v)[axis] for v in node.outputs]
    if "split" in node.attributes or (node.version or 13) < 13:
        return Change(attributes={"split": sizes})
    return Change(inputs={1: np.array(sizes, dtype=np.int64)}, attributes={"num_outputs": None})


register({"Split": _split}, axes=_split_axes, resize=_split_resize)


def _ranges(node: Any, rank: int, constant: Any) -> list[tuple[int, int, int, int]] | None:
    """(axis, start, end, step) per sliced axis as written, or None where an operand is computed."""
    if "starts" in node.attributes:
        starts, ends, axes, steps = attribute(node, "starts"), attribute(node, "ends"), attribute(node, "axes"), None
    else:
        operands = [constant(v) if v is not None else None for v in node.inputs[1:]]
        if any(o is None and v is not None for o, v in zip(operands, node.inputs[1:], strict=True)):
            return None
        starts, ends, axes, steps = [*operands, None, None][:4]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return [(int(a) % rank, int(b), int(e), int(t)) for a, b, e, t in zip(axes, starts, ends, steps, strict=True)]


def _slice(torch: Any, node: Any, x: Any, *operands: Any) -> Any:
    values = dict(zip(node.inputs[1:], operands, strict=False))
    ranges = _ranges(node, x.dim(), lambda v: np.array(integers(torch, values[v])))
    assert ranges is not None
    for axis, start, end, step in ranges:
        picked = range(x.shape[axis])[start:end:step]
        if step == 1:
            x = x.narrow(axis, picked.start, len(picked))
        else:
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x


def _slice_axes(node: Any, c: Constraints) -> None:
    source, (result,) = node.inputs[0], node.outputs
    ranges = _ranges(node, len(c.sizes(source)), c.constant)
    if ranges is None:
        axes = c.constant(operand(node, 3))
        if axes is None:
            opaque(node, c)
            return
        computed = {int(a) % len(c.sizes(source)) for a in np.ravel(axes)}
        for axis, (before, after) in enumerate(zip(c.dims(source), c.dims(result), strict=True)):
            if axis in computed:
                c.pin(source, [axis], "sliced at a place computed at run time")
                c.pin(result, [axis], "sliced at a place computed at run time")
            else:
                c.same(before, after)
        return
    sliced = {axis: (start, end, step) for axis, start, end, step in ranges}
    for axis, size in enumerate(c.sizes(source)):
        before, after = c.dims(source)[axis], c.dims(result)[axis]
        kept = c.sizes(result)[axis]
        start, _, step = sliced.get(axis, (0, 0, 1))
        if kept == size and step == 1:
            c.same(before, after)
            continue
        start = min(start + size if start < 0 else start, size)
        if step > 1 and start < step and size < DYNAMIC and size % step == 0:
            # Every so many-th: the axis is runs of `step`, of which one index is taken and none can go alone.
            c.same(before, ((*after[0], ONE * step),) if len(after) == 1 else ((after, ONE * step),))
        elif step == 1 and kept and _summable(c, source, axis, start, kept, size - start - kept):
            c.same(before, part(c, start, after, size - start - kept))
        else:
            c.pin(source, [axis], "sliced backwards, with a step, or around a single index of a dynamic dimension")
            c.pin(result, [axis], "sliced backwards, with a step, or around a single index of a dynamic dimension")


def part(c: Constraints, before: int, middle: Layout, after: int) -> Layout:
    """A dimension of which `middle` is a part: as many indices before it and after it as stated."""
    return (*(c.fresh(before) if before else ()), *middle, *(c.fresh(after) if after else ()))


def _slice_resize(node: Any, s: Sizes) -> Change:
    source = node.inputs[0]
    ranges = _ranges(node, len(s.shape(source)), s.constant)
    if ranges is None:
        return Change()
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for i, (axis, start, end, step) in enumerate(ranges):
        if s.changed(source, axis):
            kept = s.kept(source, axis)
            begin, stop, _ = slice(start, end).indices(len(kept))
            # Whole runs of `step` go, so that the first index taken is where it was.
            starts[i] = int(kept[:begin].sum()) if step == 1 else begin
            ends[i] = int(kept[:stop].sum())
    if not starts:
        return Change()
    if "starts" in node.attributes:
        old = ((r[1], r[2]) for r in ranges)
        pairs = [(starts.get(i, start), ends.get(i, end)) for i, (start, end) in enumerate(old)]
        return Change(attributes={"starts": [p[0] for p in pairs], "ends": [p[1] for p in pairs]})
    return Change(elements={1: starts, 2: ends})


register({"Slice": _slice}, axes=_slice_axes, resize=_slice_resize)


def sliced(node: Any, shape: Sequence[int | str | None]) -> tuple[int, tuple[int, ...]] | None:
    """(axis, positions) that a Slice reads of a value of this shape; None where they are not a few constant ones.

    Positions count from the front; on an axis of open size only its first (0) and its last (-1) are sure to be there.
    """
    ranges = _ranges(node, len(shape), lambda v: None if v.const_value is None else v.const_value.numpy())
    if ranges is None or len(ranges) != 1 or "starts" in node.attributes:
        return None
    ((axis, start, end, step),) = ranges
    size = shape[axis]
    if step != 1:
        return None
    if isinstance(size, int):
        at = tuple(range(size)[start:end])
        return (axis, at) if 0 < len(at) < size else None
    if (start, end) == (0, 1):
        return axis, (0,)
    return (axis, (-1,)) if start == -1 and end >= np.iinfo(np.int32).max else None


def _expand(torch: Any, node: Any, x: Any, shape: Any) -> Any:
    target = integers(torch, shape)
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(target)))


def _expand_axes(node: Any, c: Constraints) -> None:
    source, (result,) = node.inputs[0], node.outputs
    lead = len(c.sizes(result)) - len(c.sizes(source))
    for axis, size in enumerate(c.sizes(result)):
        if axis >= lead and c.sizes(source)[axis - lead] == size:
            c.same(c.dims(source)[axis - lead], c.dims(result)[axis])
        elif axis >= lead and c.sizes(source)[axis - lead] != 1:
            c.pin(source, [axis - lead], "expanded to a size that is not known")
    target = written(node.inputs[1])
    short = len(c.sizes(result)) - len(target or ())
    computed = [a for a in range(len(c.sizes(result))) if target is None or (a >= short and target[a - short] is None)]
    c.pin(result, computed, "its Expand's target is computed at run time")


def _expand_resize(node: Any, s: Sizes) -> Change:
    (result,) = node.outputs
    target = written(node.inputs[1]) or []
    lead = len(s.shape(result)) - len(target)
    numbers = ((i, size) for i, size in enumerate(target) if size and size > 1)
    new = {i: number(s, result, i + lead, size) for i, size in numbers if s.changed(result, i + lead)}
    return Change(elements={1: new} if new else {})


register({"Expand": _expand}, axes=_expand_axes, resize=_expand_resize)
