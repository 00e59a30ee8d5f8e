"""What single weights are worth, for masks: SEVEN's or PLATON's scores, at once or in steps of the cubic schedule.

In steps (`seven-dyn`), the weights of least worth go first, more and more of what the pattern takes away, and what is
left is scored anew in between; weights do not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.linear_layers import Linear
from onnxprune.probe.forward import Rows
from onnxprune.probe.gates import Gates
from onnxprune.probe.weight_gradients import seen_through, weight_scores
from onnxprune.refit.solvers import Pattern
from onnxprune.refit.solvers.admm import partly
from onnxprune.refit.solvers.schedule import way
from onnxprune.refit.sparsify import parts_of
from onnxprune.score import Platon, Seven

STEPS = 4


def worth(
    name: str, gates: Gates, rows: Rows, plan: Plan, linears: Sequence[Linear], pattern: Pattern,
    alpha: tuple[float, float], seed: int = 0,
) -> Mapping[str, np.ndarray]:  # fmt: skip
    """Initializer name -> worth of every weight, in its own shape; the mask is what keeps the most of it.

    Args:
        name: one of config.MASKS.
        alpha: SEVEN's decays.
    """
    scored = Platon(weights=True) if name == "platon" else Seven(*alpha, weights=True)
    names = [x.weight for x in linears]
    steps = STEPS if name == "seven-dyn" else 1
    found: dict[str, np.ndarray] = {}
    for step in range(steps):
        seen = seen_through(rows, gates.gated(plan))
        found = weight_scores(seen, names, scored.accumulator, seed=seed + step)
        if step + 1 == steps:
            break
        weights = dict(plan.weights)
        for part in parts_of(gates, plan, linears):
            scores = part.take(found[part.linear.weight]).astype(np.float64)
            array = gates.weight(plan, part.linear.weight)
            mask = partly(pattern.learn(scores).project(scores), scores, way(step, steps))
            weights[part.linear.weight] = part.put(part.take(array) * mask, array)
        plan = replace(plan, weights=weights)
    return found
