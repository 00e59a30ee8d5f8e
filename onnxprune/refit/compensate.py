"""Mending what stays: a sweep of least squares from the first matrix to the last, in gated space.

Each product is refit so that, on what the pruned model really feeds it, it gives what the dense model gives there; the
one that closes a residual branch also makes up for how far the stream has drifted. How far a refit may go (its ridge
strength, the intercept alone, or nothing) is what held-out rows say about that product: their tokens are thousands of
samples of its error, where the divergence of the outputs is one number a row, too few to choose by forty times over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.graph import memory
from onnxprune.graph.axes import flat_mask
from onnxprune.graph.plan import Plan
from onnxprune.graph.put_away import Store, over
from onnxprune.graph.quantised import Quantised, nearest
from onnxprune.graph.structure.linear_layers import Linear, result_of
from onnxprune.probe.forward import Evaluator, Rows, Weights
from onnxprune.probe.gates import Gates
from onnxprune.refit.paired_runs import SideBySide
from onnxprune.refit.solvers import INFINITE, Fit, Statistics, error, fit_each_held_out
from onnxprune.refit.solvers.chance import surely_lower
from onnxprune.rewrite.weights import bias_of

logger = logging.getLogger(__name__)

STRENGTHS = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""Ridge strengths to choose from, relative to the mean diagonal of the inputs' Gram matrix."""

BIAS = "bias"


@dataclass(frozen=True)
class Step:
    """What a refit did.

    Attributes:
        kept: which candidate stood: a ridge strength, "bias", or None.
        error: squared error on the held-out rows after it, relative to that before.
    """

    node: str
    kept: str | None
    error: float


def compensate(
    gates: Gates,
    fit: Rows,
    held: Rows,
    evaluator: Evaluator,
    plan: Plan,
    linears: Sequence[Linear],
    strengths: Sequence[float] = STRENGTHS,
    weights: Weights | None = None,
    held_weights: Weights | None = None,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
) -> tuple[Plan, float, list[Step]]:
    """One sweep over `linears`, which are in graph order.

    Args:
        fit: rows whose tokens are regressed on.
        held: rows that choose each refit's strength; then it is fitted on their tokens too.
        evaluator: over rows that did neither, which have the last word on all of them.
        weights, held_weights: of the tokens of the rows of `fit` and of `held`, for the products that have some.
        store: where refit weights are kept; in memory by default.

    Returns:
        (plan with refit weights and intercepts, its divergence, what was done). The plan given, if the evaluator's rows
        show the refit one to be worse.
    """
    before = evaluator.per_row(gates.gated(plan))
    wanted = evaluator.wanted
    sweep = _Sweep(gates, plan, SideBySide(fit, wanted, weights), SideBySide(held, wanted, held_weights), store)
    steps: list[Step] = []
    there = [linear for linear in linears if linear.inside not in plan.drop or linear.branch is not None]
    for group in sweep.together(there):
        steps += sweep.refit(group, strengths)
        memory.ease()  # the next one's moments have other sizes, and find no room in this one's
        if progress is not None:
            progress(len(steps), len(there))
    after = evaluator.per_row(gates.gated(sweep.plan))
    # Every refit has lowered an error on held-out rows: the mean of some dozens more, alone, errs as often as not.
    if surely_lower(before, after):
        return plan, float(before.mean()), []
    return sweep.plan, float(after.mean()), steps


