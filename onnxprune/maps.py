"""A linear map of the stream in the place of a residual branch that is dropped, where it is cheaper and helps.

y = x + f(x) becomes y = x + xM + b: M and b by ridge regression on what the dense model's stream is there, so that the
map takes up drift from before it too. It stays only if it lowers the divergence on held-out rows.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.cost import Costs
from onnxprune.gates import Gates
from onnxprune.plan import Branch, Plan
from onnxprune.probe import Evaluator, Rows, Walk
from onnxprune.solve import Moments, ridge_path
from onnxprune.trajectory import boundaries

logger = logging.getLogger(__name__)

STRENGTHS = (1e-2, 1e-1, 1.0)
"""Ridge strengths tried, relative to the stream's mean energy; the pull is toward no map at all."""


def mapped(gates: Gates, fit: Rows, evaluator: Evaluator, plan: Plan, costs: Costs, kind: str) -> Plan:
    """The plan with means, and linear maps where they pay, in the place of its dropped branches, first to last.

    Args:
        plan: complete (`gates.Gates.complete`).
        fit: rows whose tokens are regressed on.
        evaluator: over held-out rows, which accept or refuse.
        kind: of cost; a map must cost less than the branch it replaces.
    """
    graph = gates.interpreter.graph
    axes = {b.branch: b.axis for b in boundaries(graph, gates.structure)}
    place = {n.name: i for i, n in enumerate(graph)}
    gone = sorted((gates.structure.branch(b) for b in plan.drop), key=lambda b: place[b.add])
    walks = _Walks(gates, fit, evaluator)
    best = evaluator(gates.gated(plan))
    for branch in gone:
        layout = gates.structure.layouts[branch.value]
        if axes[branch.id] != len(layout) - 1 or any(size > 1 for size in plan.rests[branch.id].shape[:-1]):
            continue
        cheaper = branch.id not in plan.maps and costs.map_cost(kind, branch.id) < costs.branch_cost(kind, branch.id)
        for label, candidate in walks.candidates(plan, branch, maps=cheaper):
            if (value := walks.divergence(candidate)) < best:
                logger.info("%s: %s, divergence %.5f instead of %.5f", branch.id, label, value, best)
                best, plan = value, candidate
    return plan


class _Walks:
    """The dense and the pruned model in front of one addition after another."""

    def __init__(self, gates: Gates, fit: Rows, evaluator: Evaluator) -> None:
        self.gates, self.evaluator = gates, evaluator
        self.teacher, self.student = Walk(fit, evaluator.wanted), Walk(fit, evaluator.wanted)
        self.judge = Walk(evaluator.rows, evaluator.wanted)

    def divergence(self, plan: Plan) -> float:
        """Of a plan that differs at the addition or behind it only."""
        gated = self.gates.gated(plan)
        found = [self.evaluator.from_here(i, values, gated) for i, values in enumerate(self.judge.values)]
        return float(np.concatenate(found).mean())

    def candidates(self, plan: Plan, branch: Branch, *, maps: bool) -> list[tuple[str, Plan]]:
        """The mean of what the dense model adds there, and the mean with a map by each ridge strength."""
        before = self.gates.gated(plan)
        self.teacher.to(branch.add, [branch.skip, branch.value])
        self.student.to(branch.add, [branch.skip], before)
        self.judge.to(branch.add, state=before)
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
