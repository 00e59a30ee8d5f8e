"""Keys and values that the interface keeps: caches that a decoder reads and gives back, one head beside another.

Multiplied head by head with the queries they would pin all heads. Each product gets an index of its own on their head
axis instead: a head's key and value are still computed and handed on, but its query, its scores and what reads its
output may go. Heads that share a key (repeated by Expand) are told apart by the same index; written out, it is put
together with the repetition. Indices that still name everything are taken out again at the end (shared_biases).

States of linear attention are caches, too: what a product of keys and values adds to them is handed on. A cache without
heads (DeepSeek's compressed one) keeps none: they are made of it behind, by a weight or by repeating.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.ops.base import attribute, axis_of, broadcast, operand
from onnxprune.graph.prepare.shared_biases import indexed
from onnxprune.graph.values import constant, dims

_PRODUCTS = ("MatMul", "FusedMatMul")


def index_caches(model: ir.Model) -> None:
    """Put an index of all heads between a cache and each product that reads it.

    Queries get one too where they are cut out of what keys are cut out of, head by head (GPT-NeoX's projection).
    """
    given = _before([v for v in model.graph.outputs if _is_cache(v)], through=True)
    for node in list(model.graph):
        if node.op_type not in _PRODUCTS or any(v is None or v.const_value is not None for v in node.inputs[:2]):
            continue
        if node.outputs[0] in given and _head_by_head(node):
            continue  # a part of what is handed on
        if any(attribute(node, flag, 0) for flag in ("transBatchA", "transBatchB")):
            continue
        for place, value in enumerate(node.inputs[:2]):
            known = dims(value) or ()
            axis = len(known) - 3
            several = axis >= 1 and isinstance(known[axis], int) and known[axis] != 1
            if value is not None and several and _of_interface(value, axis, given):
                reader, operand, heads = _up(node, place, axis)
                source = reader.inputs[operand]
                assert source is not None
                reader.replace_input_with(operand, indexed(model, reader, source, [heads], f"cache_{operand}"))


def _up(node: ir.Node, place: int, axis: int) -> tuple[ir.Node, int, int]:
    """Where to put an index instead of in front of a product: before keys are turned and scaled."""
    while True:
        value = node.inputs[place]
        maker = value.producer() if value is not None else None
        if value is None or maker is None or value.is_graph_output() or len(value.uses()) > 1:
            return node, place, axis
        if maker.op_type == "Transpose" and "perm" in maker.attributes:
            node, place, axis = maker, 0, int(maker.attributes["perm"].as_ints()[axis])
        elif maker.op_type in ("Mul", "Div") and _is_number(maker.inputs[1]):
            node, place = maker, 0
        else:
            return node, place, axis


def _is_number(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.size == 1


def _of_interface(value: ir.Value, axis: int, given: Set[ir.Value]) -> bool:
    """Whether an axis is laid out from one of a tensor that the graph takes or gives, or from what one of those has."""
    heads = (dims(value) or ())[axis]
    shared = any(v in given and heads in (dims(v) or ())[:-1] for v in _before([value]))
    return shared or _from_cache(value, axis)


def _from_cache(value: ir.Value, axis: int) -> bool:
    """Whether an axis of a value is a cache's, rather than made by a weight, or by repeating what has none."""
    pending, seen = [(value, axis)], {(value, axis)}
    while pending:
        value, axis = pending.pop()
        if _is_cache(value):
            return True
        producer = value.producer()
        if producer is None or _ends(producer):
            continue
        found = _axes_before(producer, value, axis)
        if found is None:  # not told which of theirs it is
            if any(_is_cache(v) for v in _before([value])):
                return True
            continue
        pending += [place for place in found if place not in seen]
        seen.update(found)
    return False


def _axes_before(node: ir.Node, value: ir.Value, axis: int) -> list[tuple[ir.Value, int]] | None:
    """The operands that have an axis of what a node gives, and which of theirs it is; None where that is not told."""
    operator = ops.lookup(node)
    rank = len(dims(value) or ())
    sources = [v for v in node.inputs if v is not None and v.dtype == value.dtype]
    ranks = [len(dims(v) or ()) for v in sources]
    if node.op_type == "Transpose":
        order = [int(i) for i in attribute(node, "perm", range(rank)[::-1])]
        return [(sources[0], order[axis])]
    if node.op_type == "Unsqueeze" and (axes := _inserted(node, rank)) is not None:
        return [] if axis in axes else [(sources[0], axis - sum(a < axis for a in axes))]
    if node.op_type in ("Concat", "Split") and axis_of(node, rank, 0) != axis:
        return [(v, axis) for v in sources]
    if node.op_type == "Expand" or (operator is not None and operator.axes is broadcast):
        places = [(v, axis - rank + own) for v, own in zip(sources, ranks, strict=True)]
        return [(v, a) for v, a in places if a >= 0 and (dims(v) or ())[a] != 1]
    return None


def _inserted(node: ir.Node, rank: int) -> list[int] | None:
    """The axes that an Unsqueeze puts in, where they are written out."""
    axes = operand(node, 1)
    found = attribute(node, "axes") if axes is None else None if axes.const_value is None else axes.const_value.numpy()
    return None if found is None else [int(a) % rank for a in found]


def _before(values: Sequence[ir.Value], *, through: bool = False) -> set[ir.Value]:
    """Values, and those of their type that they are made of; no product lies between.

    Args:
        through: products head by head of what is not weights do.
    """
    pending, seen = list(values), set(values)
    while pending:
        value = pending.pop()
        producer = value.producer()
        if producer is None or (_ends(producer) and not (through and _head_by_head(producer))):
            continue
        found = [v for v in producer.inputs if v is not None and v.dtype == value.dtype and v not in seen]
        seen.update(found)
        pending += found
    return seen


def _ends(node: ir.Node) -> bool:
    """Whether what a node gives is not laid out from what it reads: a product, or numbers about it."""
    operator = ops.lookup(node)
    return operator is None or operator.macs is not None or node.op_type in _NUMBERS


def _head_by_head(node: ir.Node) -> bool:
    """Whether a node multiplies two activations for each of a known number of heads."""
    if node.op_type not in _PRODUCTS or any(v is None or v.const_value is not None for v in node.inputs[:2]):
        return False
    shapes = [dims(v) or () for v in (*node.inputs[:2], node.outputs[0])]
    heads = {shape[-3] if len(shape) > 3 else None for shape in shapes}
    return len(heads) == 1 and heads.isdisjoint({None, 1}) and all(isinstance(h, int) for h in heads)


_NUMBERS = ("Softmax", "Shape", "Size")
"""What these give is no longer the tensor that they read."""


def _is_cache(value: ir.Value) -> bool:
    shape = dims(value) or ()
    stated = value.is_graph_output() or (value.is_graph_input() and not value.is_initializer())
    return stated and len(shape) > 2


def join_repeats(model: ir.Model) -> bool:
    """Read the heads that an index names from the cache itself: repeating all of it first is work for nothing.

    Returns:
        whether there were any.
    """
    joined = False
    for node in list(model.graph):
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        indices, found = node.inputs[1], _repeated(node.inputs[0])
        if found is None or indices is None or indices.const_value is None or attribute(node, "axis", 0) != found[1]:
            continue
        source, _, times = found
        names = indices.const_value.numpy() // times
        node.replace_input_with(0, source)
        node.replace_input_with(1, constant(model, names.astype(np.int64), f"{node.name}_heads"))
        joined = True
    return joined


def _repeated(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """(source, axis, n) of a value that is `source` with each index of an axis repeated n times in a row."""
    steps = [value.producer()]
    for kind in ("Reshape", "Expand"):
        last = steps[-1]
        if last is None or last.op_type != kind or last.inputs[0] is None or last.outputs[0].is_graph_output():
            return None
        steps.append(last.inputs[0].producer())
    reshape, expand, unsqueeze = steps
    if unsqueeze is None or unsqueeze.op_type not in ("Unsqueeze", "Reshape") or expand is None:
        return None
    source, before = unsqueeze.inputs[0], dims(unsqueeze.inputs[0])
    narrow, wide, after = (dims(v) for v in (expand.inputs[0], expand.outputs[0], value))
    if source is None or before is None or narrow is None or wide is None or after is None or reshape is None:
        return None
    grown = [i for i, (a, b) in enumerate(zip(narrow, wide, strict=False)) if a != b]
    if len(grown) != 1 or len(narrow) != len(wide) or len(before) != len(after):
        return None
    axis, times = grown[0] - 1, wide[grown[0]]
    heads = before[axis] if axis >= 0 else None
    if not isinstance(times, int) or not isinstance(heads, int):
        return None
    split = (*before[: axis + 1], 1, *before[axis + 1 :])
    joined = (*before[:axis], heads * times, *before[axis + 1 :])
    return (source, axis, times) if narrow == split and after == joined else None
