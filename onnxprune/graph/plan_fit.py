"""Whether the tensors of a plan are of the model that it names: a plan is a file, which anyone could have changed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.errors import InputError, one_line
from onnxprune.graph.axes import Layout
from onnxprune.graph.plan import Plan, Structure


def require(plan: Plan, graph: ir.Graph, structure: Structure) -> None:
    """Refuse tensors that belong to nothing in the graph, or are of other shapes.

    Raises:
        InputError: names the first.
        UsageError: a branch that the model does not have.
    """
    for name, array in plan.weights.items():
        value = graph.initializers.get(name)
        _same("weight", name, array, None if value is None or value.const_value is None else value.const_value.shape)
    for name, array in plan.intercepts.items():
        _same("intercept", name, array, _sizes(structure, name)[-1:] or None)
    for name, array in plan.rests.items():
        sizes = _sizes(structure, structure.branch(name).value)
        meets = zip(array.shape[::-1], sizes[::-1], strict=False)  # what stands for a branch is broadcast
        fits = 0 < array.ndim <= len(sizes) and all(own in (1, size) for own, size in meets)
        _same("rest", name, array, array.shape if fits else sizes)
    for name, array in plan.maps.items():
        branch = structure.branch(name)
        ends = [_sizes(structure, value)[-1:] for value in (branch.skip, branch.value)]
        _same("map", name, array, (1 + ends[0][0], ends[1][0]) if all(ends) else None)
    for kind, held in (("sparsity", plan.sparsity), ("tiles", plan.tiles)):
        _known(kind, held, graph)


def _same(kind: str, name: str, array: np.ndarray, shape: object) -> None:
    told = f"the plan's {kind} of {one_line(name, 80)}"
    if shape is None:
        raise InputError(f"{told} belongs to nothing in the model: the plan was changed; make it anew")
    wanted = tuple(shape)  # type: ignore[arg-type, var-annotated]
    if tuple(array.shape) != wanted or not (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
        raise InputError(
            f"{told} is {array.dtype} {list(array.shape)} where the model has {list(wanted)}: the plan was changed; "
            "make it anew"
        )


def _known(kind: str, held: Mapping[str, object], graph: ir.Graph) -> None:
    for name in held:
        if name not in graph.initializers:
            raise InputError(f"the plan's {kind} of {one_line(name, 80)} is of no weight of the model; make it anew")


def _sizes(structure: Structure, value: str) -> tuple[int, ...]:
    """Of a value's axes; none where it is not known."""
    return tuple(_size(structure, layout) for layout in structure.layouts.get(value, ()))


def _size(structure: Structure, layout: Layout) -> int:
    return sum(
        math.prod(structure.sizes[f] if isinstance(f, int) else _size(structure, f) for f in term) for term in layout
    )
