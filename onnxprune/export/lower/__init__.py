"""A graph for a provider: what it lacks is replaced by what it has, and what stands in its way is moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune.export.lower.builder import Builder, scalar_of
from onnxprune.export.lower.equivalents import RULES
from onnxprune.graph import prepare
from onnxprune.graph.values import constant, dims

_ROUNDS = 6
MASKED = -100.0
"""What an attention mask adds where it hides: e^−100 is nothing, and half or 16-bit integers can hold it."""
_HUGE = -1e3


def lower(model: ir.Model, supported: Collection[str]) -> Counter[str]:
    """Replace operators that are not among `supported`, in place, wherever the table knows a form that is.

    Args:
        supported: operator names of the default domain.

    Returns:
        How many nodes of each operator were replaced.
    """
    reachable = _reachable(frozenset(supported))
    done: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        changed = False
        for node in list(model.graph):
            if node.graph is None or (node.op_type in supported and node.domain in ("", "ai.onnx")):
                continue
            for rule in RULES.get(node.op_type, ()):
                builder = Builder(model, node)
                if rule.needs <= reachable and (value := rule.build(builder)) is not None:
                    builder.take_over(value)
                    done[node.op_type] += 1
                    changed = True
                    break
        if not changed:
            break
        _refresh(model)
    return done


def _reachable(supported: frozenset[str]) -> frozenset[str]:
    """What is supported, and what can be written with it."""
    found = set(supported)
    while new := {op for op, rules in RULES.items() if op not in found and any(r.needs <= found for r in rules)}:
        found |= new
    return frozenset(found)


def _refresh(model: ir.Model) -> None:
    passes.RemoveUnusedNodesPass()(model)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]
    model.graph.meta.pop("onnxprune.names", None)
    prepare.stamp(model)
    prepare.infer(model)


def finite_masks(model: ir.Model) -> int:
    """Write −100 where a mask adds −10,000, the lowest float or −∞ to attention scores; returns how many were.

    In half precision those overflow, and in a quantised tensor they leave one step for everything else. A number is a
    mask's where a Softmax adds it up: the way from it leads through arithmetic alone.
    """
    found = 0
    for value in list(model.graph.initializers.values()):
        number = scalar_of(value)
        if number is None or not number <= _HUGE or value.dtype is None or not value.dtype.is_floating_point():
            continue
        for node, index in list(value.uses()):
            if _hides(node, index) and _reaches_softmax(node):
                low = np.full(() if value.shape is None else value.shape.numpy(), MASKED, value.dtype.numpy())
                small = constant(model, low, f"{value.name}_finite")
                node.replace_input_with(index, small)
                found += 1
    _refresh(model)
    return found


def _hides(node: ir.Node, index: int) -> bool:
    return (node.op_type == "Where" and index in (1, 2)) or node.op_type == "Mul"


_ON_THE_WAY = frozenset((
    "Add", "Where", "Mul", "Sub", "Cast", "Unsqueeze", "Expand", "Reshape", "Identity", "Min", "Max", "Transpose",
    "Slice", "Concat",
))  # fmt: skip


def _reaches_softmax(node: ir.Node) -> bool:
    seen, todo = {node}, [node]
    while todo:
        for reader, _ in todo.pop().outputs[0].uses():
            if reader.op_type == "Softmax":
                return True
            if reader.op_type in _ON_THE_WAY and reader not in seen:
                seen.add(reader)
                todo.append(reader)
    return False


_MOVES = frozenset({"Unsqueeze", "Squeeze", "Expand", "Reshape", "Transpose", "Identity"})


def narrow_integers(model: ir.Model) -> int:
    """Read 64-bit inputs as what a mobile provider can hold; returns how many uses changed.

    Indices of a Gather become 32-bit, and a Cast to float moves up through movements to the input it reads.
    """
    changed = _raise_casts(model)
    narrow: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        index = node.inputs[1] if node.op_type == "Gather" else None  # a GatherND has 64-bit indices only
        if index is None or index.const_value is not None or index.dtype != ir.DataType.INT64:
            continue
        if index not in narrow:
            narrow[index] = Builder(model, node).cast(index, ir.DataType.INT32)
        node.replace_input_with(1, narrow[index])
        changed += 1
    _refresh(model)
    return changed


def _raise_casts(model: ir.Model) -> int:
    """`Cast(Move(x))` becomes `Move(Cast(x))`, again and again."""
    raised = 0
    queue = [n for n in model.graph if n.op_type == "Cast"]
    while queue:
        node = queue.pop()
        source = node.inputs[0]
        move = source.producer() if source is not None else None
        if (
            move is None
            or source is None
            or move.op_type not in _MOVES
            or len(source.uses()) != 1
            or source.is_graph_output()
        ):
            continue
        value = move.inputs[0]
        assert value is not None
        builder = Builder(model, move)
        earlier = builder.op("Cast", value, dtype=node.outputs[0].dtype, to=node.attributes["to"].as_int())
        earlier.shape = None if dims(value) is None else ir.Shape(dims(value) or ())
        move.replace_input_with(0, earlier)
        source.type = node.outputs[0].type
        Builder(model, node).take_over(source)
        producer = earlier.producer()
        assert producer is not None
        queue.append(producer)
        raised += 1
    return raised
