"""`seven-dyn`: pruning in steps of a cubic schedule, scored anew in between (Xiao et al. 2024, after Zhu & Gupta 2017).

Post-training: weights move only by the least-squares solve between steps, if one is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.structure.sites import Site, even, kept_by
from onnxprune.probe.forward import Rows
from onnxprune.probe.gate_gradients import gate_gradients
from onnxprune.probe.gates import Gates
from onnxprune.probe.weight_gradients import seen_through
from onnxprune.refit.solvers.schedule import cubic
from onnxprune.score.base import Statistics
from onnxprune.score.seven import Seven

STEPS = 8

Refit = Callable[[Site, Sequence[int]], Mapping[str, np.ndarray]]
"""Weights of a site's readers, corrected for the units that are gone."""


@dataclass(frozen=True)
class Dynamic:
    """`seven-dyn` as a method: `collect` asks whoever knows the budget for the orders."""

    accumulator: Seven = field(default_factory=Seven)
    needs: frozenset[str] = frozenset({"order"})

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        return statistics.order[site.id]


def dynamic(
    rows: Rows, sites: Sequence[Site], gates: Gates, final: float, method: Seven | None = None,
    *, base: Plan | None = None, count: int = STEPS, refit: Refit | None = None, seed: int = 0,
) -> dict[str, Ranking]:  # fmt: skip
    """Orders in which units go when the share kept of each kind falls to `final` along the cubic schedule.

    At every step the units with the least score on the model as pruned so far go, over all sites of a kind together.

    Args:
        final: share of units kept at the end; what is left then is ordered by its last score.
        method: the accumulator's options.
        base: what is gone already; nothing by default. Its units come last, and its branches' units are left out.
        count: steps T of the schedule.
        refit: as `damage.Refitter`; None leaves the weights as they are.

    Returns:
        group id -> Ranking; scores rise with the time of death, so that they compare across the sites of a kind.
    """
    method = method or Seven()
    base = base or Plan(gates.structure.digest)
    gone = {s.id for s in sites if s.group.branch in base.drop}
    orders = {s.id: Ranking(s.id, tuple(range(s.group.size)), (0.0,) * s.group.size) for s in sites if s.id in gone}
    sites = [s for s in sites if s.id not in gone]
    alive = {s.id: np.isin(np.arange(s.group.size), base.keep.get(s.id, range(s.group.size))) for s in sites}
    total = {kind: sum(int(alive[s.id].sum()) for s in sites if s.group.kind == kind) for kind in _kinds(sites)}
    reached = {s.id: np.zeros(s.group.size) for s in sites}
    floor: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for step in range(count):
        scores = _scores(rows, sites, gates, alive, method, refit, seed + step, base)
        for kind in _kinds(sites):
            members = [s for s in sites if s.group.kind == kind]
            keep = max(round(cubic(step, count, final) * total[kind]), len(members))
            flat = [(float(scores[s.id][u]), s.id, int(u)) for s in members for u in np.flatnonzero(alive[s.id])]
            going = max(len(flat) - keep, 0)
            last, at = floor[kind]
            for score, name, unit in sorted(flat):
                # Above all that an earlier step let go: the order of death is the order of the scores. Equals stay so.
                at = at if score == last else max(score, float(np.nextafter(at, np.inf)))
                last, reached[name][unit] = score, at
                if going and alive[name].sum() > 1:
                    alive[name][unit] = False
                    going -= 1
                    floor[kind] = last, at
    for site in sites:
        kept = reached[site.id][alive[site.id]]
        gone = reached[site.id][~alive[site.id]].max(initial=0.0)
        if len(kept) and kept.min() < gone:
            reached[site.id][alive[site.id]] += gone - kept.min()
    return {**orders, **{s.id: _ranking(s.id, reached[s.id], alive[s.id]) for s in sites}}


def _kinds(sites: Sequence[Site]) -> list[str]:
    return list(dict.fromkeys(s.group.kind for s in sites))


def _scores(
    rows: Rows, sites: Sequence[Site], gates: Gates, alive: Mapping[str, np.ndarray], method: Seven,
    refit: Refit | None, seed: int, base: Plan,
) -> dict[str, np.ndarray]:  # fmt: skip
    """SEVEN's scores on the model as pruned so far."""
    orders = {s.id: even(s, Ranking(s.id, tuple(np.argsort(~alive[s.id], kind="stable").tolist()))) for s in sites}
    # Where every row of a site keeps the same number, the model in between keeps whole rounds of them.
    counts = {s.id: max(int(alive[s.id].sum()) // s.rows, 1) * s.rows for s in sites}
    keep, _ = kept_by(counts, orders, sites)
    plan = replace(base, keep={**base.keep, **keep})
    if refit is not None:
        weights = dict(base.weights)
        for site in sites:
            if site.id in keep:
                weights.update(refit(site, keep[site.id]))
        plan = replace(plan, weights=weights)
    state = gates.gated(plan)
    found = gate_gradients(seen_through(rows, state), sites, gates.structure, seed)
    return {name: method.on_gates(g) for name, g in found.items()}


def _ranking(name: str, scores: np.ndarray, alive: np.ndarray) -> Ranking:
    order = np.lexsort((-scores, ~alive))
    return Ranking(name, tuple(int(i) for i in order), tuple(float(s) for s in scores))
