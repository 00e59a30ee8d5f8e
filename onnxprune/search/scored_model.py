"""A model on its way down, scored: its units in order, what levels cost in accuracy, refit weights at those taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.graph import memory
from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.put_away import Store, over
from onnxprune.graph.structure.sites import Site, even, kept_by
from onnxprune.probe import threads
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.forward import NOTHING
from onnxprune.refit.linear_stand_ins import StandIn, with_stand_ins
from onnxprune.score import METHODS, collect, configured, lasting, stepwise
from onnxprune.score.magnitude import magnitude
from onnxprune.score.mixture import parse
from onnxprune.score.unweighted import unweighted_rankings
from onnxprune.search.damage_table import DEAD, Refitter, Row
from onnxprune.search.prices import MAPPED
from onnxprune.search.problem import Problem
from onnxprune.search.score_cache import Scores


@dataclass(eq=False)
class Stage:
    """A plan's model with its units ordered, and what was measured on it.

    Attributes:
        store: of refit weights.
        lasting: whether what is measured on it holds for every budget, and is worth a file.
        magnitudes: group id -> [units], norms of what reads them; for sites that weights read.
    """

    plan: Plan
    rankings: Mapping[str, Ranking]
    refitter: Refitter
    store: Store
    lasting: bool = False
    rows: Mapping[str, Row] | None = None
    near: dict[tuple[str, int], float] = field(default_factory=dict)
    magnitudes: Mapping[str, np.ndarray] = field(default_factory=dict)
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    _fitted: dict[tuple[tuple[str, int], ...], Mapping[str, np.ndarray]] = field(default_factory=dict)

    def weights(self, sites: Sequence[Site], counts: Mapping[str, int]) -> Mapping[str, np.ndarray]:
        """Refit weights of every thinned site at its level, kept for reuse."""
        found: list[Mapping[str, np.ndarray]] = []
        for members in self._reading(sites, counts):
            key = tuple((site.id, counts[site.id]) for site in members)
            if key not in self._fitted:
                fitted = self.refitter.together(
                    [(site, self.rankings[site.id].keep(counts[site.id])) for site in members]
                )
                self._fitted[key] = self.store.kept(fitted)
            found.append(self._fitted[key])
        return over(*found)

    def forget(self) -> None:
        """Let go of refit weights at levels that were tried: another budget has others."""
        self._fitted.clear()

    def _reading(self, sites: Sequence[Site], counts: Mapping[str, int]) -> list[list[Site]]:
        """The sites that lose something, those read by the same weights (heads and their dimensions) together."""
        found: dict[tuple[str | None, ...], list[Site]] = {}
        for site in sites:
            if 0 < counts[site.id] < site.group.size:
                found.setdefault(tuple(m.reader.weight for m in site.matrices), []).append(site)
        return list(found.values())

    def thinned(self, sites: Sequence[Site], counts: Mapping[str, int]) -> Plan:
        """A choice of levels as a plan, with the sites' own refit weights."""
        branches = [s.branch.id for s in sites if s.branch is not None and counts[s.id] == MAPPED]
        counts = {name: max(count, 0) for name, count in counts.items()}
        keep, drop = kept_by(counts, self.rankings, sites)
        keep, drop = {**self.plan.keep, **keep}, tuple(dict.fromkeys((*self.plan.drop, *drop)))
        plan = replace(self.plan, keep=keep, drop=drop, weights=over(self.plan.weights, self.weights(sites, counts)))
        return with_stand_ins(plan, {b: self.stand_ins[b] for b in branches})


OVERFLOWS = (
    "{}: {}: its weights, or what they give on some row, are so large that squares of them overflow; leave these units "
    "out with --exclude, or look at the weights"
)
"""(site, what is no number)."""


def _require_finite(site: str, *known: Any) -> None:
    """Refuse scores that order nothing.

    Raises:
        ModelError: some are not finite.
    """
    if not all(np.isfinite(np.asarray(scores, dtype=np.float64)).all() for scores in known if scores is not None):
        raise ModelError(OVERFLOWS.format(site, "scores of its units are not finite"))


