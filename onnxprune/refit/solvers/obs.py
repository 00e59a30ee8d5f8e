"""Greedy structured optimal brain surgeon: one run gives order of removal, error and weights at every level.

A unit (a neuron, a head) is a block of input rows of the matrices that read it. Removing block u from a reader W with
Gram matrix H costs tr(W_uᵀ [(H⁻¹)_uu]⁻¹ W_u) after the best correction of the rows that stay,
W ← W − (H⁻¹)_:u [(H⁻¹)_uu]⁻¹ W_u; and H⁻¹ is downdated to the inverse of the smaller problem, so that interactions
between units count (ZipLM, Kurtic et al. 2023; OSSCAR, Meng et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import (
    Array,
    Bools,
    Ints,
    damped,
    damped_tokens,
    inverse,
    product,
    solve,
    subtract_product,
)
from onnxprune.refit.solvers.nested_refit import DAMPING, precision

POOL_STEPS = 4
MIN_POOL = 32
COMPACT_BELOW = 0.75


@dataclass(frozen=True, eq=False)
class Reader:
    """A matrix that reads the units.

    Attributes:
        weight: [n, m], rows = inputs.
        gram: [n, n] H = Σ x xᵀ over tokens (centred where an intercept will be fitted); or, of fewer of them than
            there are inputs, these [t, n].
        units: int [n] the unit of each row, −1 for rows that always stay. Units have equally many rows, which need
            not be adjacent; two readers may give a unit differently many rows.
    """

    weight: npt.NDArray[np.floating]
    gram: npt.NDArray[np.floating]
    units: npt.NDArray[np.integer]

    @property
    def few(self) -> bool:
        """Whether tokens stand for the Gram matrix."""
        return self.gram.ndim == 2 and self.gram.shape[0] < self.gram.shape[1]

    def blocks(self) -> dict[int, Ints]:
        """Unit id -> its row indices; checked to be of equal size and as many as H has."""
        units = np.asarray(self.units, dtype=np.int64)
        n = len(units)
        if self.weight.shape[0] != n or (self.gram.shape != (n, n) and not (self.few and self.gram.shape[1] == n)):
            raise ValueError(f"{n} unit ids for weight {self.weight.shape} and Gram matrix {self.gram.shape}")
        order = np.argsort(units, kind="stable")
        order = order[units[order] >= 0]
        ids, counts = np.unique(units[order], return_counts=True)
        if len(set(counts.tolist())) > 1:
            raise ValueError("units of different sizes in one reader")
        rows = order.reshape(len(ids), -1) if len(ids) else np.zeros((0, 1), dtype=np.int64)
        return {int(u): r for u, r in zip(ids, rows, strict=True)}

    def rows_of(self, kept: npt.ArrayLike) -> Bools:
        """Bool mask [n] of the rows that stay when exactly the unit ids `kept` do."""
        units = np.asarray(self.units, dtype=np.int64)
        return np.isin(units, np.asarray(kept, dtype=np.int64)) | (units < 0)


@dataclass(frozen=True, eq=False)
class ObsPath:
    """Removal of all units, one after another.

    Attributes:
        order: [U] unit ids, first removed first.
        error: [U + 1] predicted squared output error (damped, summed over readers) after k removals; error[0] = 0.
        total: tr(WᵀHW) summed over readers: the error of removing everything without correction, to compare with.
        weights: units left -> refit weights per reader [n, m] (zero rows for removed units), at the levels asked for.
    """

    order: Ints
    error: Array
    total: float
    weights: dict[int, tuple[Array, ...]] = field(default_factory=dict)

    def kept(self, level: int) -> Ints:
        """Ids, ascending, of the units left when `level` are."""
        return np.sort(self.order[len(self.order) - level :])

    def error_at(self, level: int) -> float:
        """Predicted error when `level` units are left."""
        return float(self.error[len(self.order) - level])


def obs_path(
    readers: Sequence[Reader],
    *,
    step: int | None = None,
    keep_levels: Iterable[int] = (),
    damping: float = DAMPING,
) -> ObsPath:
    """The greedy path from all units to none.

    Within a step, units are picked one by one from a pool of the cheapest (exactly corrected for one another, so that
    of two copies of a neuron only one goes cheaply); the large matrices are updated once a step.

    Args:
        readers: the matrices that read the same unit ids.
        step: units removed between updates of the whole matrices; about 1% of the units by default. It buys speed;
            with at most `MIN_POOL` units the path is the exact greedy one whatever it is.
        keep_levels: numbers of units left at which the weights are recorded.
        damping: share of H's mean diagonal added to it; it pulls the refit weights toward the given ones.
    """
    states = [(_OnTokens if reader.few else _State)(reader, damping) for reader in readers]
    units = np.array(sorted(states[0].blocks), dtype=np.int64) if states else np.zeros(0, dtype=np.int64)
    if any(set(s.blocks) != set(units.tolist()) for s in states):
        raise ValueError("the readers do not read the same units")
    wanted = {int(level) for level in keep_levels}
    if wanted and not wanted <= set(range(len(units) + 1)):
        raise ValueError(f"a level in {sorted(wanted)} is outside 0..{len(units)}")
    step = step or max(1, len(units) // 96)
    order: list[int] = []
    error = [0.0]
    weights = {}
    alive = units
    while True:
        if len(alive) in wanted:
            weights[len(alive)] = tuple(state.weight_now() for state in states)
        if not len(alive):
            break
        stop = max((level for level in wanted if level < len(alive)), default=0)
        count = min(step, len(alive) - stop)
        picked, costs = _pick(states, alive, count)
        for state in states:
            state.remove(picked)
        alive = np.setdiff1d(alive, picked)
        order += picked.tolist()
        error += (error[-1] + np.cumsum(costs)).tolist()
    return ObsPath(np.array(order, dtype=np.int64), np.array(error), sum(s.total for s in states), weights)


def removal_costs(inverse_blocks: Array, rows: Array) -> Array:
    """tr(W_uᵀ [(H⁻¹)_uu]⁻¹ W_u) for a stack of blocks: [U, b, b] and [U, b, m] -> [U]."""
    if inverse_blocks.shape[-1] == 1:
        return np.asarray(np.einsum("ubm,ubm->u", rows, rows) / inverse_blocks[:, 0, 0])
    return np.asarray(np.einsum("ubm,ubm->u", rows, np.linalg.solve(inverse_blocks, rows)))


class _State:
    """One reader on its way down: current weights and current H⁻¹, compacted to the rows that are left."""

    def __init__(self, reader: Reader, damping: float) -> None:
        self.blocks = reader.blocks()
        self._ids = np.array(sorted(self.blocks), dtype=np.int64)
        self._rows = np.array([self.blocks[int(u)] for u in self._ids], dtype=np.int64)
        self.original = np.asarray(reader.weight, dtype=np.float64)
        # A dead input's weights read nothing: they cost nothing to remove and are left alone while they stay.
        self.dead = self._begun(reader.gram, damping)
        self.w = np.where(self.dead[:, None], 0.0, self.original)
        self.total = self._total()
        self.w = self.w.astype(self._precision)
        self.rows = np.arange(len(self.w))
        self.position = np.arange(len(self.w))

    def at(self, units: Ints) -> Ints:
        """[U, b] positions of the units' rows in the compacted matrices."""
        return self.position[self._rows[np.searchsorted(self._ids, units)]]

    def costs(self, units: Ints) -> Array:
        at = self.at(units)
        return removal_costs(self.blocks_of_inverse(at), self.w[at])

    def remove(self, units: Ints) -> None:
        at = self.at(units).ravel()
        across = self.inverse_rows(at)
        gain = np.asarray(np.linalg.solve(across[:, at], across))
        subtract_product(self.w, gain, self.w[at])
        # What is left of a removed row is rounding; it is not read again, but must not leak into the others.
        self.w[at] = 0.0
        self._downdate(at, across, gain)
        self.rows[at] = -1
        left = np.flatnonzero(self.rows >= 0)
        if len(left) < COMPACT_BELOW * len(self.rows):
            self.w, self.rows = self.w[left], self.rows[left]
            self._compact(left)
            self.position[self.rows] = np.arange(len(left))

    # -- H and its inverse -------------------------------------------------------------------------------------

    def _begun(self, gram: npt.NDArray[np.floating], damping: float) -> Bools:
        """Take H; which inputs are dead."""
        safe = damped(gram, damping)
        self.matrix, self.inverse = safe.matrix, inverse(safe.matrix)
        return safe.dead

    def _total(self) -> float:
        """tr(WᵀHW), after which H itself is not needed."""
        matrix = self.matrix
        del self.matrix
        self.inverse = self.inverse.astype(self._precision)
        return float(np.sum(self.w * product(matrix, self.w)))

    @property
    def _precision(self) -> type[np.floating[Any]]:
        """Of the weights and the inverse on their way down."""
        return precision(len(self.original))

    def blocks_of_inverse(self, at: Ints) -> Array:
        """[U, b, b] of positions [U, b]."""
        return np.asarray(self.inverse[at[:, :, None], at[:, None, :]])

    def part_of_inverse(self, at: Ints) -> Array:
        """[k, k] of positions [k]."""
        return self.inverse[np.ix_(at, at)]

    def inverse_rows(self, at: Ints) -> Array:
        """[k, n] of positions [k]."""
        return self.inverse[at]

    def _downdate(self, at: Ints, across: Array, gain: Array) -> None:
        subtract_product(self.inverse, across, gain)
        self.inverse[at] = 0.0
        self.inverse[:, at] = 0.0

    def _compact(self, left: Ints) -> None:
        self.inverse = self.inverse[np.ix_(left, left)]

    # ----------------------------------------------------------------------------------------------------------

    def weight_now(self) -> Array:
        result = np.zeros_like(self.original)
        left = self.rows >= 0
        rows = self.rows[left]
        result[rows] = np.where(self.dead[rows, None], self.original[rows], self.w[left])
        return result


