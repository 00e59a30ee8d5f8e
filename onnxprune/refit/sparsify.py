"""Sparse weights in gated space: N:M groups, blocks and pattern libraries, matrix after matrix.

Each matrix is solved for the inputs that the model, sparse so far, really feeds it, and gets exact zeros; what a plan
cuts is left out first, so that groups are counted in the matrix that will be written. Dense refits must come before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.errors import CheckError
from onnxprune.graph import model as models
from onnxprune.graph.axes import flat_mask, flat_order
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.prepare import quantised
from onnxprune.graph.structure.linear_layers import Linear, find_linears
from onnxprune.probe.forward import Rows, Walk, real_tokens
from onnxprune.probe.gates import Gates
from onnxprune.probe.second_moments import Gram
from onnxprune.refit.compensate import writable_intercept
from onnxprune.refit.paired_runs import SideBySide
from onnxprune.refit.solvers import (
    INFINITE,
    ON_SUPPORT,
    SOLVERS,
    Pattern,
    Tiled,
    error,
    on_support,
    parse,
    ridge,
    ridge_path,
)
from onnxprune.rewrite.tile import read_back

logger = logging.getLogger(__name__)

STRENGTHS = (INFINITE, 1.0, 1e-1, 1e-2)
"""Ridge strengths of the target that a matrix is solved for: its own weights, or those that mend what came before."""

DAMPINGS = (3e-2, 1e-1, 3e-1)
"""Damping of the least squares on a mask, to choose from."""

Solve = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""(weight [n, m], gram [n, n], if there is one) -> sparse weight [n, m]."""


Patterns = Pattern | Mapping[str, Pattern]
"""One pattern for all matrices, or initializer name -> pattern."""


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a matrix that a plan leaves: a linear map, its rows and its columns as they will be written."""

    linear: Linear
    rows: np.ndarray
    columns: np.ndarray

    def take(self, array: np.ndarray) -> np.ndarray:
        """A weight in its own shape -> [rows, columns] of what is left."""
        return np.asarray(self.linear.matrix.weight(array)[np.ix_(self.rows, self.columns)])

    def put(self, part: np.ndarray, array: np.ndarray) -> np.ndarray:
        """The weight in its own shape with the part replaced; rows that are gone are zero."""
        whole = np.array(self.linear.matrix.weight(array), dtype=np.float32)
        whole[np.setdiff1d(np.arange(len(whole)), self.rows)] = 0.0
        whole[np.ix_(self.rows, self.columns)] = part
        return self.linear.matrix.restore(whole, array.shape)


def parts_of(gates: Gates, plan: Plan, linears: Sequence[Linear]) -> list[Part]:
    """What a plan leaves of each matrix; those inside dropped branches are passed over."""
    structure = gates.structure
    masks, orders = plan.masks(structure), plan.orders(structure)
    found = []
    for linear in linears:
        if linear.inside in plan.drop or (linear.branch is not None and linear.branch.id in plan.drop):
            continue
        read, written = (
            structure.layouts[linear.source][linear.matrix.reader.axis],
            structure.layouts[linear.matrix.output][-1],
        )
        rows, columns = (flat_order(layout, masks, orders, structure.sizes) for layout in (read, written))
        found.append(Part(linear, rows, columns))
    return found


def pattern_of(patterns: Patterns, part: Part) -> Pattern:
    """The pattern of one matrix."""
    return patterns[part.linear.weight] if isinstance(patterns, Mapping) else patterns


def sparsify(
    gates: Gates,
    fit: Rows | None,
    plan: Plan,
    linears: Sequence[Linear],
    patterns: Patterns,
    solver: str = "admm",
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    held: Rows | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The plan with its linear maps pruned to patterns.

    Args:
        fit: rows to learn from; None where the solver is "magnitude", which needs none.
        linears: in graph order.
        solver: one of solve.SOLVERS; unused where there are scores.
        scores: initializer name -> non-negative importance of each weight, in its shape (SEVEN's, say): the mask is
            what keeps the most of it, and least squares on that support gives the weights.
        held: held-out rows. With them every matrix is mended too: it is solved for what the dense model gives in its
            place, and how far that may pull its weights, what errs least on their tokens says. Without them each matrix
            is solved for its own outputs and no bias moves.

    Raises:
        CheckError: a solved matrix is not in the pattern.
    """
    polish = scores is not None or solver in ON_SUPPORT
    mender = None
    if held is not None and fit is not None:
        wanted = fit.divergence.outputs
        mender = _Mender(gates, SideBySide(fit, wanted), SideBySide(held, wanted), polish)
    walk = None if fit is None else Walk(fit, fit.divergence.outputs)
    todo = parts_of(gates, plan, linears)
    for i, part in enumerate(todo):
        pattern = pattern_of(patterns, part)
        array = gates.weight(plan, part.linear.weight)
        weight = part.take(array).astype(np.float64)
        solve = _solve(part, solver, pattern, None if scores is None else scores.get(part.linear.weight))
        if mender is None:
            solved = solve(weight, None if walk is None else gram_of(gates, walk, plan, part).matrix)
            _check(part, solved, pattern)
            solved = gates.writable(part.linear.weight, part.put(solved, array))
            plan = replace(plan, weights={**plan.weights, part.linear.weight: solved})
        else:
            plan = mender.mend(plan, part, weight, array, solve)
            _check(part, part.take(plan.weights[part.linear.weight]), pattern)
        if progress is not None:
            progress(i + 1, len(todo))
    return plan


