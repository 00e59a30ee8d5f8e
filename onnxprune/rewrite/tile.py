"""Products in tiles: outputs that share a range of inputs become a smaller dense product of their own.

y = xW, with zeros outside each tile's range, is written as one Slice and one product per tile and a Concat of what they
give: standard operators, so that every provider skips the zeros.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.errors import CheckError, UsageError
from onnxprune.graph import ops
from onnxprune.graph.ops.base import operand
from onnxprune.graph.plan import Plan, Tile
from onnxprune.graph.quantised import Quantised, taken
from onnxprune.graph.values import constant, dims, hand_over

_OURS = re.compile(r"_from\d+to\d+$")
"""Ends of the names of Slices that `products` makes."""


def divisible(node: ir.Node) -> bool:
    """Whether a product with a weight can be written in tiles: a MatMul, or a Gemm with a vector for a bias or none.

    What shares a scale in blocks stays together.
    """
    if any(v is not None and isinstance(v.const_value, Quantised) and v.const_value.parts.block for v in node.inputs):
        return False
    if node.op_type == "MatMul":
        return True
    bias = operand(node, 2)
    vector = bias is None or (bias.const_value is not None and len(bias.const_value.shape) == 1)
    return node.op_type == "Gemm" and not ops.attribute(node, "transA", 0) and vector


def products(model: ir.Model, plan: Plan) -> None:
    """Write every product that the plan has tiles for as its tiles; weights are cut and in order already.

    Raises:
        UsageError: the tiles are not side by side, or reach outside their matrix.
        CheckError: the weight is not zero outside its tiles.
    """
    ranges: dict[tuple[ir.Value, int, int], ir.Value] = {}
    for name, tiles in plan.tiles.items():
        weight = model.graph.initializers.get(name)
        users = [] if weight is None else list(weight.uses())
        if weight is None or len(users) != 1 or not divisible(users[0][0]):
            raise UsageError(f"{name}: the plan has tiles for it, but it is no weight of a product of its own")
        _split(model, users[0][0], name, tiles, ranges)


def _split(
    model: ir.Model,
    node: ir.Node,
    name: str,
    tiles: Sequence[Tile],
    ranges: dict[tuple[ir.Value, int, int], ir.Value],
) -> None:
    """Put tiles in a product's place; `ranges` holds what has been sliced before."""
    source, held, bias = (operand(node, i) for i in range(3))
    assert source is not None and held is not None and held.const_value is not None
    flipped = bool(ops.attribute(node, "transB", 0))
    array = held.const_value.numpy()
    _check(name, tiles, array.T if flipped else array)
    ranges[source, 0, array.shape[1 if flipped else 0]] = source
    made: list[ir.Node] = []
    for i, tile in enumerate(tiles):
        span = (source, tile.start, tile.stop)
        if span not in ranges:
            ranges[span] = _slice(model, node, *span)
        rows, columns = np.arange(tile.start, tile.stop), np.arange(tile.first, tile.last)
        block = taken(held.const_value, [(rows, int(flipped)), (columns, 1 - flipped)], f"{name}_tile{i}")
        operands = [ranges[span], constant(model, block, f"{name}_tile{i}")]
        if bias is not None and bias.const_value is not None:
            some = [(columns, 0)] if bias.const_value.size > 1 else []
            operands.append(constant(model, taken(bias.const_value, some, bias.name), f"{bias.name}_tile{i}"))
        made.append(_node(node, node.op_type, operands, f"{node.name}_tile{i}", tile.last - tile.first))
        made[-1].attributes.update(node.attributes)
        made[-1].meta.update(node.meta)
    if len(tiles) > 1:
        parts = [n.outputs[0] for n in made]
        made.append(_node(node, "Concat", parts, f"{node.name}_tiles", tiles[-1].last))
        made[-1].attributes["axis"] = ir.convenience.convert_attribute("axis", _last_axis(source))
    node.prepend(made)
    hand_over(node.outputs[0], made[-1].outputs[0])
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _check(name: str, tiles: Sequence[Tile], matrix: np.ndarray) -> None:
    """That tiles lie side by side on a matrix [inputs, outputs] that is zero elsewhere."""
    ends = [0, *(t.last for t in tiles)]
    inside = all(
        t.first == end < t.last and 0 <= t.start < t.stop <= len(matrix) for t, end in zip(tiles, ends, strict=False)
    )
    if not inside or ends[-1] != matrix.shape[1]:
        raise UsageError(
            f"{name}: the plan's tiles do not fit its {matrix.shape[0]} inputs and {matrix.shape[1]} outputs"
        )
    outside = matrix != 0
    for tile in tiles:
        outside[tile.start : tile.stop, tile.first : tile.last] = False
    if outside.any():
        raise CheckError(f"{name}: {int(outside.sum())} weights lie outside the plan's tiles; they must be zero")


