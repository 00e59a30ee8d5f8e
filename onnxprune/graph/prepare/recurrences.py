"""Recurrences as exporters write them, in a form whose hidden units can be told apart.

PyTorch makes one tensor of zeros for the first states of all layers, which would tie their hidden units into one; and
its newer exporter rearranges the gates of every weight when the graph runs.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.ops.recurrent import RECURRENCE

_MOVES = ("Slice", "Concat", "Split", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Identity", "Gather")
"""Operators that put elements elsewhere, and change none."""
_SPREADS = ("Expand", "Tile", "Cast", *_MOVES)
_PARAMETERS = (1, 2, 3, 7)
"""Inputs of a recurrence that are weights: W, R, B and P."""
_STATES = (5, 6)


def fold_weights(model: ir.Model) -> None:
    """Write weights that are put together from constants, however large, as constants."""
    from onnxscript.optimizer import fold_constants

    chosen: set[ir.Node] = set()
    for node in model.graph:
        if is_recurrence(node):
            for index in _PARAMETERS:
                value = node.inputs[index] if index < len(node.inputs) else None
                chosen |= _behind(value) if value is not None else set()
    if chosen:
        fold_constants(model, should_fold=lambda node: True if node in chosen else None)


def is_recurrence(node: ir.Node) -> bool:
    """Whether a node reads its own states, one step after another."""
    operator = ops.lookup(node)
    return operator is not None and operator.states == RECURRENCE


def _behind(value: ir.Value) -> set[ir.Node]:
    """The nodes that make a value out of constants by moving them about; none where it depends on anything else."""
    found: set[ir.Node] = set()
    open_values = [value]
    while open_values:
        current = open_values.pop()
        if current.const_value is not None:
            continue
        producer = current.producer()
        if producer is None or producer.op_type not in _MOVES or producer.domain not in ("", "ai.onnx"):
            return set()
        if producer not in found:
            found.add(producer)
            open_values += [v for v in producer.inputs if v is not None]
    return found


def leave_out_zeros(model: ir.Model) -> None:
    """Leave out first states that are zeros: that is what a recurrence begins with when it is given none."""
    for node in model.graph:
        if not is_recurrence(node):
            continue
        for index in _STATES if node.op_type == "LSTM" else _STATES[:1]:
            state = node.inputs[index] if index < len(node.inputs) else None
            if state is not None and is_zero(state):
                node.replace_input_with(index, None)


def is_zero(value: ir.Value) -> bool:
    """Whether every element is zero, whatever the graph is fed."""
    open_values, seen = [value], set()
    while open_values:
        current = open_values.pop()
        if current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if current.const_value is not None:
            if current.is_graph_input() or current.const_value.numpy().any():
                return False
        elif producer is None or producer.domain not in ("", "ai.onnx"):
            return False
        elif producer.op_type == "ConstantOfShape":
            filled = producer.attributes.get("value")
            if filled is not None and filled.as_tensor().numpy().any():
                return False
        elif producer.op_type in _SPREADS:
            moved = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
            open_values += [v for v in moved if v is not None]
        else:
            return False
    return True