def _solve(part: Part, solver: str, pattern: Pattern, scores: np.ndarray | None) -> Solve:
    if isinstance(pattern, Tiled):
        scores = pattern.project(np.ones((len(part.rows), len(part.columns))))
        return lambda weight, gram: weight * scores if gram is None else on_support(weight, gram, scores)
    if scores is None:
        return lambda weight, gram: SOLVERS[solver](weight, gram, pattern)
    worth = np.abs(part.take(scores)).astype(np.float64)
    mask = pattern.learn(worth).project(worth)
    return lambda weight, gram: weight * mask if gram is None else on_support(weight, gram, mask)


@dataclass(frozen=True)
class _Mender:
    """Solves matrices, first to last, for what the dense model gives in their place; a bias takes up the mean.

    The target is the dense map, of several ridge strengths, that errs least on held-out tokens. The solver finds a mask
    for it; with `polish` the same tokens choose the damping of least squares on that mask, and are then fitted too.
    All tokens count alike: weights by what the outputs feel, as where units are cut, made the divergence larger.
    """

    gates: Gates
    fit: SideBySide
    held: SideBySide
    polish: bool

    def mend(self, plan: Plan, part: Part, weight: np.ndarray, array: np.ndarray, solve: Solve) -> Plan:
        """The plan with a matrix solved."""
        before, every = self.gates.gated(plan), np.arange(len(weight))
        sides = (side.moments(part.linear, before, part.rows, part.columns) for side in (self.fit, self.held))
        fit, held = (side.moments for side in sides)
        both = fit.merge(held)

        def off(sparse: np.ndarray) -> float:
            return error(held, sparse, fit.y_mean - fit.x_mean @ sparse)

        targets = zip(STRENGTHS, ridge_path(fit, every, weight, STRENGTHS), strict=True)
        strength, target = min(targets, key=lambda t: off(t[1].weight))
        solved = solve(target.weight, fit.sxx)
        if self.polish:
            mask, tried = solved != 0, []
            for damping in DAMPINGS:
                solved = on_support(target.weight, fit.sxx, mask, damping=damping, start=solved)
                tried.append((off(solved), damping, solved))
            _, damping, solved = min(tried, key=lambda t: t[0])
            goal = ridge(both, every, weight, strength).weight
            solved = on_support(goal, both.sxx, mask, damping=damping, start=solved)
            logger.debug("%s: ridge %g, damping %g", part.linear.weight, strength, damping)
        array = self.gates.writable(part.linear.weight, part.put(solved, array))
        bias = both.y_mean - both.x_mean @ part.take(array)
        whole = np.zeros(part.linear.matrix.weight(array).shape[1], dtype=np.float32)
        whole[part.columns] = bias
        return replace(
            plan,
            weights={**plan.weights, part.linear.weight: array},
            intercepts={**plan.intercepts, part.linear.matrix.output: writable_intercept(part.linear, whole)},
        )


