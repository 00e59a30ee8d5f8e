"""Reductions. Sums read their axis as a contraction does, of squares and of magnitudes, too: what is gone and what is
zero are one. Every other one pins it: a mean counts its elements, an extreme may be the zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxprune.graph.ops.base import Constraints, attribute, register
from onnxprune.graph.ops.layout import integers

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")


def _listed(node: Any, rank: int, operand: Any) -> list[int] | None:
    """Reduced axes from the front; None where nothing is reduced (`noop_with_empty_axes`)."""
    axes = attribute(node, "axes") if operand is None else operand
    if axes is None or len(axes) == 0:
        return None if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [int(a) % rank for a in axes]


def _reduction(compute: Any) -> Any:
    def run(torch: Any, node: Any, x: Any, axes: Any = None) -> Any:
        listed = _listed(node, x.dim(), None if axes is None else integers(torch, axes))
        if not listed:
            return x
        return compute(torch, x, tuple(listed), bool(attribute(node, "keepdims", 1))).to(x.dtype)

    return run


def _real(compute: Any) -> Any:
    """Torch has means, roots and logarithms of floating-point numbers only."""
    return lambda torch, x, axes, keep: compute(torch, x if x.is_floating_point() else x.double(), axes, keep)


def _prod(torch: Any, x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(name: str) -> Any:
    def compute(torch: Any, x: Any, axes: tuple[int, ...], keep: bool) -> Any:
        if all(x.shape[a] for a in axes):
            return getattr(x, name)(axes, keepdim=keep)
        # The extreme of nothing is the other end of the type's range.
        least = name == "amax"
        if x.dtype == torch.bool:
            end: Any = not least
        elif x.is_floating_point():
            end = -math.inf if least else math.inf
        else:
            end = getattr(torch.iinfo(x.dtype), "min" if least else "max")
        kept = [1 if a in axes else n for a, n in enumerate(x.shape) if keep or a not in axes]
        return torch.full(kept, end, dtype=x.dtype, device=x.device)

    return compute


def _axes(node: Any, c: Constraints) -> None:
    source, (result,) = node.inputs[0], node.outputs
    rank = len(c.sizes(source))
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    axes = c.constant(operand)
    if operand is not None and axes is None:
        c.pin(source, None, f"{node.op_type} over computed axes")
        c.pin(result, None, f"{node.op_type} over computed axes")
        return
    listed = _listed(node, rank, None if axes is None else np.ravel(axes)) or []
    keep = attribute(node, "keepdims", 1)
    target = 0
    for axis in range(rank):
        if axis in listed:
            if node.op_type in SUMS:
                c.reads(node, 0, axis)
            else:
                c.pin(source, [axis], f"reduced by {node.op_type}")
            target += bool(keep)
        else:
            c.same(c.dims(source)[axis], c.dims(result)[target])
            target += 1


register(
    {
        "ReduceSum": _reduction(lambda torch, x, a, k: x.sum(a, keepdim=k)),
        "ReduceMean": _reduction(_real(lambda torch, x, a, k: x.mean(a, keepdim=k))),
        "ReduceMax": _reduction(_extreme("amax")),
        "ReduceMin": _reduction(_extreme("amin")),
        "ReduceProd": _reduction(_prod),
        "ReduceL1": _reduction(lambda torch, x, a, k: x.abs().sum(a, keepdim=k)),
        "ReduceL2": _reduction(_real(lambda torch, x, a, k: x.square().sum(a, keepdim=k).sqrt())),
        "ReduceSumSquare": _reduction(lambda torch, x, a, k: x.square().sum(a, keepdim=k)),
        "ReduceLogSum": _reduction(_real(lambda torch, x, a, k: x.sum(a, keepdim=k).log())),
        "ReduceLogSumExp": _reduction(_real(lambda torch, x, a, k: x.logsumexp(a, keepdim=k))),
    },
    axes=_axes,
)