class _OnTokens(_State):
    """The same where fewer tokens X [t, n] than inputs are known: (XᵀX + δ)⁻¹ = (1 − Xᵀ(δ + XXᵀ)⁻¹X) / δ.

    What is kept of the inverse is as large as the tokens are, and what stays of them is what says it for the rows left.
    """

    def _begun(self, gram: npt.NDArray[np.floating], damping: float) -> Bools:
        x, dead, self.shift = damped_tokens(gram, damping)
        self.x = x.astype(np.float64)
        self._solved()
        return dead

    @property
    def _precision(self) -> type[np.floating[Any]]:
        return np.float64

    def _solved(self) -> None:
        kernel = product(self.x, self.x.T)
        kernel[np.diag_indices_from(kernel)] += self.shift
        self.y = solve(kernel, self.x)

    def _total(self) -> float:
        given = product(self.x, self.w)
        return float(np.vdot(given, given) + self.shift * np.vdot(self.w, self.w))

    def blocks_of_inverse(self, at: Ints) -> Array:
        x, y = self.x[:, at], self.y[:, at]
        if at.shape[1] == 1:
            met = np.einsum("tub,tub->u", x, y)[:, None, None]
        else:
            met = np.matmul(x.transpose(1, 2, 0), y.transpose(1, 0, 2))
        return np.asarray((np.eye(at.shape[1]) - met) / self.shift)

    def part_of_inverse(self, at: Ints) -> Array:
        return np.asarray((np.eye(len(at)) - product(self.x[:, at].T, self.y[:, at])) / self.shift)

    def inverse_rows(self, at: Ints) -> Array:
        found = -product(self.x[:, at].T, self.y)
        found[np.arange(len(at)), at] += 1.0
        return found / self.shift

    def _downdate(self, at: Ints, across: Array, gain: Array) -> None:
        self.x[:, at] = 0.0
        self._solved()

    def _compact(self, left: Ints) -> None:
        self.x, self.y = self.x[:, left], self.y[:, left]


