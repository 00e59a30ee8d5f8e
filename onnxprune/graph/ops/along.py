"""Operators that look along one axis: that stays, and each of the others goes its own way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnxprune.graph.ops.base import Constraints, attribute, axis_of, opaque, operand, register


def _one_hot(torch: Any, node: Any, indices: Any, depth: Any, values: Any) -> Any:
    axis, count = axis_of(node, indices.dim() + 1, -1), int(depth.reshape(()).item())
    places = torch.arange(count, device=indices.device).reshape(
        [-1 if i == axis else 1 for i in range(indices.dim() + 1)]
    )
    found = torch.where(indices < 0, indices + count, indices).unsqueeze(axis)
    return torch.where(found == places, values[1], values[0])


def _top_k(torch: Any, node: Any, x: Any, k: Any = None) -> Any:
    count = int(attribute(node, "k")) if k is None else int(k.reshape(()).item())
    axis = axis_of(node, x.dim(), -1)
    # A stable sort keeps the lower index first among equals, as the standard asks.
    order = torch.sort(x, dim=axis, descending=bool(attribute(node, "largest", 1)), stable=True)
    return order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)


def _arg(name: str) -> Any:
    def run(torch: Any, node: Any, x: Any) -> Any:
        axis = axis_of(node, x.dim(), 0)
        if attribute(node, "select_last_index", 0):
            found = x.shape[axis] - 1 - getattr(torch, name)(x.flip(axis), dim=axis, keepdim=True)
        else:
            found = getattr(torch, name)(x, dim=axis, keepdim=True)
        return found if attribute(node, "keepdims", 1) else found.squeeze(axis)

    return run


def _cumulated(name: str, start: int) -> Any:
    def run(torch: Any, node: Any, x: Any, axis: Any) -> Any:
        along = int(axis.reshape(()).item()) % x.dim()
        x = x.flip(along) if attribute(node, "reverse", 0) else x
        if attribute(node, "exclusive", 0):
            first = torch.full_like(x.narrow(along, 0, 1), start)
            x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
        total = getattr(torch, name)(x, along).to(x.dtype)
        return total.flip(along) if attribute(node, "reverse", 0) else total

    return run


def _compress(torch: Any, node: Any, x: Any, keep: Any) -> Any:
    places = keep.nonzero().reshape(-1)
    return (
        x.reshape(-1)[places] if attribute(node, "axis") is None else x.index_select(axis_of(node, x.dim(), 0), places)
    )


def _trilu(torch: Any, node: Any, x: Any, k: Any = None) -> Any:
    return (torch.triu if attribute(node, "upper", 1) else torch.tril)(x, 0 if k is None else int(k.item()))


def _along(node: Any, c: Constraints, axes: Iterable[int], *, gone: bool = False) -> None:
    """Pin some axes of what is read and of what is given; the others are one.

    Args:
        gone: the result has none of these axes.
    """
    source, looked = node.inputs[0], set(axes)
    c.pin(source, looked, f"{node.op_type} looks along it")
    passing = [axis for axis in range(len(c.sizes(source))) if axis not in looked]
    for result in node.outputs:
        if not result.name:
            continue
        if not gone:
            c.pin(result, looked, f"{node.op_type} looks along it")
        for place, axis in enumerate(passing):
            c.same(c.dims(source)[axis], c.dims(result)[place if gone else axis])


def _top_k_axes(node: Any, c: Constraints) -> None:
    _along(node, c, [axis_of(node, len(c.sizes(node.inputs[0])), -1)])


def _arg_axes(node: Any, c: Constraints) -> None:
    axis = axis_of(node, len(c.sizes(node.inputs[0])), 0)
    _along(node, c, [axis], gone=not attribute(node, "keepdims", 1))


def _cumulated_axes(node: Any, c: Constraints) -> None:
    axis = c.constant(node.inputs[1])
    if axis is None:
        opaque(node, c)
    else:
        _along(node, c, [int(axis.reshape(())) % len(c.sizes(node.inputs[0]))])


def _compress_axes(node: Any, c: Constraints) -> None:
    if attribute(node, "axis") is None:
        opaque(node, c)
        return
    _along(node, c, [axis_of(node, len(c.sizes(node.inputs[0])), 0)])
    c.pin(node.inputs[1], None, "Compress looks along it")


def _trilu_axes(node: Any, c: Constraints) -> None:
    rank = len(c.sizes(node.inputs[0]))
    _along(node, c, [rank - 2, rank - 1])
    c.pin(operand(node, 1), None, "Trilu's diagonal")


def _one_hot_axes(node: Any, c: Constraints) -> None:
    """What is told by an index is a vocabulary, and stays; each index of the others has one of its own."""
    (indices, depth, values), (result,) = node.inputs, node.outputs
    rank = len(c.sizes(result))
    axis = axis_of(node, rank, -1)
    c.pin(result, [axis], "a vocabulary, told one by one")
    for value in (depth, values):
        c.pin(value, None, "a vocabulary, told one by one")
    for other, dim in zip((a for a in range(rank) if a != axis), c.dims(indices), strict=True):
        c.same(dim, c.dims(result)[other])


register({"TopK": _top_k}, axes=_top_k_axes)
register({"ArgMax": _arg("argmax"), "ArgMin": _arg("argmin")}, axes=_arg_axes)
register({"CumSum": _cumulated("cumsum", 0), "CumProd": _cumulated("cumprod", 1)}, axes=_cumulated_axes)
register({"Compress": _compress}, axes=_compress_axes)
register({"Trilu": _trilu}, axes=_trilu_axes)
register({"OneHot": _one_hot}, axes=_one_hot_axes)
register({"NonZero": lambda torch, node, x: torch.nonzero(x).T.contiguous()}, axes=opaque)
