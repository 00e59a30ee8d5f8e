"""Allocation of a budget over modules; numpy only, and handed `evaluate(plan)`, never a model."""

from __future__ import annotations

from onnxprune.search.chance import surely_lower
from onnxprune.search.knapsack import allocate, knapsack
from onnxprune.search.module import Allocation, Evaluate, Level, Module, cost_of, damage_of
from onnxprune.search.rank import Kept, Kind, rank, rank_pair
from onnxprune.search.schedule import cubic, stages
from onnxprune.search.swaps import Swap, Swapped, swaps

__all__ = [
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
