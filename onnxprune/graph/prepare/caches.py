"""Keys and values that the interface keeps: caches that a decoder reads and gives back, one head beside another.

Multiplied head by head with the queries they would pin all heads. Each product gets an index of its own on their head
axis instead: a head's key and value are still computed and handed on, but its query, its scores and what reads its
output may go. Heads that share a key (repeated by Expand) are told apart by the same index; written out, it is put
together with the repetition. Indices that still name everything are taken out again at the end (shared_biases).
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.ops.base import attribute
from onnxprune.graph.prepare.shared_biases import indexed
from onnxprune.graph.values import constant, dims

_PRODUCTS = ("MatMul", "FusedMatMul")


def index_caches(model: ir.Model) -> None:
    """Put an index of all heads between a cache and each product that reads it.

    Queries get one too where they are cut out of what keys are cut out of, head by head (GPT-NeoX's projection).
    """
    given = _before([v for v in model.graph.outputs if _is_cache(v)])
    for node in list(model.graph):
        if node.op_type not in _PRODUCTS or any(v is None or v.const_value is not None for v in node.inputs[:2]):
            continue
        if any(attribute(node, flag, 0) for flag in ("transBatchA", "transBatchB")):
            continue
        for place, value in enumerate(node.inputs[:2]):
            known = dims(value) or ()
            axis = len(known) - 3
            several = axis >= 1 and isinstance(known[axis], int) and known[axis] != 1
            if value is not None and several and _of_interface(value, known[axis], given):
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


def _of_interface(value: ir.Value, heads: int | str | None, given: Set[ir.Value]) -> bool:
    """Whether a value is laid out from a tensor that the graph takes or gives, or both from one that has its heads."""
    return any(_is_cache(v) or (v in given and heads in (dims(v) or ())[:-1]) for v in _before([value]))


def _before(values: Sequence[ir.Value]) -> set[ir.Value]:
    """Values, and those of their type that they are made of; no product lies between."""
    pending, seen = list(values), set(values)
    while pending:
        value = pending.pop()
        producer = value.producer()
        operator = ops.lookup(producer) if producer is not None else None
        if producer is None or operator is None or operator.macs is not None or producer.op_type in _NUMBERS:
            continue
        found = [v for v in producer.inputs if v is not None and v.dtype == value.dtype and v not in seen]
        seen.update(found)
        pending += found
    return seen


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
