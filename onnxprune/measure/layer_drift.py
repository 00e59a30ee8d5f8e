"""How far the residual stream moves, block by block: where in the model what was cut makes itself felt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.data import Dataset
from onnxprune.graph.plan import Plan, Structure
from onnxprune.measure.drift import real_part
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.forward import forward
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.trajectory import boundaries

ROWS = 16
"""Rows that are run; of a stream's size and difference they tell as much as hundreds."""
_TOKENS = 1024
"""The most tokens that run at once: the streams of all blocks are held for them."""
_TOGETHER = 4
"""The most rows that do."""


@dataclass(frozen=True)
class LayerDrift:
    """What is different behind one block.

    Attributes:
        block: the branch that is added there, as in the plan.
        node: the node that adds it.
        difference: norm of the difference of the streams, relative to the norm of the dense one, over all rows.
        dropped: whether the block itself is gone.
    """

    block: str
    node: str
    difference: float
    dropped: bool = False


def layer_drift(
    interpreter: Interpreter, structure: Structure, plan: Plan, rows: Dataset, seed: int = 0
) -> tuple[LayerDrift, ...]:
    """The difference behind every residual block, in graph order; nothing for a graph without any.

    Args:
        interpreter: of the dense graph; the plan is gated on it, which is what the written file computes.
        plan: complete.
        rows: some are drawn, by `seed`.
    """
    ends = boundaries(interpreter.graph, structure)
    if not ends:
        return ()
    state = Gates(structure, interpreter).gated(plan)
    names = list(dict.fromkeys(end.value for end in ends))
    apart, size = (dict.fromkeys(names, 0.0) for _ in range(2))
    for batch in rows.take(ROWS, seed).batches(max_rows=_TOGETHER, max_tokens=_TOKENS):
        dense = forward(interpreter, batch.feeds, names)
        moved = forward(interpreter, batch.feeds, names, state)
        for name in names:
            before, after = (real_part(to_numpy(found.pop(name), single=True), batch.real) for found in (dense, moved))
            apart[name] += float(np.square(after - before).sum())
            size[name] += float(np.square(before).sum())
    adds = {branch.id: branch.add for branch in structure.branches}
    gone = set(plan.drop)
    return _ordered([
        LayerDrift(end.branch, adds[end.branch], float(np.sqrt(apart[end.value] / size[end.value])), end.branch in gone)
        for end in ends
        if size[end.value] > 0
    ])  # fmt: skip


def _ordered(found: Sequence[LayerDrift]) -> tuple[LayerDrift, ...]:
    """Finite ones, each node once (two branches may end in one sum)."""
    return tuple({one.node: one for one in found if np.isfinite(one.difference)}.values())