def verify(gates: Gates, plan: Plan, linears: Sequence[Linear], patterns: Patterns) -> dict[str, float]:
    """The share of zeros in what is left of each matrix.

    Raises:
        CheckError: a matrix is not in the pattern.
    """
    found = {}
    for part in parts_of(gates, plan, linears):
        weight = part.take(gates.weight(plan, part.linear.weight))
        _check(part, weight, pattern_of(patterns, part))
        found[part.linear.weight] = float((weight == 0).mean())
    return found


def zeros_in(file: Path, model: Model, structure: Structure, plan: Plan) -> float | None:
    """The share of zeros in a plan's sparse matrices as they were written; None where it has none.

    Args:
        file: the pruned model.
        model, structure: the dense one.

    Raises:
        CheckError: a written matrix is not in its pattern, or is not there.
    """
    if not plan.sparsity:
        return None
    whole = models.read(file)
    quantised.fold(whole)
    graph = whole.graph
    zeros = count = 0
    for linear in find_linears(model.graph, structure):
        if linear.weight not in plan.sparsity:
            continue
        if linear.weight in plan.tiles:
            kept, size = _tiled(file, graph, structure, plan, linear)
            zeros, count = zeros + size - kept, count + size
            continue
        written = graph.initializers.get(linear.weight)
        tensor = None if written is None else written.const_value
        if tensor is None:
            raise CheckError(f"{file}: the sparse weight {linear.weight} is not in the file")
        weight = linear.matrix.weight(tensor.numpy())
        if not parse(plan.sparsity[linear.weight]).satisfied(weight):
            raise CheckError(
                f"{file}: {linear.weight} is not in the pattern {plan.sparsity[linear.weight]} along its inputs"
            )
        zeros, count = zeros + int((weight == 0).sum()), count + weight.size
    return zeros / max(count, 1)


def _tiled(file: Path, graph: ir.Graph, structure: Structure, plan: Plan, linear: Linear) -> tuple[int, int]:
    """(weights that are not zero, all weights) of a matrix whose product was written in tiles."""
    masks, sizes = plan.masks(structure), structure.sizes
    inputs = int(flat_mask(structure.layouts[linear.source][linear.matrix.reader.axis], masks, sizes).sum())
    found = read_back(graph, linear.node, inputs)
    if tuple(tile for tile, _ in found) != plan.tiles[linear.weight]:
        raise CheckError(f"{file}: the tiles of {linear.weight} read other inputs than the plan says")
    return sum(int((block != 0).sum()) for _, block in found), inputs * found[-1][0].last


def output_errors(gates: Gates, rows: Rows, plan: Plan, linears: Sequence[Linear]) -> dict[str, float]:
    """‖XW − XŴ‖² / ‖XW‖² of each matrix on the dense model's own inputs, on rows that solved nothing."""
    walk = Walk(rows, rows.divergence.outputs)
    empty = Plan(plan.digest)
    found = {}
    for part in parts_of(gates, empty, linears):
        gram = gram_of(gates, walk, empty, part).matrix
        dense = part.take(gates.weight(empty, part.linear.weight)).astype(np.float64)
        change = dense - part.take(gates.weight(plan, part.linear.weight))
        found[part.linear.weight] = float(np.sum(change * (gram @ change)) / np.sum(dense * (gram @ dense)))
    return found


def gram_of(gates: Gates, walk: Walk, plan: Plan, part: Part) -> Gram:
    """Second moments of what the model under a plan feeds a matrix, over the rows that are left."""
    import torch

    gated, gram = gates.gated(plan), Gram()
    walk.to(part.linear.node, [part.linear.source], gated)
    for i, batch in enumerate(walk.rows.batches):
        real = real_tokens(batch)
        with torch.inference_mode():
            gram.add(part.linear.matrix.rows(walk.peek(i, part.linear.source, gated), real)[:, part.rows])
    return gram


def _check(part: Part, weight: np.ndarray, pattern: Pattern) -> None:
    if not pattern.satisfied(weight):
        raise CheckError(f"{part.linear.weight}: the sparse weight is not in the pattern {pattern}; this is a bug")