def scored(problem: Problem, plan: Plan, scores: Scores) -> Stage:
    """Score the units of a plan's model.

    Args:
        scores: what is known of the whole model already; what is found out about it goes there.
    """
    options = problem.options
    with problem.clock.stage("score"):
        gated = problem.gates.gated(plan)

        def weight(name: str) -> np.ndarray:
            tensor = gated.weights.get(name)
            return problem.weight(name) if tensor is None else to_numpy(tensor)

        lasting = lasts(problem, plan)
        bases = problem.rotated.rankings
        known = scores.rankings if lasting and scores.rankings.keys() == {s.id for s in problem.sites} else {}
        method = parse("magnitude" if known else problem.method, configured(options.alpha))
        mending = options.compensate or options.search != "rank"
        read = [s for s in problem.sites if s.matrices]
        met = [s for s in problem.sites if not s.matrices and s.id not in bases]
        untouched = not (plan.keep or plan.drop)
        statistics = collect(
            method,
            problem.fit if problem.calibration is not None else None,
            read,
            problem.structure,
            weight,
            also=("gram",) if mending else (),
            state=NOTHING if untouched else gated,
            token_weights=problem.token_weights,
            known=problem.moments if untouched else {},
            keep=problem.look.keep if untouched else None,
            order=lambda gram: stepwise(
                method,
                problem.fit,
                read,
                problem.gates,
                problem.share(),
                plan,
                Refitter(weight, gram, writable=problem.gates.writable),
            ),
            seed=options.seed,
        )
        if untouched:
            problem.moments.update(statistics.gram)
        memory.ease()  # of a pass over the rows; solvers ask for a few large blocks
        rankings = dict(known) or bases | (
            unweighted_rankings(problem.fit, met, problem.structure, gated) if met else {}
        )
        lacking = [] if known else [s for s in problem.sites if s.id not in rankings]
        if getattr(method, "alone", False):
            found = threads.each(problem.interpreter, len(lacking), lambda i: method(lacking[i], statistics))
            rankings |= {site.id: ranking for site, ranking in zip(lacking, found, strict=True)}
        for i, site in enumerate(() if known else problem.sites):
            ranking = rankings[site.id] if site.id in rankings else method(site, statistics)
            rankings[site.id] = even(site, behind(ranking, plan.keep.get(site.id)))
            problem.progress("score", i + 1, len(problem.sites))
        magnitudes = {s.id: magnitude.score(s, statistics) for s in read}
        for site in problem.sites:
            _require_finite(site.id, rankings[site.id].scores, magnitudes.get(site.id))
        rankings |= {s.id: even(s, told_apart(rankings[s.id], magnitudes[s.id])) for s in read}
        if not known and lasting:
            scores.keep_rankings(rankings)
    refitter = Refitter(
        weight, statistics.gram if options.compensate else {}, rankings, writable=problem.gates.writable
    )
    return Stage(plan, rankings, refitter, problem.refits, lasting, magnitudes=magnitudes)


def lasts(problem: Problem, plan: Plan) -> bool:
    """Whether what is measured on a plan's model holds for every budget."""
    needs = parse(problem.method, METHODS).needs
    whole = problem.calibration is not None and not (plan.keep or plan.drop)
    return whole and "order" not in needs and lasting(problem.method)


def told_apart(ranking: Ranking, magnitudes: np.ndarray) -> Ranking:
    """An order in which units that have no score go by their weights: some are dead, some were silent on these rows."""
    if not ranking.scores:
        return ranking
    scores = np.array(ranking.scores)
    silent = scores <= DEAD * max(float(scores.max()), 0.0)
    first = [u for u in ranking.order if not silent[u]]
    rest = sorted((u for u in ranking.order if silent[u]), key=lambda u: -magnitudes[u])
    return replace(ranking, order=(*first, *rest))


def behind(ranking: Ranking, kept: Sequence[int] | None) -> Ranking:
    """An order in which units that are gone already come last."""
    if kept is None:
        return ranking
    there = set(kept)
    return replace(ranking, order=tuple(sorted(ranking.order, key=lambda u: u not in there)))