class _Sweep:
    """The plan so far, and both sets of rows in front of the current node."""

    def __init__(self, gates: Gates, plan: Plan, fit: SideBySide, held: SideBySide, store: Store | None = None) -> None:
        self.gates, self.plan, self.fit, self.held, self.store = gates, plan, fit, held, store
        self.masks = plan.masks(gates.structure)

    def together(self, linears: Sequence[Linear]) -> Iterator[list[Linear]]:
        """Neighbours that read the same (queries, keys, values) and are fitted side by side."""
        group: list[Linear] = []
        for linear in linears:
            if group and not self.fit.alike(group[0], linear):
                yield group
                group = []
            group.append(linear)
        if group:
            yield group

    def refit(self, linears: Sequence[Linear], strengths: Sequence[float]) -> list[Step]:
        """Refit products that read the same."""
        state, first = self.gates.gated(self.plan), linears[0]
        if first.branch is not None and first.branch.id in self.plan.drop:
            if first.matrix.node in self.fit.rows.interpreter.flow.sides:
                return [Step(first.node, None, 1.0)]  # what is left behind there is not known of every row
            return [self._refit_rest(first, self.fit.moments(first, state), self.held.moments(first, state))]
        rows, columns = self._kept(first)[0], [self._kept(linear)[1] for linear in linears]
        fit, held = (side.moments_of(linears, state, rows, columns) for side in (self.fit, self.held))
        if fit is None or held is None:
            return [Step(linear.node, None, 1.0) for linear in linears]
        arrays = [self.gates.weight(self.plan, linear.weight) for linear in linears]
        weights = [m.matrix.weight(a).astype(np.float64) for m, a in zip(linears, arrays, strict=True)]
        intercepts = [
            np.array(self.plan.intercepts.get(linear.matrix.output, np.zeros(weight.shape[1])))
            for linear, weight in zip(linears, weights, strict=True)
        ]
        prior = np.concatenate([w[np.ix_(rows, c)] for w, c in zip(weights, columns, strict=True)], axis=1)
        bias = np.concatenate([b[c] for b, c in zip(intercepts, columns, strict=True)])
        ends = np.cumsum([0, *map(len, columns)]).tolist()
        fits = fit_each_held_out(
            fit, held, np.arange(len(rows)), prior, bias, (INFINITE, *strengths), [*map(slice, ends, ends[1:])],
            both=True,
        )  # fmt: skip
        return [
            self._put(linear, array, weight, intercept, rows, some, *found)
            for linear, array, weight, intercept, some, found in zip(
                linears, arrays, weights, intercepts, columns, fits, strict=True
            )
        ]

    def _put(
        self,
        linear: Linear,
        array: np.ndarray,
        weight: np.ndarray,
        intercept: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        chosen: Fit,
        change: float,
    ) -> Step:
        """A fit's place in the plan."""
        if chosen.strength is None:
            return Step(linear.node, None, 1.0)
        intercept[columns] = chosen.bias
        intercept = writable_intercept(linear, intercept)
        intercepts = {**self.plan.intercepts, linear.matrix.output: intercept.astype(np.float32)}
        self.plan = replace(self.plan, intercepts=intercepts)
        if chosen.strength == INFINITE:
            return Step(linear.node, BIAS, change)
        weight[np.ix_(rows, columns)] = chosen.weight
        restored = linear.matrix.restore(weight.astype(np.float32), array.shape)
        restored = self.gates.writable(linear.weight, restored)
        found: Mapping[str, np.ndarray] = {linear.weight: restored}
        kept = found if self.store is None else self.store.kept(found)
        self.plan = replace(self.plan, weights=over(self.plan.weights, kept))
        return Step(linear.node, f"{chosen.strength:g}", change)

    def _kept(self, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
        """Indices of a product's inputs and outputs that are still there."""
        node = linear.matrix.node
        value, written = node.inputs[linear.matrix.reader.input], node.outputs[0]
        assert value is not None
        axes = ((value, linear.matrix.reader.axis), (written, -1))
        layouts = [self.gates.structure.layouts[v.name or ""][axis] for v, axis in axes]
        rows, columns = (np.flatnonzero(flat_mask(lay, self.masks, self.gates.structure.sizes)) for lay in layouts)
        return rows, columns

    def _refit_rest(self, linear: Linear, fit: Statistics, held: Statistics) -> Step:
        """The best constant in a dropped branch's place: what it gave on average, and the stream's mean drift.

        The targets are those of its last product, so what is added after that (its bias) comes on top.
        """
        assert linear.branch is not None
        key = linear.branch.id
        # From where the walk stands, just before the branch's last product: the model is not run anew for that.
        alone = self.gates.complete(Plan(self.plan.digest, drop=(key,)), self.fit.student.values[0])
        rest, width = self.plan.rests[key], len(fit.y_mean)
        # Either may be one number for all channels: nothing comes on top, or nothing was left there before.
        after, there = (np.broadcast_to(x.reshape(-1), width) for x in (alone.rests[key], rest))
        nothing = np.zeros((len(held.x_mean), width))
        before = error(held, nothing, there - after)
        found = error(held, nothing, fit.y_mean)
        if found >= before:
            return Step(linear.node, None, 1.0)
        self.plan = replace(self.plan, rests={**self.plan.rests, key: _like(fit.y_mean + after, rest)})
        return Step(linear.node, BIAS, found / before if before > 0 else 1.0)


def writable_intercept(linear: Linear, intercept: np.ndarray) -> np.ndarray:
    """What can be added to a product, where it goes into a bias that is quantised."""
    bias = bias_of(result_of(linear.matrix.node))
    if bias is None or not isinstance(bias.const_value, Quantised):
        return intercept
    held = bias.const_value.numpy().astype(np.float64)
    return nearest(bias.const_value, held + intercept) - held


def _like(vector: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """A vector per channel in the shape of what a branch leaves behind."""
    shape = rest.shape if rest.size == vector.size else (*(1,) * (rest.ndim - 1), vector.size)
    return vector.reshape(shape).astype(np.float32)
