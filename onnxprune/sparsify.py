"""Sparse weights in gated space: N:M groups, blocks and pattern libraries, matrix after matrix.

Each matrix is solved for the inputs that the model, sparse so far, really feeds it, and gets exact zeros; what a plan
cuts is left out first, so that groups are counted in the matrix that will be written. Dense refits must come before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.axes import flat_mask
from onnxprune.errors import CheckError
from onnxprune.gates import Gates
from onnxprune.linears import Linear
from onnxprune.plan import Plan
from onnxprune.probe import Evaluator, Gram, Rows, Walk
from onnxprune.solve import SOLVERS, Pattern, on_support

logger = logging.getLogger(__name__)

DECAY = 2e-4
"""λ of SR-STE: how fast what the mask hides is pulled to zero (Zhou et al., ICLR 2021)."""

REFRESH = 10
"""Steps of fine-tuning between two choices of the masks."""


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a matrix that a plan leaves: a linear map, its rows and its columns."""

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
    masks, structure = plan.masks(gates.structure), gates.structure
    found = []
    for linear in linears:
        if linear.inside in plan.drop or (linear.branch is not None and linear.branch.id in plan.drop):
            continue
        rows = flat_mask(structure.layouts[linear.source][linear.matrix.reader.axis], masks, structure.sizes)
        columns = flat_mask(structure.layouts[linear.matrix.output][-1], masks, structure.sizes)
        found.append(Part(linear, np.flatnonzero(rows), np.flatnonzero(columns)))
    return found


