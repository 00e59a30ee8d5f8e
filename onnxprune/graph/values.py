"""A graph's values: the shape that is known of one, and new constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

ASIDE = "onnxprune.type"
"""Where a value has a type that is put aside (`intake.maps`), serialised."""


def is_map(value: ir.Value) -> bool:
    """Whether a value is a map, or a sequence of maps: ZipMap's."""
    return ASIDE in value.meta


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """A value's inferred shape; symbols as strings, None for what is unknown.

    The shape that the user's file declares for a graph output stays on the value; what inference found is beside it.
    """
    if value is None:
        return None
    shape = value.meta.get("onnxprune.shape", value.shape)
    return None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)


def numeric_outputs(graph: ir.Graph) -> list[str]:
    """Names of the outputs that hold numbers: labels written out as text, or maps of them, follow from one of these."""
    return [
        v.name or ""
        for v in graph.outputs
        if v.dtype != ir.DataType.STRING and (v.type is None or isinstance(v.type, ir.TensorType)) and not is_map(v)
    ]


def constant(model: ir.Model, array: Any, name: str, graph: ir.Graph | None = None) -> ir.Value:
    """A new initializer (named after `name`, made unique); `array` is a numpy array or an onnx_ir tensor."""
    graph = model.graph
    unique, count = name, 0
    while unique in graph.initializers or unique in _value_names(model):
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.Tensor(array, name=unique) if isinstance(array, np.ndarray) else array
    value = ir.Value(name=unique, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


_NAMES = "onnxprune.names"


def _value_names(model: ir.Model) -> set[str]:
    cached: set[str] | None = model.graph.meta.get(_NAMES)
    if cached is None:
        cached = {v.name or "" for n in model.graph.all_nodes() for v in n.outputs}
        cached |= {v.name or "" for v in model.graph.inputs}
        model.graph.meta[_NAMES] = cached
    return cached


def hand_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` is read, under its name where it is an output of the graph."""
    stated = old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if stated:
        name, old.name = old.name, None
        new.name = name
        new.metadata_props.update(old.metadata_props)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be what `old` was: its name, type and shape, what is noted of it, and whoever reads it."""
    new.shape, new.type = old.shape, old.type
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name


def succeed(node: ir.Node, made: Sequence[ir.Node]) -> None:
    """Put nodes in another's place; the last of them gives what it gave, and the node goes."""
    assert node.graph is not None
    node.prepend(made)
    for old, new in zip(node.outputs, made[-1].outputs, strict=False):
        take_over(old, new)
    node.graph.remove(node, safe=True)


def is_matrix(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a tensor is there and has two axes or more of several indices."""
    return tensor is not None and sum(size != 1 for size in tensor.shape.numpy()) > 1


def forget_names(graph: ir.Graph) -> None:
    """Let the names of a graph's values be looked up anew: they were given without `constant`."""
    graph.meta.pop(_NAMES, None)
