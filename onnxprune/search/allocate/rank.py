"""Allocation by unit scores alone: the searches of the papers, with no measurement of whole plans.

`rank_pair` is the search of Kwon et al. (NeurIPS 2022) and OPTIN (ICLR 2024): heads and neurons are ranked apart
over the whole model; for every number of heads the rest of the budget is filled with neurons, and the best sum of
kept scores wins. `rank` takes any number of kinds, by score per cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import BudgetError

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

Kept = dict[str, Ints]
"""Module id -> indices, ascending, of the units that stay."""


@dataclass(frozen=True, eq=False)
class Kind:
    """Units of one kind, comparable with one another.

    Attributes:
        scores: module id -> [units], larger is more worth keeping. Ids differ between kinds.
        cost: of one unit; one number, or one per module id.
        round_to: a module keeps a multiple of this many units, or all it has.
        at_least: units that every module keeps (rounded up to a multiple of `round_to`).
    """

    scores: Mapping[str, npt.NDArray[np.floating]]
    cost: float | Mapping[str, float]
    round_to: int = 1
    at_least: int = 0

    def unit_cost(self, module: str) -> float:
        """The cost of one unit of a module."""
        return float(self.cost[module] if isinstance(self.cost, Mapping) else self.cost)


def rank_pair(first: Kind, second: Kind, budget: float) -> Kept:
    """For every count of `first` units, as many of `second` as the budget then holds; the best sum of kept scores.

    The optimum of that sum where a kind's units all cost the same and scores are not negative.

    Raises:
        BudgetError: the units that must stay cost more than the budget.
    """
    lists = [_Ranked(kind) for kind in (first, second)]
    room = _room(lists, budget)
    a, b = lists
    cost, worth = np.array(a.running_cost), np.array(a.running_score)
    affordable = cost <= room
    cost, worth = cost[affordable], worth[affordable]
    filled = np.searchsorted(b.running_cost, room - cost, side="right") - 1
    best_of_b = np.maximum.accumulate(b.running_score)
    count = int(np.argmax(worth + best_of_b[filled]))
    other = int(np.argmax(b.running_score[: filled[count] + 1]))
    return {**a.kept(range(count)), **b.kept(range(other))}


def rank(kinds: Sequence[Kind], budget: float) -> Kept:
    """Units of all kinds in one list by score per cost, kept from the top; what no longer fits is passed over.

    Scores of different kinds must be comparable (normalise them first if they are not).

    Raises:
        BudgetError: the units that must stay cost more than the budget.
    """
    lists = [_Ranked(kind) for kind in kinds]
    room = _room(lists, budget)
    entries = [
        (-chunk.score / chunk.cost if chunk.cost > 0 else -math.inf, which, index)
        for which, ranked in enumerate(lists)
        for index, chunk in enumerate(ranked.chunks)
    ]
    taken: list[list[int]] = [[] for _ in lists]
    closed: set[str] = set()
    for _, which, index in sorted(entries):
        chunk = lists[which].chunks[index]
        # Once a module's chunk is passed over its later ones are too, or the module would not keep its best units.
        if chunk.module in closed or chunk.score < 0 or chunk.cost > room:
            closed.add(chunk.module)
            continue
        room -= chunk.cost
        taken[which].append(index)
    kept: Kept = {}
    for ranked, indices in zip(lists, taken, strict=True):
        kept |= ranked.kept(indices)
    return kept


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Units that are kept or cut together."""

    module: str
    units: Ints
    score: float
    cost: float


class _Ranked:
    """A kind's chunks, best mean score first, after those that must stay."""

    def __init__(self, kind: Kind) -> None:
        self.fixed: list[_Chunk] = []
        self.modules = list(kind.scores)
        chunks: list[_Chunk] = []
        for module in self.modules:
            parts = _chunks(module, kind)
            must = math.ceil(kind.at_least / kind.round_to)
            self.fixed += parts[:must]
            chunks += parts[must:]
        # Stable, so that a module's chunks, whose means fall, stay in their order.
        self.chunks = sorted(chunks, key=lambda chunk: -chunk.score / len(chunk.units))
        self.running_cost = np.concatenate([[0.0], np.cumsum([chunk.cost for chunk in self.chunks])])
        self.running_score = np.concatenate([[0.0], np.cumsum([chunk.score for chunk in self.chunks])])

    def kept(self, indices: Sequence[int]) -> Kept:
        units: dict[str, list[Ints]] = {module: [] for module in self.modules}
        for chunk in [*self.fixed, *(self.chunks[i] for i in indices)]:
            units[chunk.module].append(chunk.units)
        empty = np.zeros(0, dtype=np.int64)
        return {module: np.sort(np.concatenate([empty, *parts])) for module, parts in units.items()}


def _chunks(module: str, kind: Kind) -> list[_Chunk]:
    """A module's units from best to worst, `round_to` at a time; what is left over joins the last ones."""
    scores = np.asarray(kind.scores[module], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"a score of module {module} is not finite")
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    cuts = np.arange(kind.round_to, len(order), kind.round_to)
    cost = kind.unit_cost(module)
    return [
        _Chunk(module, part, float(scores[part].sum()), cost * len(part)) for part in np.split(order, cuts) if len(part)
    ]


def _room(lists: Sequence[_Ranked], budget: float) -> float:
    """What the budget leaves for choice."""
    floor = math.fsum(chunk.cost for ranked in lists for chunk in ranked.fixed)
    if not floor <= budget:
        raise BudgetError(
            f"the units that must stay cost {floor:g}, above the budget of {budget:g}; raise the budget or "
            "allow whole modules to be dropped",
            closest=floor,
        )
    return budget - floor
