"""Operators that pick or write elements by index; the indexed axis is pinned, the others pass through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune.graph.axes import DYNAMIC, ONE, Layout
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, axis_of, opaque, register
from onnxprune.graph.ops.layout import part


def _gather(torch: Any, node: Any, data: Any, indices: Any) -> Any:
    axis = axis_of(node, data.dim(), 0)
    size = data.shape[axis]
    picked = torch.where(indices < 0, indices + size, indices).reshape(-1).to(torch.int64)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return data.index_select(axis, picked).reshape(shape)


def _gather_axes(node: Any, c: Constraints) -> None:
    data, indices = node.inputs
    (result,) = node.outputs
    axis = axis_of(node, len(c.sizes(data)), 0)
    extra = len(c.sizes(indices)) - 1
    place = _single(node, c, c.sizes(data)[axis])
    if place is None and (moved := _rearranged(node, c, c.sizes(data)[axis])) is not None:
        c.same(c.dims(data)[axis], moved[0])
        c.same(c.dims(result)[axis], moved[1])
        extra, indices = 0, None
    elif place is None:
        c.pin(data, [axis], "indexed")
    else:
        c.same(c.dims(data)[axis], part(c, place, ONE, c.sizes(data)[axis] - place - 1))
    for other, dim in enumerate(c.dims(data)):
        if other != axis:
            c.same(dim, c.dims(result)[other if other < axis else other + extra])
    for position, dim in enumerate(c.dims(indices) if indices is not None else ()):
        c.same(dim, c.dims(result)[axis + position])


def _rearranged(node: Any, c: Constraints, size: int) -> tuple[Layout, Layout] | None:
    """An axis and what constant indices take of it, in parts that both have: long runs, or a table read by columns.

    None where indices repeat, or where what they take is no such thing; nor of a table of which each reader has indices
    of its own, so that it may keep others (`prepare.shared_biases`).
    """
    indices = c.constant(node.inputs[1])
    if indices is None or indices.ndim != 1 or node.inputs[0].const_value is not None or size >= DYNAMIC:
        return None
    at = np.where(indices < 0, indices + size, indices)
    if len(at) < 2 or len(np.unique(at)) < len(at) or np.array_equal(at, np.arange(size)):
        return None
    beside = [n for n, i in node.inputs[0].uses() if n.op_type == "Gather" and not i and n is not node]
    others = [found % size for n in beside if (found := c.constant(n.inputs[1])) is not None]
    if any(np.isin(at, found).any() for found in others):
        return None
    ends = [0, *(np.flatnonzero(np.diff(at) != 1) + 1), len(at)]
    runs = [(int(at[first]), int(last - first)) for first, last in pairwise(ends)]
    if 2 * len(runs) <= len(at):
        parts = {start: c.fresh(length) for start, length in runs}
        whole: list[Any] = []
        place = 0
        for start, length in sorted(runs):
            whole += [*(c.fresh(start - place) if start > place else ()), *parts[start]]
            place = start + length
        whole += c.fresh(size - place) if place < size else ()
        return tuple(whole), tuple(term for start, _ in runs for term in parts[start])
    columns = int(at[1] - at[0])
    if len(at) == size and columns > 1 and size % columns == 0:
        table = np.arange(size).reshape(-1, columns)
        if (table.T.ravel() == at).all():
            outer, inner = c.fresh(size // columns), c.fresh(columns)
            return ((*outer[0], *inner[0]),), ((*inner[0], *outer[0]),)
    return None


def _single(node: Any, c: Constraints, size: int) -> int | None:
    """The place, from the front, of the one index that a Gather or GatherND takes of an activation; else None."""
    indices = c.constant(node.inputs[1])
    if indices is None or indices.size != 1 or node.inputs[0].const_value is not None or size >= DYNAMIC:
        return None
    return int(indices.reshape(-1)[0]) % size


def _gather_resize(node: Any, s: Sizes) -> Change:
    return _moved(node, s, axis_of(node, len(s.shape(node.inputs[0])), 0))


def _moved(node: Any, s: Sizes, axis: int) -> Change:
    """Indices keep their elements: units before them may have gone, and those that have gone are not asked for."""
    data = node.inputs[0]
    indices = s.constant(node.inputs[1])
    if indices is None or not s.changed(data, axis):
        return Change()
    kept = s.kept(data, axis)
    if indices.size != 1:
        at = np.where(indices < 0, indices + len(kept), indices)
        return Change(inputs={1: (np.cumsum(kept) - 1)[at[kept[at]]].astype(indices.dtype)})
    place = int(indices.reshape(-1)[0]) % len(kept)
    return Change(inputs={1: np.full_like(indices, kept[:place].sum())})


register({"Gather": _gather}, axes=_gather_axes, resize=_gather_resize)


def gathered(node: Any, shape: Sequence[int | str | None]) -> tuple[int, tuple[int, ...]] | None:
    """(axis, positions) that a Gather reads of data of this shape; None where they are computed, or repeat.

    Positions count from the front, or from behind (negative) on an axis of open size.
    """
    index = node.inputs[1]
    if index is None or index.const_value is None:
        return None
    axis = axis_of(node, len(shape), 0)
    size = shape[axis]
    numbers = [int(i) for i in index.const_value.numpy().reshape(-1)]
    at = tuple(i + size if i < 0 and isinstance(size, int) else i for i in numbers)
    return (axis, at) if at and len(set(at)) == len(at) else None


def _gather_elements(torch: Any, node: Any, data: Any, indices: Any) -> Any:
    axis = axis_of(node, data.dim(), 0)
    return torch.gather(data, axis, torch.where(indices < 0, indices + data.shape[axis], indices).to(torch.int64))


def _gather_elements_axes(node: Any, c: Constraints) -> None:
    """Along the axis it picks; the others go side by side, where they are of one length."""
    data, indices = node.inputs
    (result,) = node.outputs
    axis = axis_of(node, len(c.sizes(data)), 0)
    c.pin(data, [axis], "indexed")
    for other, dim in enumerate(c.dims(indices)):
        c.same(dim, c.dims(result)[other])
        if other == axis:
            continue
        if c.sizes(data)[other] == c.sizes(indices)[other]:
            c.same(dim, c.dims(data)[other])
        else:
            for value in (data, indices):
                c.pin(value, [other], "indexed")


def _gather_nd(torch: Any, node: Any, data: Any, indices: Any) -> Any:
    batch = attribute(node, "batch_dims", 0)
    depth = indices.shape[-1]
    lead = data.shape[:batch]
    flat_data = data.reshape(-1, *data.shape[batch:])
    flat_index = indices.reshape(flat_data.shape[0], -1, depth).to(torch.int64)
    rows = torch.arange(flat_data.shape[0], device=data.device)[:, None].expand(flat_index.shape[:2])
    picked = flat_data[(rows, *flat_index.unbind(-1))]
    return picked.reshape(*lead, *indices.shape[batch:-1], *data.shape[batch + depth :])


def _gather_nd_axes(node: Any, c: Constraints) -> None:
    """The axes that indices name are picked from; those before and behind pass."""
    (data, indices), (result,) = node.inputs, node.outputs
    batch, depth, rank = attribute(node, "batch_dims", 0), c.sizes(indices)[-1], len(c.sizes(indices))
    if depth >= DYNAMIC:
        opaque(node, c)
        return
    place = _single(node, c, c.sizes(data)[batch]) if depth == 1 else None
    if place is None:
        c.pin(data, range(batch, batch + depth), "indexed")
    else:
        c.same(c.dims(data)[batch], part(c, place, ONE, c.sizes(data)[batch] - place - 1))
    c.pin(indices, [rank - 1], "indexed")
    for axis in range(rank - 1):
        c.same(c.dims(indices)[axis], c.dims(result)[axis])
        if axis < batch:
            c.same(c.dims(data)[axis], c.dims(result)[axis])
    for axis in range(batch + depth, len(c.sizes(data))):
        c.same(c.dims(data)[axis], c.dims(result)[axis - batch - depth + rank - 1])


def _gather_nd_resize(node: Any, s: Sizes) -> Change:
    return _moved(node, s, attribute(node, "batch_dims", 0))


def _scatter_elements(torch: Any, node: Any, data: Any, indices: Any, updates: Any) -> Any:
    axis = axis_of(node, data.dim(), 0)
    indices = torch.where(indices < 0, indices + data.shape[axis], indices).to(torch.int64)
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}.get(attribute(node, "reduction", "none"))
    return data.scatter(axis, indices, updates) if how is None else data.scatter_reduce(axis, indices, updates, how)


def _scatter_nd(torch: Any, node: Any, data: Any, indices: Any, updates: Any) -> Any:
    depth = indices.shape[-1]
    index = indices.reshape(-1, depth).to(torch.int64).unbind(-1)
    values = updates.reshape(-1, *data.shape[depth:])
    reduction = attribute(node, "reduction", "none")
    if reduction == "none":
        return data.index_put(index, values)
    if reduction == "add":
        return data.index_put(index, values, accumulate=True)
    combine = {"mul": torch.mul, "max": torch.maximum, "min": torch.minimum}[reduction]
    result = data.clone()
    for row, value in enumerate(values):
        at = tuple(i[row] for i in index)
        result[at] = combine(result[at], value)
    return result


register({"GatherElements": _gather_elements}, axes=_gather_elements_axes)
register({"GatherND": _gather_nd}, axes=_gather_nd_axes, resize=_gather_nd_resize)


def _tensor_scatter(torch: Any, node: Any, past: Any, update: Any, places: Any = None) -> Any:
    """A cache with new entries written along an axis, each row of the batch at its own place."""
    axis = axis_of(node, past.dim(), -2)
    steps = torch.arange(update.shape[axis], device=past.device)[None]
    at = steps if places is None else steps + places[:, None]
    at = at % past.shape[axis] if attribute(node, "mode", "linear") == "circular" else at
    shape = [update.shape[0] if i == 0 else update.shape[axis] if i == axis else 1 for i in range(past.dim())]
    return past.scatter(
        axis, at.expand(update.shape[0], -1).reshape(shape).expand(update.shape).to(torch.int64), update
    )


def _tensor_scatter_axes(node: Any, c: Constraints) -> None:
    past, update = node.inputs[:2]
    (result,) = node.outputs
    axis = axis_of(node, len(c.sizes(past)), -2)
    for other, dim in enumerate(c.dims(past)):
        c.same(dim, c.dims(result)[other])
        if other != axis:
            c.same(dim, c.dims(update)[other])
    for value in (past, update):
        c.pin(value, [axis], "the length of a cache")


register({"TensorScatter": _tensor_scatter}, axes=_tensor_scatter_axes)


def _scatter_elements_axes(node: Any, c: Constraints) -> None:
    """Along the axis it writes to; the others go side by side, where they are of one length."""
    data, indices, updates = node.inputs
    (result,) = node.outputs
    axis = axis_of(node, len(c.sizes(data)), 0)
    for other, dim in enumerate(c.dims(data)):
        c.same(dim, c.dims(result)[other])
        c.same(c.dims(indices)[other], c.dims(updates)[other])
        if other != axis and c.sizes(data)[other] == c.sizes(indices)[other]:
            c.same(dim, c.dims(indices)[other])
        else:
            for value in (data, indices):
                c.pin(value, [other], "written to by index")


def _scatter_nd_axes(node: Any, c: Constraints) -> None:
    """The axes that indices name are written to; those behind them pass."""
    (data, indices, updates), (result,) = node.inputs, node.outputs
    depth, rank = c.sizes(indices)[-1], len(c.sizes(indices))
    if depth >= DYNAMIC:
        opaque(node, c)
        return
    c.pin(data, range(depth), "written to by index")
    c.pin(indices, None, "written to by index")  # what is not written is what was there, and not zero
    for axis, dim in enumerate(c.dims(data)):
        c.same(dim, c.dims(result)[axis])
        if axis >= depth:
            c.same(dim, c.dims(updates)[rank - 1 + axis - depth])
    for axis, dim in enumerate(c.dims(indices)[:-1]):
        c.same(dim, c.dims(updates)[axis])


register({"ScatterElements": _scatter_elements, "Scatter": _scatter_elements}, axes=_scatter_elements_axes)
register({"ScatterND": _scatter_nd}, axes=_scatter_nd_axes)
