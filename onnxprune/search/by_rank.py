"""The papers' search: every unit has one score, and the best that the budget holds stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import Site
from onnxprune.measure.cost import Costs
from onnxprune.search.allocate.rank import Kind, rank, rank_pair
from onnxprune.search.scored_model import Stage

if TYPE_CHECKING:
    from onnxprune.search.planner import Planner

TRIALS = 12
"""Bisections of a search by scores, whose costs are linear where a table's are not."""


def _ranked(planner: Planner, stage: Stage, budget: float) -> dict[str, int]:
    """How many units of every site stay. A kind's scores are shares of their sum, and comparable within it alone."""
    rankings = stage.rankings
    by_kind: dict[tuple[str, bool], list[Site]] = defaultdict(list)
    for site in planner.begun():
        by_kind[site.group.kind, bool(site.matrices)].append(site)
    kinds = []
    for members in by_kind.values():
        total = sum(float(np.sum(rankings[s.id].scores)) for s in members) or 1.0
        scores = {s.id: np.array(rankings[s.id].scores) / total for s in members}
        costs = {s.id: planner.costs.unit_costs(planner.options.budget.kind, s.group) for s in members}
        least = 0 if all(s.branch for s in members) else 1
        kinds.append(Kind(scores, costs, round_to=min(planner.step(s) for s in members), at_least=least))
    room = budget - planner.fixed_cost()
    kept = rank_pair(kinds[0], kinds[1], room) if len(kinds) == 2 else rank(kinds, room)
    return {s.id: len(kept[s.id]) if s.id in kept else 0 if s.branch else s.group.size for s in planner.sites}


def ranked_within(planner: Planner, budget: float, floor: float) -> Plan:
    """What a search by scores chooses. Its costs are linear: where a table's are not, what it is told is bisected.

    Args:
        floor: the least that the search reaches, in the budget's unit.
    """
    stage = planner.start
    if planner.options.budget.kind != "latency":
        return planner.chosen(_ranked(planner, stage, budget), stage)

    def at(room: float) -> Plan:
        return planner.chosen(_offered(_ranked(planner, stage, room), planner.costs, planner.sites), stage)

    low, high = floor, budget
    best = at(high)
    if planner.costs.total("latency", best) <= budget:
        return best
    best = at(low)
    for _ in range(TRIALS):
        middle = (low + high) / 2
        plan = at(middle)
        if planner.costs.total("latency", plan) <= budget:
            best, low = plan, middle
        else:
            high = middle
    return best


def _offered(counts: dict[str, int], costs: Costs, sites: Sequence[Site]) -> dict[str, int]:
    """The same, down to widths that are worth their time."""
    found = dict(counts)
    for site in sites:
        count, size = counts[site.id], site.group.size
        if 0 < count < size:
            every = sorted({0 if site.branch else site.rows, *range(site.rows, size + 1, site.rows)})
            fine = np.array(every)[costs.offered(site.group, every)]
            below = fine[fine <= count]
            found[site.id] = int(below[-1]) if len(below) else int(fine[0])
    return found