def _slice(model: ir.Model, reader: ir.Node, source: ir.Value, start: int, stop: int) -> ir.Value:
    """A range of a value's last axis, right behind the value: other products may read it too."""
    name = f"{source.name}_from{start}to{stop}"
    places = {"starts": start, "ends": stop, "axes": _last_axis(source)}
    operands = [constant(model, np.array([n], dtype=np.int64), f"{name}_{key}") for key, n in places.items()]
    made = _node(reader, "Slice", [source, *operands], name, stop - start, source)
    producer = source.producer()
    if producer is not None:
        producer.append(made)
    else:
        model.graph.insert_before(model.graph[0], made)
    return made.outputs[0]


def _node(
    near: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str, size: int, like: ir.Value | None = None
) -> ir.Node:
    """A node that gives something of the shape of `like` (of `near`'s output), but `size` wide."""
    made = ir.node(op_type, inputs, name=name, version=near.version)
    shape = (like or near.outputs[0]).shape
    result = made.outputs[0]
    result.name, result.type = f"{name}_output", near.outputs[0].type
    result.shape = None if shape is None else ir.Shape([*shape[:-1], size])
    return made


def _last_axis(value: ir.Value) -> int:
    known = dims(value)
    assert known is not None
    return len(known) - 1


def read_back(graph: ir.Graph, node: str, inputs: int) -> list[tuple[Tile, np.ndarray]]:
    """The tiles that a written graph has for a product, each with its weights [inputs read, outputs].

    Args:
        node: name of the product before it was split.
        inputs: how many there are in all.

    Raises:
        CheckError: they are not there, or not put together in their order.
    """
    nodes = {n.name: n for n in graph}
    parts: list[ir.Node] = []
    while (part := nodes.get(f"{node}_tile{len(parts)}")) is not None:
        parts.append(part)
    joined = nodes.get(f"{node}_tiles")
    if not parts or (len(parts) > 1 and (joined is None or [v and v.producer() for v in joined.inputs] != parts)):
        raise CheckError(f"{node}: the file does not put this product together from its tiles")
    found, end = [], 0
    for part in parts:
        source, held = part.inputs[:2]
        assert source is not None and held is not None and held.const_value is not None
        block = held.const_value.numpy()
        block = block.T if ops.attribute(part, "transB", 0) else block
        start, stop = _range(source, inputs)
        if len(block) != stop - start:
            raise CheckError(f"{part.name}: reads {stop - start} inputs with weights for {len(block)}")
        found.append((Tile(end, end + block.shape[1], start, stop), block))
        end += block.shape[1]
    return found


def _range(source: ir.Value, inputs: int) -> tuple[int, int]:
    """What of its inputs a tile reads: all of them, where no Slice of ours lies before it (but picks of tokens may)."""
    cut = source.producer()
    while cut is not None and cut.op_type in ("Gather", "Slice") and not _OURS.search(cut.name or ""):
        cut = cut.inputs[0].producer() if cut.inputs[0] is not None else None
    if cut is None or cut.op_type != "Slice":
        return 0, inputs
    start, stop = (v.const_value.numpy() for v in cut.inputs[1:3] if v is not None and v.const_value is not None)
    return int(start[0]), int(stop[0])
