"""The papers' search: every unit has one score, and the best that the budget holds stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from onnxprune.errors import BudgetError
from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site, even
from onnxprune.search.allocate.rank import Kind, rank, rank_pair
from onnxprune.search.prices import Prices

TRIALS = 14
"""Bisections of a search by scores, to which every unit has one price, where it has not."""


def ranked(
    sites: Sequence[Site], rankings: Mapping[str, Ranking], prices: Prices, budget: float, step: Callable[[Site], int]
) -> dict[str, int]:
    """How many units of every site stay at a cost of at most `budget`.

    A unit has one price here, what it costs on average while everything else is whole. Where costs are not of that kind
    (a latency table, widths that multiply), what the search is told it may spend is bisected.

    Args:
        sites: of the model that plans begin with.
        step: units of a site that go together.
    """
    there = [s for s in sites if s.id in prices.sites]
    unit = {s.id: prices.costs.unit_costs(prices.kind, s.group) for s in there}
    spend = partial(_spent, there, rankings, unit, step)
    most = sum(unit[s.id] * s.group.size for s in there)

    def finished(counts: Mapping[str, int]) -> dict[str, int]:
        return {s.id: counts.get(s.id, 0 if s.branch else s.group.size) for s in sites}

    if prices.kind == "latency":

        def within(room: float) -> dict[str, int]:
            return finished(_offered(spend(room), prices, there))

    else:

        def within(room: float) -> dict[str, int]:
            return finished(spend(room))

    if not prices.coupled and prices.kind != "latency":
        return within(budget - (prices.total(prices.whole) - most))
    if prices.total(whole := within(most)) <= budget:
        return whole
    low, high, best = 0.0, most, None
    for _ in range(TRIALS):
        middle = (low + high) / 2
        try:
            counts = within(middle)
        except BudgetError:
            low = middle
            continue
        if prices.total(counts) <= budget:
            best, low = counts, middle
        else:
            high = middle
    if best is None:
        least = within(min(most, sum(unit[s.id] * (0 if s.branch else step(s)) for s in there)))
        if prices.total(least) > budget:
            raise BudgetError(f"the units that must stay cost {prices.total(least):g}", closest=prices.total(least))
        best = least
    return best


def _spent(
    sites: Sequence[Site],
    rankings: Mapping[str, Ranking],
    unit: Mapping[str, float],
    step: Callable[[Site], int],
    room: float,
) -> dict[str, int]:
    """How many units stay. A kind's scores are shares of their sum, and comparable within it alone."""
    by_kind: dict[tuple[str, bool, int], list[Site]] = defaultdict(list)
    totals: dict[tuple[str, bool], float] = defaultdict(float)
    for site in sites:
        by_kind[site.group.kind, bool(site.matrices), site.rows].append(site)
        totals[site.group.kind, bool(site.matrices)] += float(np.sum(rankings[site.id].scores))
    kinds = []
    for (kind, read, _), members in by_kind.items():
        scores = {s.id: _together(s, rankings[s.id]) / (totals[kind, read] or 1.0) for s in members}
        least = 0 if all(s.branch for s in members) else 1
        costs = {s.id: unit[s.id] for s in members}
        kinds.append(Kind(scores, costs, round_to=min(step(s) for s in members), at_least=least))
    kept = rank_pair(kinds[0], kinds[1], room) if len(kinds) == 2 else rank(kinds, room)
    return {name: len(units) for name, units in kept.items()}


def _together(site: Site, ranking: Ranking) -> npt.NDArray[np.float64]:
    """Scores by unit, those that go together (one of every row) with their mean: a dead one does not go for nothing."""
    scores = np.array(ranking.scores, np.float64)
    if site.rows > 1:
        step = np.array(even(site, ranking).order).reshape(-1, site.rows)
        scores[step] = scores[step].mean(1, keepdims=True)
    return scores


def _offered(counts: dict[str, int], prices: Prices, sites: Sequence[Site]) -> dict[str, int]:
    """The same, down to widths that are worth their time."""
    found = dict(counts)
    for site in sites:
        count, size = counts[site.id], site.group.size
        if 0 < count < size:
            every = sorted({0 if site.branch else site.rows, *range(site.rows, size + 1, site.rows)})
            fine = np.array(every)[prices.costs.offered(site.group, every)]
            below = fine[fine <= count]
            found[site.id] = int(below[-1]) if len(below) else int(fine[0])
    return found
