"""The search by measured damage: a table of what every level costs in accuracy, an allocation over it, swaps."""

from __future__ import annotations

import logging
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from itertools import count as counting

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site, levels
from onnxprune.refit.linear_stand_ins import StandIn, stand_ins
from onnxprune.score import METHODS
from onnxprune.score.mixture import parse
from onnxprune.search.allocate import ALLOCATIONS
from onnxprune.search.allocate.choices import Allocation, Level, Module, alike, damage_of, merged
from onnxprune.search.allocate.swaps import swaps
from onnxprune.search.damage_table import Row, TableWalk, damage_table, spread
from onnxprune.search.prices import MAPPED, Array, Prices
from onnxprune.search.problem import Problem
from onnxprune.search.score_cache import Scores
from onnxprune.search.scored_model import OVERFLOWS, Stage

logger = logging.getLogger(__name__)


LEVELS = (4, 4)
"""Levels of a site at which damage is measured first (`sites.levels`): what the scores lose tells the curve's shape
between them, and where an allocation puts a site more are measured."""
REFINED = 2
"""How often levels are measured where an allocation has put its sites, before it is made once more."""
UNSURE = 0.02
"""Of an allocation's damage: what need not be known of one site's."""
Near = Mapping[str, frozenset[int]]
"""Group id -> units kept, measured because they were chosen."""
HINT = 1e-9
"""Of the largest damage: what all of a site's scores add to damages that are the same."""


def searched(problem: Problem, stage: Stage, budget: float, scores: Scores) -> dict[str, int]:
    """How many units every site keeps at a cost of at most `budget`, by the table and by measured swaps.

    Args:
        scores: where what was measured of the whole model is kept.
    """
    near: Near = {}
    for closer in range(REFINED + 1):
        modules = _modules(problem, stage, scores, near)
        with problem.clock.stage("search"):
            kinds = {s.id: f"{s.group.kind}x{s.group.size}{'' if s.matrices else ' met'}" for s in problem.sites}
            shared = alike(modules, kinds) if problem.options.uniform else {m.id: [m] for m in modules}
            tied = [merged(name, members) for name, members in shared.items()]
            asked = _Asked(problem, shared)
            fixed = None if problem.prices.coupled else fixed_cost(problem.prices)
            chosen = ALLOCATIONS[problem.options.search](tied, budget, asked, fixed)
        wanted = _unsure(problem, stage, near, asked.counts(chosen), damage_of(tied, chosen))
        if closer == REFINED or not wanted:
            break
        near = {name: near.get(name, frozenset()) | wanted.get(name, frozenset()) for name in {*near, *wanted}}
    with problem.clock.stage("search"):
        most = problem.options.swaps + 1
        tried = counting(1)

        def evaluate(allocation: Allocation) -> np.ndarray:
            problem.progress("search", min(next(tried), most), most)
            return problem.table.per_row(problem.gates.gated(stage.thinned(problem.sites, asked.counts(allocation))))

        found = swaps(
            chosen, tied, evaluate, budget,
            evaluations=problem.options.swaps, seed=problem.options.seed, prices=asked,
        )  # fmt: skip
    logger.info("search: divergence %.5f, after %d swaps %.5f", found.start, len(found.trials), found.value)
    counts = asked.counts(found.levels)
    logger.info("kept: %s", list(counts.values()))
    return counts


def fixed_cost(prices: Prices) -> float:
    """What stays of the model a plan begins with when every unit is gone that may, where costs add up."""
    return prices.total(prices.whole) - sum(prices.span(name) for name in prices.sites)


class _Asked:
    """`allocate.choices.Prices` of modules, each a site or several that are cut alike.

    Args:
        shared: module id -> its members.
    """

    def __init__(self, problem: Problem, shared: Mapping[str, Sequence[Module]]) -> None:
        self.problem, self.shared, self.prices = problem, shared, problem.prices
        # A search asks thousands of times: what each module keeps at each of its levels is written down once.
        self._kept = {
            m.id: (name, tuple(x.kept for x in m.levels)) for name, members in shared.items() for m in members
        }
        # A site of a branch that left before is gone with it, whoever may drop it now.
        self._gone = {s.id: 0 if s.branch else s.group.size for s in problem.sites if s.id not in self._kept}

    def counts(self, allocation: Allocation) -> dict[str, int]:
        """Units of every site."""
        there = {site: kept[allocation[name]] for site, (name, kept) in self._kept.items()}
        return {s.id: there[s.id] if s.id in there else self._gone[s.id] for s in self.problem.sites}

    def total(self, allocation: Allocation) -> float:
        return self.prices.total(self.counts(allocation))

    def levels(self, module: str, allocation: Allocation) -> Array:
        members = [m.id for m in self.shared[module]]
        return self.prices.levels(members, self.counts(allocation), self._kept[members[0]][1])


