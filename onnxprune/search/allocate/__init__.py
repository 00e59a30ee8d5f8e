"""Allocation of a budget over modules; numpy only, and handed `evaluate(plan)`, never a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxprune.refit.solvers.chance import surely_lower
from onnxprune.refit.solvers.schedule import cubic, stages
from onnxprune.search.allocate.choices import Allocation, Evaluate, Level, Module, Prices, cost_of, damage_of
from onnxprune.search.allocate.coupled import tabled
from onnxprune.search.allocate.knapsack import allocate, knapsack
from onnxprune.search.allocate.rank import Kept, Kind, rank, rank_pair
from onnxprune.search.allocate.swaps import Swap, Swapped, swaps

ALLOCATIONS: dict[str, Callable[[Sequence[Module], float, Prices, float | None], dict[str, int]]] = {
    "table": tabled,
}
"""What `--search` names beside "rank": allocate(modules, budget, prices, fixed) -> level by module, with `fixed` what
stays of the cost at every module's cheapest level; None where costs do not add up."""

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Evaluate",
    "Kept",
    "Kind",
    "Level",
    "Module",
    "Swap",
    "Swapped",
    "allocate",
    "cost_of",
    "cubic",
    "damage_of",
    "knapsack",
    "rank",
    "rank_pair",
    "stages",
    "surely_lower",
    "swaps",
]
