"""Operators that make tensors out of shapes and numbers. What they read is a shape, so a cut must not reach it."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, opaque, register
from onnxprune.graph.ops.elementwise import torch_dtype
from onnxprune.graph.ops.layout import integers, number, written
from onnxprune.graph.values import dims


def _shape(torch: Any, node: Any, x: Any) -> Any:
    dims = list(x.shape)[slice(attribute(node, "start", 0), attribute(node, "end"))]
    return torch.tensor(dims, dtype=torch.int64)


def _shape_axes(node: Any, c: Constraints) -> None:
    """A size read at run time: single fixed dimensions were folded at load, so what is left reads the others.

    Where readers pick dimensions by constant index, however often, it is known which; else all of them are read.
    """
    (source,), (result,) = node.inputs, node.outputs
    rank = len(c.sizes(source))
    start = attribute(node, "start", 0) % max(rank, 1)
    read = _read(result, c, c.sizes(result)[0])
    c.pin(source, sorted(start + i for i in read), "its size is read at run time")


def _read(vector: Any, c: Constraints, count: int) -> set[int]:
    """The positions of a vector of `count` sizes that something uses."""
    read: set[int] = set()
    for reader, index in vector.uses():
        if reader.op_type == "Concat" and (place := _place(reader, index)) is not None:
            start, total = place
            read |= {i - start for i in _read(reader.outputs[0], c, total) if start <= i < start + count}
            continue
        picked = _picked(reader, index, c, count)
        if picked is None or vector.is_graph_output():
            return set(range(count))
        chosen = reader.outputs[0]
        passed_on = len(picked) > 1 and not chosen.is_graph_output()
        read |= {picked[i] for i in _read(chosen, c, len(picked))} if passed_on else set(picked)
    return set(range(count)) if vector.is_graph_output() else read


def _place(concat: Any, index: int) -> tuple[int, int] | None:
    """Where an operand of a Concat of vectors starts in it, and the length of the whole."""
    lengths = [dims(v) for v in concat.inputs]
    if not all(found is not None and len(found) == 1 and isinstance(found[0], int) for found in lengths):
        return None
    counts = [int(found[0]) for found in lengths if found is not None and found[0] is not None]
    return sum(counts[:index]), sum(counts)


def _picked(reader: Any, index: int, c: Constraints, count: int) -> list[int] | None:
    """The positions that a Gather or Slice by constants takes of a vector, in its order."""
    found = [c.constant(v) for v in reader.inputs[1:]]
    operands = [o for o in found if o is not None]
    if index != 0 or len(operands) < len(found) or not operands:
        return None
    if reader.op_type == "Gather":
        return [int(i) % count for i in np.ravel(operands[0])]
    if reader.op_type == "Slice":
        step = int(operands[3][0]) if len(operands) > 3 else 1
        return list(range(count)[int(operands[0][0]) : int(operands[1][0]) : step])
    return None


register({"Shape": _shape}, axes=_shape_axes)


def _tensor(torch: Any, held: Any) -> Any:
    tensor = held.as_tensor()
    if tensor.dtype.name == "BFLOAT16":
        return torch.from_numpy(tensor.numpy().astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(tensor.numpy()))


def _constant(torch: Any, node: Any) -> Any:
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            return torch.tensor(attribute(node, name), dtype=torch.float32 if "float" in name else torch.int64)
    if "value" not in node.attributes:
        raise NotImplementedError("a Constant of strings, or a sparse one")
    return _tensor(torch, node.attributes["value"])


def _constant_of_shape(torch: Any, node: Any, shape: Any) -> Any:
    found = node.attributes.get("value")
    fill = torch.zeros(()) if found is None else _tensor(torch, found).reshape(())
    return torch.full(integers(torch, shape), fill.item(), dtype=fill.dtype)


def _constant_of_shape_axes(node: Any, c: Constraints) -> None:
    """One number everywhere: whatever reads it decides how large it is, where its size stands in the file."""
    (result,) = node.outputs
    sizes = written(node.inputs[0])
    computed = [axis for axis in range(len(c.sizes(result))) if sizes is None or sizes[axis] is None]
    c.pin(result, computed, "as large as is computed at run time")


def _constant_of_shape_resize(node: Any, s: Sizes) -> Change:
    (result,) = node.outputs
    sizes = written(node.inputs[0]) or []
    numbers = ((axis, size) for axis, size in enumerate(sizes) if size is not None and s.changed(result, axis))
    return Change(elements={0: {axis: number(s, result, axis, size) for axis, size in numbers}})


register({"ConstantOfShape": _constant_of_shape}, axes=_constant_of_shape_axes, resize=_constant_of_shape_resize)


def _range(torch: Any, node: Any, start: Any, limit: Any, delta: Any) -> Any:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _eye_like(torch: Any, node: Any, x: Any) -> Any:
    dtype = attribute(node, "dtype")
    rows, columns = x.shape
    column = torch.arange(columns)[None] - attribute(node, "k", 0)
    return (torch.arange(rows)[:, None] == column).to(x.dtype if dtype is None else torch_dtype(torch, dtype))


register(
    {
        "Size": lambda torch, node, x: torch.tensor(x.numel(), dtype=torch.int64),
        "Constant": _constant,
        "Range": _range,
        "EyeLike": _eye_like,
    },
    axes=opaque,
)
