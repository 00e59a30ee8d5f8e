"""Mending what stays: a sweep of least squares from the first matrix to the last, in gated space.

Each product is refit so that, on what the pruned model really feeds it, it gives what the dense model gives there; the
one that closes a residual branch also makes up for how far the stream has drifted. A step is kept only if the
divergence on held-out rows falls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.axes import flat_mask
from onnxprune.gates import Gated, Gates
from onnxprune.linears import Linear
from onnxprune.plan import Plan
from onnxprune.probe import Evaluator, Rows, Walk, Weights

logger = logging.getLogger(__name__)

STRENGTHS = (1e-3, 1e-2, 1e-1)
"""Ridge strengths tried where a branch or the graph ends, relative to the mean diagonal of the inputs' Gram matrix."""

INNER = (1e-2,)
"""Ridge strengths tried elsewhere (queries, first FFN matrices): they gain less, and every trial is an evaluation."""


@dataclass(frozen=True)
class Step:
    """What a refit did: which candidate stood (a ridge strength, "bias", or None) and the divergence after it."""

    node: str
    kept: str | None
    divergence: float


def compensate(
    gates: Gates,
    fit: Rows,
    evaluator: Evaluator,
    plan: Plan,
    linears: Sequence[Linear],
    strengths: Sequence[float] = STRENGTHS,
    weights: Weights | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Plan, float, list[Step]]:
    """One sweep over `linears`, which are in graph order.

    Args:
        fit: rows whose tokens are regressed on.
        evaluator: over rows that accept or refuse each step.
        weights: of the fit rows' tokens, for the products that have some.

    Returns:
        (plan with refit weights and intercepts, its divergence, what was done). Never worse than the plan given.
    """
    sweep = _Sweep(gates, fit, evaluator, plan, weights or {})
    steps = []
    for i, linear in enumerate(linears):
        if linear.inside in plan.drop and linear.branch is None:
            continue
        steps.append(sweep.refit(linear, strengths))
        if progress is not None:
            progress(i + 1, len(linears))
    return sweep.plan, sweep.best, steps


