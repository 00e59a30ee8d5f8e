"""What an allocation leaves of its budget, spent: nothing is cut that the budget does not ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.search.allocate.choices import Allocation, Module, Prices

STEPS = 4096
"""Changes after which it is enough, whatever is left."""


def fill(modules: Sequence[Module], start: Allocation, budget: float, prices: Prices) -> dict[str, int]:
    """Raises modules while the budget holds it: where damage falls most for its cost first, then where it is the same.

    Args:
        start: within the budget.
        budget: in the prices' unit.
    """
    state = {m.id: int(start[m.id]) for m in modules}
    for _ in range(STEPS):
        now, best = prices.total(state), None
        for module in modules:
            found = _raised(module, state, now, budget, prices)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
        if best is None:
            return state
        state[best[1]] = best[2]
    return state


def _raised(
    module: Module, state: Allocation, now: float, budget: float, prices: Prices
) -> tuple[tuple[float, float], str, int] | None:
    """((fall of damage per cost, cost), module, level) of a module's best rise that the budget holds; None for none."""
    at = module.levels[state[module.id]]
    better = [
        k for k, x in enumerate(module.levels) if x.damage < at.damage or (x.damage == at.damage and x.kept > at.kept)
    ]
    if not better:
        return None
    costs = prices.levels(module.id, state)
    held = [k for k in better if costs[k] <= budget and costs[k] >= now]
    if not held:
        return None

    def worth(level: int) -> tuple[float, float]:
        fall, cost = at.damage - module.levels[level].damage, float(costs[level] - now)
        return (math.inf if cost <= 0 and fall > 0 else fall / max(cost, 1e-300) if fall > 0 else 0.0), cost

    for level in sorted(held, key=worth, reverse=True):
        # What the whole costs decides, not a sum of differences.
        if prices.total({**state, module.id: level}) <= budget:
            return worth(level), module.id, level
    return None


def widest_first(module: Module) -> list[int]:
    """A module's levels by the units they keep, most first."""
    kept = np.array([level.kept for level in module.levels])
    return [int(k) for k in np.argsort(-kept, kind="stable")]