def _pick(states: Sequence[_State], alive: Ints, count: int) -> tuple[Ints, Array]:
    """`count` units to remove next, in order, and the error each adds given the ones before it."""
    costs = np.sum([state.costs(alive) for state in states], axis=0)
    size = min(len(alive), max(POOL_STEPS * count, MIN_POOL))
    pool = np.sort(np.argsort(costs, kind="stable")[:size])
    costs, units = costs[pool], alive[pool]
    local = [_Local(state, units) for state in states]
    picked, added = [], []
    for k in range(count):
        if k:
            costs = np.sum([part.costs() for part in local], axis=0)
        best = int(np.argmin(costs))
        picked.append(int(units[best]))
        added.append(max(float(costs[best]), 0.0))
        for part in local:
            part.remove(best)
    return np.array(picked, dtype=np.int64), np.array(added)


class _Local:
    """A reader's current WWᵀ and H⁻¹ restricted to a pool of units; small, so updated at every pick.

    A unit's cost, tr(W_uᵀ [(H⁻¹)_uu]⁻¹ W_u), asks of its rows for their products with one another only.
    """

    def __init__(self, state: _State, units: Ints) -> None:
        at = state.at(units)
        self.block = at.shape[1]
        w = state.w[at.ravel()]
        self.products = w @ w.T
        self.inverse = state.part_of_inverse(at.ravel())
        self.gone = np.zeros(len(units), dtype=bool)

    def costs(self) -> Array:
        """What each unit of the pool costs now; infinite for those that went."""
        if self.block == 1:
            found = np.diagonal(self.products) / np.where(self.gone, 1.0, np.diagonal(self.inverse))
        else:
            found = np.zeros(len(self.gone))
            left = np.flatnonzero(~self.gone)
            at = np.arange(len(self.inverse)).reshape(-1, self.block)[left]
            own = at[:, :, None], at[:, None, :]
            found[left] = np.trace(np.linalg.solve(self.inverse[own], self.products[own]), axis1=1, axis2=2)
        return np.where(self.gone, np.inf, found)

    def remove(self, index: int) -> None:
        at = slice(index * self.block, (index + 1) * self.block)
        across = self.inverse[at]
        # A single row is scaled, a block solved for.
        gain = across / across[0, index] if self.block == 1 else np.linalg.solve(across[:, at], across)
        # W ← W − GᵀW_u, so WWᵀ ← (1 − Gᵀe_u) WWᵀ (1 − e_uᵀG).
        self.products -= gain.T @ self.products[at]
        self.products -= self.products[:, at] @ gain
        self.inverse -= across.T @ gain
        self.gone[index] = True