def _modules(problem: Problem, stage: Stage, scores: Scores, near: Near) -> tuple[Module, ...]:
    """The damage table with its costs, at every width that may be chosen; measured once a stage, `near` once each."""
    live = _live(problem, stage)
    if stage.rows is None:
        stage.rows = _damages(problem, stage, live, scores)
        stage.stand_ins = _stand_ins(problem, stage, [s for s, _ in live])
    _measure_near(problem, stage, scores, near)
    prices = problem.prices
    hint = HINT * max((float(row.damage.max()) for row in stage.rows.values()), default=0.0)
    found = []
    for site, _ in live:
        row = _known(stage, site.id, near)
        counts, curve = spread(row.levels, row.damage - row.damage[-1], problem.step(site), stage.rankings[site.id])
        if whole(problem, site):
            counts, curve = counts[[0, -1]], curve[[0, -1]]
        worth = problem.costs.offered(site.group, counts.tolist())
        curve = curve + hint * lost(stage.rankings[site.id], stage.magnitudes.get(site.id), counts)
        kept, damages = counts[worth].tolist(), curve[worth].tolist()
        stands = stage.stand_ins.get(site.branch.id) if site.branch is not None else None
        if stands is not None:
            kept, damages = [*kept, MAPPED], [*damages, max(stands.damage - float(row.damage[-1]), 0.0)]
        costs = prices.levels([site.id], prices.whole, kept)
        found.append(Module(site.id, tuple(map(Level, kept, (costs - prices.least(site.id)).tolist(), damages))))
    return tuple(found)


def _known(stage: Stage, site: str, near: Near) -> Row:
    """A site's row with what was measured near the levels that were chosen."""
    assert stage.rows is not None
    row = stage.rows[site]
    more = {count: stage.near[site, count] for count in near.get(site, ())}
    every = dict(zip(row.levels, row.damage.tolist(), strict=True)) | more
    return Row(tuple(sorted(every)), np.array([every[k] for k in sorted(every)]))


def _unsure(
    problem: Problem, stage: Stage, near: Near, counts: Mapping[str, int], damage: float
) -> dict[str, frozenset[int]]:
    """Levels that were chosen between two that were measured, and of whose damage more may be unknown than matters.

    Args:
        counts: that were chosen; damage: of all of them, by the table.
    """
    found = {}
    for site, _ in _live(problem, stage):
        row, count = _known(stage, site.id, near), counts[site.id]
        if whole(problem, site) or count in row.levels or not row.levels[0] < count < row.levels[-1]:
            continue
        falling = np.minimum.accumulate(row.damage)
        above = bisect(row.levels, count)
        if falling[above - 1] - falling[above] > UNSURE * damage:
            found[site.id] = frozenset([count])
    return found


def _measure_near(problem: Problem, stage: Stage, scores: Scores, near: Near) -> None:
    """Damages of levels that were chosen, each measured once a stage."""
    lacking = {
        (name, count): [count, len(stage.plan.keep.get(name, ())) or size]
        for name, size in ((s.id, s.group.size) for s in problem.sites)
        for count in sorted(near.get(name, ()))
        if (name, count) not in stage.near
    }
    for (name, count), grid in list(lacking.items()):
        key = f"{name} at {count}"
        known = scores.measured({key: grid}) if stage.lasting else {}
        if known:
            stage.near[name, count] = float(known[key].damage[0])
            del lacking[name, count]
    if not lacking:
        return
    with problem.clock.stage("search"):
        sites = [s for s in problem.sites if any(name == s.id for name, _ in lacking)]
        grids = {name: grid for (name, _), grid in lacking.items()}
        for name, row in damage_table(walk_of(problem, stage), sites, grids):
            count = row.levels[0]
            stage.near[name, count] = float(row.damage[0])
            if stage.lasting:
                key = f"{name} at {count}"
                scores.keep_rows({key: grids[name]}, {key: row})
        if stage.lasting:
            scores.save()