class _Sweep:
    """The state of a sweep: the plan so far, and per batch the values in front of the current node."""

    def __init__(self, gates: Gates, fit: Rows, evaluator: Evaluator, plan: Plan, weights: Weights) -> None:
        self.weights = weights
        self.gates, self.fit, self.evaluator, self.plan = gates, fit, evaluator, plan
        self.best = evaluator(gates.gated(plan))
        self.masks = plan.masks(gates.structure)
        self.wanted = evaluator.wanted
        self.teacher, self.student = Walk(fit, self.wanted), Walk(fit, self.wanted)
        self.judge = Walk(evaluator.rows, self.wanted)

    def refit(self, linear: Linear, strengths: Sequence[float]) -> Step:
        before = self.gates.gated(self.plan)
        self.judge.to(linear.node, state=before)
        moments = self._moments(linear, before)
        tried = []
        for label, candidate in self._candidates(linear, moments, strengths):
            tried.append((self._divergence(self.gates.gated(candidate)), label, candidate))
        value, label, candidate = min(tried, key=lambda t: t[0])
        if value < self.best:
            self.best, self.plan = value, candidate
            return Step(linear.node, label, value)
        return Step(linear.node, None, self.best)

    def _divergence(self, gated: Gated) -> float:
        found = [self.evaluator.from_here(i, values, gated) for i, values in enumerate(self.judge.values)]
        return float(np.concatenate(found).mean())

    def _moments(self, linear: Linear, state: Gated) -> _Moments:
        """Second moments of (student input, teacher target) over the fit rows' tokens."""
        import torch

        skip = [linear.branch.skip] if linear.branch is not None else []
        self.teacher.to(linear.node, skip)
        self.student.to(linear.node, [*skip, linear.source], state)
        total = _Moments()
        for i, batch in enumerate(self.fit.batches):
            real = None if batch.real is None else torch.from_numpy(batch.real)
            with torch.inference_mode():
                x = linear.matrix.rows(self.student.peek(i, linear.source), real).float()
                y = linear.matrix.written(self.teacher.peek(i, linear.matrix.output), real).float()
                for name in skip:
                    drift = self.teacher.values[i][name] - self.student.values[i][name]
                    y = y + linear.matrix.written(drift, real).float()
                total.add(x, y, self.weights[linear.node][i] if linear.node in self.weights else None)
        return total

    def _candidates(self, linear: Linear, moments: _Moments, strengths: Sequence[float]) -> list[tuple[str, Plan]]:
        plan = self.plan
        if linear.branch is not None and linear.branch.id in plan.drop:
            rest = plan.rests[linear.branch.id]
            return [
                (
                    "bias",
                    replace(
                        plan, rests={**plan.rests, linear.branch.id: _like(self._mean_rest(linear, moments), rest)}
                    ),
                )
            ]
        original = self.gates.interpreter.graph.initializers[linear.weight].const_value
        assert original is not None
        array = plan.weights[linear.weight] if linear.weight in plan.weights else np.asarray(original.numpy())
        kept = self._kept(linear)
        prior = linear.matrix.weight(array).astype(np.float64) * kept[:, None]
        x_mean, y_mean, sxx, sxy = moments.centred()
        rows = np.flatnonzero(kept)
        h = sxx[np.ix_(rows, rows)]
        scale = float(np.trace(h)) / max(len(rows), 1)
        pull = sxy[rows] - h @ prior[rows]
        ends = linear.branch is not None or linear.inside is None
        found = [("bias", self._with(linear, array, None, y_mean - x_mean @ prior))] if ends or scale <= 0 else []
        for strength in () if scale <= 0 else strengths if ends else INNER:
            weight = prior.copy()
            weight[rows] += np.linalg.solve(h + strength * scale * np.eye(len(rows)), pull)
            found.append((f"{strength:g}", self._with(linear, array, weight, y_mean - x_mean @ weight)))
        return found

    def _kept(self, linear: Linear) -> np.ndarray:
        node = linear.matrix.node
        value = node.inputs[linear.matrix.reader.input]
        assert value is not None
        layout = self.gates.structure.layouts[value.name or ""][linear.matrix.reader.axis]
        return np.asarray(flat_mask(layout, self.masks, self.gates.structure.sizes))

    def _with(self, linear: Linear, array: np.ndarray, weight: np.ndarray | None, intercept: np.ndarray) -> Plan:
        plan = replace(
            self.plan, intercepts={**self.plan.intercepts, linear.matrix.output: intercept.astype(np.float32)}
        )
        if weight is None:
            return plan
        restored = linear.matrix.restore(weight.astype(np.float32), array.shape)
        return replace(plan, weights={**plan.weights, linear.weight: restored})

    def _mean_rest(self, linear: Linear, moments: _Moments) -> np.ndarray:
        """The best constant in a dropped branch's place: what it gave on average, and the stream's mean drift.

        The targets are those of its last product, so what is added after that (its bias) comes on top.
        """
        assert linear.branch is not None
        alone = self.gates.complete(Plan(self.plan.digest, drop=(linear.branch.id,)), self.fit.batches[0].feeds)
        return np.asarray(moments.centred()[1] + alone.rests[linear.branch.id].reshape(-1))


class _Moments:
    """Σxxᵀ, Σxyᵀ, Σx, Σy over tokens: products in single precision per batch, sums in double."""

    def __init__(self) -> None:
        self.count = 0.0
        self.sums: list[Any] = []

    def add(self, x: Any, y: Any, weight: Any = None) -> None:
        """x [tokens, n], y [tokens, m], weight [tokens] or None for ones."""
        scaled = x if weight is None else x * weight[:, None]
        first = y if weight is None else y * weight[:, None]
        parts = [(scaled.T @ x).double(), (scaled.T @ y).double(), scaled.double().sum(0), first.double().sum(0)]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts
        self.count += float(x.shape[0] if weight is None else weight.sum())

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(x mean, y mean, Σ(x−x̄)(x−x̄)ᵀ, Σ(x−x̄)(y−ȳ)ᵀ)."""
        sxx, sxy, sx, sy = (s.cpu().numpy() for s in self.sums)
        x_mean, y_mean = sx / self.count, sy / self.count
        return x_mean, y_mean, sxx - self.count * np.outer(x_mean, x_mean), sxy - self.count * np.outer(x_mean, y_mean)


def _like(vector: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """A vector per channel in the shape of what a branch leaves behind."""
    shape = rest.shape if rest.size == vector.size else (*(1,) * (rest.ndim - 1), vector.size)
    return vector.reshape(shape).astype(np.float32)
