"""A linear map of the stream in the place of a residual branch that is dropped, where it is cheaper and helps.

y = x + f(x) becomes y = x + xM + b: M and b by ridge regression on what the dense model's stream is there, so that the
map takes up drift from before it too. It stays only if it lowers the divergence on held-out rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.graph.plan import Branch, Plan
from onnxprune.measure.cost import Costs
from onnxprune.probe.forward import Evaluator, Rows, Walk
from onnxprune.probe.gates import Gates
from onnxprune.probe.trajectory import boundaries
from onnxprune.refit.solvers import Moments, ridge_path

logger = logging.getLogger(__name__)

STRENGTHS = (1e-2, 1e-1, 1.0)
"""Ridge strengths tried, relative to the stream's mean energy; the pull is toward no map at all."""


@dataclass(frozen=True, eq=False)
class StandIn:
    """What may take the place of one branch.

    Attributes:
        map, rest: as in a Plan.
        damage: divergence on held-out rows with this branch replaced.
    """

    map: np.ndarray
    rest: np.ndarray
    damage: float


def mapped(gates: Gates, fit: Rows, evaluator: Evaluator, plan: Plan, new: Collection[str] = ()) -> Plan:
    """The plan with the means in the place of its dropped branches, and its maps, fitted anew, first to last.

    Args:
        plan: complete (`gates.Gates.complete`).
        fit: rows whose tokens are regressed on.
        evaluator: over held-out rows, which accept or refuse.
        new: dropped branches that may get a map; the others have one already or get none.
    """
    walks = _Walks(gates, fit, evaluator)
    best = evaluator(gates.gated(plan))
    for branch in _in_order(gates, [gates.structure.branch(b) for b in plan.drop]):
        if _varies(plan.rests[branch.id]):
            continue
        walks.to(branch, plan)
        for label, candidate in walks.candidates(plan, branch, maps=branch.id in plan.maps or branch.id in new):
            if (value := walks.divergence(candidate)) < best:
                logger.info("%s: %s, divergence %.5f instead of %.5f", branch.id, label, value, best)
                best, plan = value, candidate
    return plan


def stand_ins(
    gates: Gates, fit: Rows, evaluator: Evaluator, base: Plan, branches: Sequence[Branch], costs: Costs, kind: str,
    complete: Callable[[Plan], Plan],
) -> dict[str, StandIn]:  # fmt: skip
    """The best linear map for each branch alone, everything else as in `base`: where it is cheaper than the branch, and
    better than nothing but a constant.

    Args:
        complete: says what a plan's dropped branches leave behind.
    """
    walks, found = _Walks(gates, fit, evaluator), {}
    allowed = cheaper(costs, kind, [b.id for b in branches])
    for branch in _in_order(gates, [b for b in branches if b.id in allowed]):
        plan = complete(replace(base, drop=(*base.drop, branch.id)))
        if _varies(plan.rests[branch.id]):
            continue
        walks.to(branch, base)
        constant = walks.divergence(plan)
        tried = [(walks.divergence(c), i, c) for i, (_, c) in enumerate(walks.candidates(plan, branch, maps=True))]
        value, index, best = min(tried)
        if index and value < constant:
            found[branch.id] = StandIn(best.maps[branch.id], best.rests[branch.id], value)
    return found


def with_stand_ins(plan: Plan, found: Mapping[str, StandIn]) -> Plan:
    """A plan with maps in the place of dropped branches."""
    return replace(
        plan,
        maps={**plan.maps, **{name: s.map for name, s in found.items()}},
        rests={**plan.rests, **{name: s.rest for name, s in found.items()}},
    )


def cheaper(costs: Costs, kind: str, branches: Sequence[str]) -> list[str]:
    """The branches that cost more than a linear map does in their place."""
    return [b for b in branches if costs.map_cost(kind, b) < costs.branch_cost(kind, b)]


def _in_order(gates: Gates, branches: Sequence[Branch]) -> list[Branch]:
    """In graph order, those whose stream has its features on the last axis."""
    graph = gates.interpreter.graph
    axes = {b.branch: b.axis for b in boundaries(graph, gates.structure)}
    place = {n.name: i for i, n in enumerate(graph)}
    last = [b for b in branches if axes[b.id] == len(gates.structure.layouts[b.value]) - 1]
    return sorted(last, key=lambda b: place[b.add])


def _varies(rest: np.ndarray) -> bool:
    """Whether what a branch leaves behind is more than a vector of features."""
    return any(size > 1 for size in rest.shape[:-1])


class _Walks:
    """The dense and the pruned model in front of one addition after another."""

    def __init__(self, gates: Gates, fit: Rows, evaluator: Evaluator) -> None:
        self.gates, self.evaluator = gates, evaluator
        self.teacher, self.student = Walk(fit, evaluator.wanted), Walk(fit, evaluator.wanted)
        self.judge = Walk(evaluator.rows, evaluator.wanted)

    def to(self, branch: Branch, plan: Plan) -> None:
        """Move to in front of a branch's addition, the student by a plan."""
        before = self.gates.gated(plan)
        self.teacher.to(branch.add, [branch.skip, branch.value])
        self.student.to(branch.add, [branch.skip], before)
        self.judge.to(branch.add, state=before)

    def divergence(self, plan: Plan) -> float:
        """Of a plan that differs at the addition or behind it only."""
        gated = self.gates.gated(plan)
        found = [self.evaluator.from_here(i, values, gated) for i, values in enumerate(self.judge.values)]
        return float(np.concatenate(found).mean())

    def candidates(self, plan: Plan, branch: Branch, *, maps: bool) -> list[tuple[str, Plan]]:
        """The mean of what the dense model adds there, and the mean with a map by each ridge strength."""
        moments = self._moments(branch)
        rest = moments.y_mean.astype(np.float32).reshape(*(1,) * (plan.rests[branch.id].ndim - 1), -1)
        mean = replace(plan, rests={**plan.rests, branch.id: rest})
        found = [("mean", mean)]
        size = len(moments.x_mean)
        prior = np.zeros((size, len(moments.y_mean)))
        for fit in ridge_path(moments, np.arange(size), prior, STRENGTHS) if maps else ():
            matrix = np.concatenate([-(moments.x_mean @ fit.weight)[None], fit.weight]).astype(np.float32)
            found.append((f"linear map, ridge {fit.strength:g}", replace(mean, maps={**plan.maps, branch.id: matrix})))
        return found

    def _moments(self, branch: Branch) -> Moments:
        """Of (the pruned model's stream, what the dense one has behind the addition less that) over the tokens."""
        total: Moments | None = None
        for i, batch in enumerate(self.teacher.rows.batches):
            dense, x = self.teacher.values[i], self.student.values[i][branch.skip]
            y = dense[branch.skip] + dense[branch.value] - x
            part = Moments.of(_tokens(x, batch.real), _tokens(y, batch.real))
            total = part if total is None else total.merge(part)
        assert total is not None
        return total


def _tokens(x: Any, real: np.ndarray | None) -> np.ndarray:
    """[..., d] -> [tokens, d], padding left out."""
    flat = np.asarray(x.float().cpu().numpy(), dtype=np.float64).reshape(-1, x.shape[-1])
    return flat[real.reshape(-1)] if real is not None and real.size == len(flat) else flat