def lost(ranking: Ranking, magnitudes: Array | None, counts: Array) -> Array:
    """The share of a site's scores, and of its weights, that is lost with some numbers of units kept.

    A unit that is silent on the rows of the table costs nothing there, like one that nobody reads; on the rows that
    were scored, or on others, it may speak.
    """
    known = [np.array(ranking.scores or [0.0] * len(ranking.order), dtype=np.float64)]
    known += [] if magnitudes is None else [magnitudes]
    shares = []
    for scores in known:
        running = np.concatenate([[0.0], np.cumsum(np.maximum(scores[list(ranking.order)], 0.0))])
        shares.append(1 - running[np.asarray(counts, dtype=int)] / max(running[-1], 1e-300))
    return np.asarray(np.mean(shares, axis=0))


def _damages(
    problem: Problem, stage: Stage, live: Sequence[tuple[Site, tuple[int, ...]]], scores: Scores
) -> Mapping[str, Row]:
    grid = {s.id: [*(k for k in _levels(problem, s) if k < len(units)), len(units)] for s, units in live}
    found = scores.measured(grid) if stage.lasting else {}
    lacking = [s for s, _ in live if s.id not in found]
    if not lacking:
        return found
    with problem.clock.stage("table"):
        try:
            for name, row in rows_of(problem, walk_of(problem, stage), lacking, grid):
                found[name] = row
                if stage.lasting:
                    scores.keep_rows(grid, {name: row})
                problem.progress("table", len(found), len(live))
        finally:
            scores.save()
    return {s.id: found[s.id] for s, _ in live}


def walk_of(problem: Problem, stage: Stage) -> TableWalk:
    """What measures rows of a stage's table."""
    return TableWalk(problem.table, problem.gates, stage.plan, stage.rankings, stage.refitter)


def rows_of(
    problem: Problem, walk: TableWalk, sites: Sequence[Site], grid: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Row]]:
    """(group id, row of the damage table) of some sites, one by one: a row does not depend on which others there are.

    Args:
        walk: that did not come further than to the first of them.
        sites: in graph order.
        grid: group id -> units kept.

    Raises:
        ModelError: a damage is no number.
    """
    steps = {s.id: problem.step(s) for s in sites if not whole(problem, s)}
    for name, row in damage_table(walk, sites, grid, steps=steps):
        if np.isnan(row.damage).any():
            raise ModelError(OVERFLOWS.format(name, "what the outputs lose without some of its units is no number"))
        yield name, row


def whole_grid(problem: Problem) -> dict[str, list[int]]:
    """Group id -> units kept, at which the table of the model that plans begin with is measured."""
    return {s.id: [*(k for k in _levels(problem, s) if k < s.group.size), s.group.size] for s in problem.begun()}


def _stand_ins(problem: Problem, stage: Stage, live: Sequence[Site]) -> dict[str, StandIn]:
    """Linear maps that may take the place of a branch, where the method's modules are whole branches."""
    if not modular(problem) or not problem.options.compensate or problem.options.uniform:
        return {}
    branches = [s.branch for s in live if s.branch is not None]
    return stand_ins(
        problem.gates, problem.fit, problem.table, problem.completed(stage.plan), branches, problem.costs,
        problem.options.budget.kind, problem.completed,
    )  # fmt: skip


def _levels(problem: Problem, site: Site) -> list[int]:
    if whole(problem, site):
        return [0, site.group.size]
    return levels(site, problem.step(site), *LEVELS)


def whole(problem: Problem, site: Site) -> bool:
    """Whether a site's branch goes as a whole or stays as it is, because the method knows no smaller module."""
    return modular(problem) and site.branch is not None and site.group.kind not in ("heads", "query_heads")


def modular(problem: Problem) -> bool:
    """Whether the method's modules are whole branches."""
    return bool(getattr(parse(problem.method, METHODS), "whole", False))


def _live(problem: Problem, stage: Stage) -> list[tuple[Site, tuple[int, ...]]]:
    """The sites that are still there, with the units they have."""
    gone = set(stage.plan.drop)
    return [
        (s, stage.plan.keep.get(s.id, tuple(range(s.group.size)))) for s in problem.sites if s.group.branch not in gone
    ]
