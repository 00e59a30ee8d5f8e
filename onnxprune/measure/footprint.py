"""What a graph takes of memory on rows of some size, and the refusal, with figures, of what cannot fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import LimitError
from onnxprune.graph import memory
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.memory import shown
from onnxprune.graph.model import Model
from onnxprune.graph.nested import reads
from onnxprune.graph.values import dims


@dataclass(frozen=True)
class Footprint:
    """Bytes of a forward pass, node by node, each value let go behind its last reader.

    Attributes:
        activations: the most that values take at one time.
        weights: all initializers.
        largest: of these, the one that takes most.
        node: where the most is taken, for messages.
    """

    activations: int
    weights: int
    largest: int
    node: str


def footprint(model: Model, sizes: Mapping[str, int]) -> Footprint:
    """What a forward pass takes.

    Args:
        sizes: of the graph's symbolic dimensions; a value that they do not size counts nothing.
    """
    order = list(model.graph)
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(order):
        for value in (*reads(node), *node.outputs):
            if value is not None:
                last[value] = i
    for value in model.graph.outputs:
        last[value] = len(order)
    held = {v: _bytes(v, sizes) for v in model.graph.inputs if not v.is_initializer()}
    now = sum(held.values())
    most, where = now, "the inputs"
    gone: dict[int, list[ir.Value]] = {}
    for value, i in last.items():
        gone.setdefault(i, []).append(value)
    for i, node in enumerate(order):
        for value in node.outputs:
            held[value] = _bytes(value, sizes)
            now += held[value]
        if now > most:
            most, where = now, f"node {node.name} ({node.op_type})"
        for value in gone.get(i, ()):
            now -= held.pop(value, 0)
    weights = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None]
    return Footprint(most, sum(weights), max(weights, default=0), where)


def side_by_side(model: Model, batches: Sequence[Mapping[str, np.ndarray]]) -> list[list[Mapping[str, np.ndarray]]]:
    """Batches in groups that go through a graph together: each alone where all weights are held, several where they
    are read anew for each pass, as many as take no more than a share of memory at once."""
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights <= memory.share():
        return [[feeds] for feeds in batches]
    groups: list[list[Mapping[str, np.ndarray]]] = []
    taken = 0
    for feeds in batches:
        own = footprint(model, sizes_of(model, feeds)).activations
        if not groups or taken + own > memory.small_share():
            groups.append([])
            taken = 0
        groups[-1].append(feeds)
        taken += own
    return groups


def sizes_of(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What feeds make of the graph's symbolic dimensions."""
    return {
        dim: size
        for spec in model.inputs
        if spec.name in feeds
        for dim, size in zip(spec.shape, np.shape(feeds[spec.name]), strict=False)
        if isinstance(dim, str)
    }


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    try:
        found = [0 if d is None else evaluate(d, sizes) for d in dims(value) or (0,)]
        bits = 8 if value.dtype is None or value.dtype == ir.DataType.STRING else value.dtype.bitwidth
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return 0
    return max(math.prod(found), 0) * bits // 8


def require(model: Model, sizes: Mapping[str, int], where: str, *, weights: bool) -> None:
    """Refuse what cannot fit before anything is computed.

    Args:
        sizes: of the symbolic dimensions.
        where: what has these sizes, for the message: "rows.jsonl:7".
        weights: whether weights are in memory, too: all of them, or what is held of them at once where they are many.

    Raises:
        LimitError: it takes more than was stated (`memory.limited`), or else than is free.
    """
    most = memory.available()
    found = footprint(model, sizes)
    held = min(found.weights, max(memory.share(), found.largest)) if weights else 0
    # What is free is beside the libraries, which are loaded by now; what was stated is for them, too.
    libraries = memory.LIBRARIES if memory.stated() else 0
    total = libraries + held + found.activations
    if most is not None and total > most:
        shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
        parts = [f"{shown(held)} for weights"] * bool(held) + [f"{shown(found.activations)} for values"]
        parts = [f"{shown(libraries)} of it for the libraries"] * bool(libraries) + parts
        may = f"{shown(most)} may be used (--max-memory)" if memory.stated() else f"{shown(most)} are free"
        way = "shorten it with --max-length or --shape, or leave it out"
        if libraries + held >= most:
            way = "give --max-memory more"
        raise LimitError(
            f"{where}{f' ({shape})' if shape else ''} takes {shown(total)} of memory, {', '.join(parts)}, "
            f"most at {found.node}; {may}: {way}"
        )