def sparsify(
    gates: Gates,
    fit: Rows,
    plan: Plan,
    linears: Sequence[Linear],
    pattern: Pattern,
    solver: str = "admm",
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The plan with its linear maps pruned to a pattern.

    Args:
        linears: in graph order.
        solver: one of solve.SOLVERS; unused where there are scores.
        scores: initializer name -> non-negative importance of each weight, in its shape (SEVEN's, say): the mask is
            what keeps the most of it, and least squares on that support gives the weights.

    Raises:
        CheckError: a solved matrix is not in the pattern.
    """
    walk = Walk(fit, fit.divergence.outputs)
    todo = parts_of(gates, plan, linears)
    for i, part in enumerate(todo):
        array = current(gates, plan, part.linear)
        weight = part.take(array).astype(np.float64)
        gram = _gram(gates, walk, plan, part)
        if scores is not None and part.linear.weight in scores:
            worth = np.abs(part.take(scores[part.linear.weight])).astype(np.float64)
            solved = on_support(weight, gram, pattern.learn(worth).project(worth))
        else:
            solved = SOLVERS[solver](weight, gram, pattern)
        _check(part, solved, pattern)
        plan = replace(plan, weights={**plan.weights, part.linear.weight: part.put(solved, array)})
        if progress is not None:
            progress(i + 1, len(todo))
    return plan


def current(gates: Gates, plan: Plan, linear: Linear) -> np.ndarray:
    """A linear map's weight under a plan, in its own shape."""
    if linear.weight in plan.weights:
        return plan.weights[linear.weight]
    return np.asarray(gates.interpreter.weight(linear.weight).float().cpu().numpy())


def verify(gates: Gates, plan: Plan, linears: Sequence[Linear], pattern: Pattern) -> dict[str, float]:
    """The share of zeros in what is left of each matrix.

    Raises:
        CheckError: a matrix is not in the pattern.
    """
    found = {}
    for part in parts_of(gates, plan, linears):
        weight = part.take(current(gates, plan, part.linear))
        _check(part, weight, pattern)
        found[part.linear.weight] = float((weight == 0).mean())
    return found


def output_errors(gates: Gates, rows: Rows, plan: Plan, linears: Sequence[Linear]) -> dict[str, float]:
    """‖XW − XŴ‖² / ‖XW‖² of each matrix on the dense model's own inputs, on rows that solved nothing."""
    walk = Walk(rows, rows.divergence.outputs)
    empty = Plan(plan.digest)
    found = {}
    for part in parts_of(gates, empty, linears):
        gram = _gram(gates, walk, empty, part)
        dense = part.take(current(gates, empty, part.linear)).astype(np.float64)
        change = dense - part.take(current(gates, plan, part.linear))
        found[part.linear.weight] = float(np.sum(change * (gram @ change)) / np.sum(dense * (gram @ dense)))
    return found


def finetune(
    gates: Gates,
    rows: Rows,
    evaluator: Evaluator,
    plan: Plan,
    linears: Sequence[Linear],
    pattern: Pattern,
    steps: int,
    *,
    rate: float = 2e-5,
    decay: float = DECAY,
    seed: int = 0,
) -> Plan:
    """SR-STE (Zhou et al. 2021), distilled from the dense model: W ← W − γ(g(W̃) + λ · ¬mask ⊙ W), by Adam.

    W̃ = mask ⊙ W. Its gradient goes straight through to the hidden weights too, so that they may come back; the masks
    are chosen anew every `REFRESH` steps. No labels are needed. The plan that diverges least on the evaluator's rows,
    looked at with every choice of masks, is returned: never worse than the one given.
    """
    import torch

    todo = parts_of(gates, plan, linears)
    state = _Latent(gates, plan, todo, pattern)
    optimizer = torch.optim.Adam(list(state.weights.values()), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    best, value = plan, evaluator(gates.gated(plan))
    for step in range(steps):
        i = int(torch.randint(len(rows.batches), (1,), generator=generator))
        batch = rows.batches[i]
        shown = {n: w.detach().mul(state.masks[n]).requires_grad_() for n, w in state.weights.items()}
        gated = gates.gated(plan)
        weights = {**gated.weights, **{n: w * state.kept[n] for n, w in shown.items()}}
        found = rows.interpreter.run(batch.feeds, outputs=rows.divergence.outputs, weights=weights, edit=gated.edit)
        real = None if batch.real is None else torch.from_numpy(batch.real)
        rows.divergence(rows.outputs[i], found, real).mean().backward()
        for name, hidden in state.weights.items():
            slope = shown[name].grad if shown[name].grad is not None else torch.zeros_like(hidden)
            hidden.grad = slope + decay * hidden.detach() * ~state.masks[name]
        optimizer.step()
        if (step + 1) % REFRESH == 0 or step + 1 == steps:
            state.choose(pattern)
            candidate = replace(plan, weights={**plan.weights, **state.sparse()})
            if (now := evaluator(gates.gated(candidate))) < value:
                best, value = candidate, now
    logger.info("fine-tuning: divergence %.5f after %d steps", value, steps)
    return best


class _Latent:
    """Dense weights behind the sparse ones, with their masks; torch tensors in the weights' own shapes."""

    def __init__(self, gates: Gates, plan: Plan, parts: Sequence[Part], pattern: Pattern) -> None:
        import torch

        self.parts = {p.linear.weight: p for p in parts}
        device = gates.interpreter.device
        arrays = {n: current(gates, plan, p.linear) for n, p in self.parts.items()}
        self.weights: dict[str, Any] = {
            n: torch.tensor(a, dtype=torch.float32, device=device) for n, a in arrays.items()
        }
        self.kept: dict[str, Any] = {
            n: torch.from_numpy(p.put(np.ones((len(p.rows), len(p.columns))), np.ones_like(arrays[n]))).to(device)
            for n, p in self.parts.items()
        }
        self.masks: dict[str, Any] = {}
        self.choose(pattern)

    def choose(self, pattern: Pattern) -> None:
        """Masks for the weights as they are."""
        import torch

        for name, part in self.parts.items():
            array = self.weights[name].detach().cpu().numpy()
            worth = np.square(part.take(array), dtype=np.float64)
            mask = part.put(pattern.learn(worth).project(worth), np.ones_like(array))
            self.masks[name] = torch.from_numpy(mask).to(self.weights[name].device) > 0

    def sparse(self) -> dict[str, np.ndarray]:
        """The masked weights."""
        return {n: np.asarray((w.detach() * self.masks[n]).cpu().numpy()) for n, w in self.weights.items()}


def _gram(gates: Gates, walk: Walk, plan: Plan, part: Part) -> np.ndarray:
    """Σ xxᵀ of what the model under a plan feeds a matrix, over the rows that are left."""
    import torch

    gated, gram = gates.gated(plan), Gram()
    walk.to(part.linear.node, [part.linear.source], gated)
    for i, batch in enumerate(walk.rows.batches):
        real = None if batch.real is None else torch.from_numpy(batch.real)
        with torch.inference_mode():
            gram.add(part.linear.matrix.rows(walk.peek(i, part.linear.source, gated), real)[:, part.rows])
    return gram.matrix


def _check(part: Part, weight: np.ndarray, pattern: Pattern) -> None:
    if not pattern.satisfied(weight):
        raise CheckError(f"{part.linear.weight}: the sparse weight is not in the pattern {pattern}; this is a bug")
