"""A graph in bfloat16 with all of it in single precision, for a provider that lacks kernels of the former.

What is in bfloat16 becomes float32: weights with the same numbers, casts, and what goes in and comes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
_EMBEDDED = 1 << 30
"""Bytes of weights up to which a file holds them itself."""
_TYPES = ("to", "dtype", "output_dtype", "stash_type")
"""Attributes that name an element type."""


def widened(model: str | os.PathLike[str] | bytes, folder: Path) -> Path | None:
    """Write a graph in single precision to a file in a folder; None where nothing of it is in bfloat16.

    Args:
        model: a file, or a serialised model.
    """
    read = _read(model)
    nodes = [*read.graph.all_nodes(), *(n for f in read.functions.values() for n in f.all_nodes())]
    graphs = [read.graph, *(body for node in nodes for body in _bodies(node))]
    values = [v for g in graphs for v in (*g.inputs, *g.outputs, *g.initializers.values())]
    values += [v for node in nodes for v in node.outputs]
    narrow = [v for v in dict.fromkeys(values) if v.dtype == _NARROW]
    changed = [_widen(node) for node in nodes]
    if not narrow and not any(changed):
        return None
    for value in narrow:
        value.dtype = _WIDE
        if value.const_value is not None:
            value.const_value = _wide(value.const_value)
    file = folder / "widened.onnx"
    size = sum(v.const_value.nbytes for v in read.graph.initializers.values() if v.const_value is not None)
    ir.save(read, file, external_data=f"{file.name}.data" if size > _EMBEDDED else None)
    return file


def _read(model: str | os.PathLike[str] | bytes) -> ir.Model:
    if not isinstance(model, bytes):
        return ir.load(model)
    import onnx

    return ir.from_proto(onnx.load_from_string(model))


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _widen(node: ir.Node) -> bool:
    """Let a node's attributes name and hold single precision; whether they were otherwise."""
    changed = False
    for name, attribute in list(node.attributes.items()):
        if name in _TYPES and attribute.value == int(_NARROW):
            node.attributes[name] = ir.AttrInt64(name, int(_WIDE))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _NARROW:
            node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
        else:
            continue
        changed = True
    return changed


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same numbers in single precision, made when they are read."""

    def made() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(made, _WIDE, ir.Shape(tensor.shape.numpy()), name=tensor.name)
