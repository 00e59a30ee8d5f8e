"""Pairwise swaps at one level: a kept unit for a removed one, while the predicted error falls.

Greedy removal never takes a step back; a few exchanges repair what it got wrong. All quantities of an exchange are
entries of the Gram matrix *swept* on the kept rows (Goodnight 1979): the inverse on the kept rows, the Schur
complement on the removed ones, and between them the coefficients that predict one from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import Array, Ints, damped, inverse
from onnxprune.refit.solvers.nested_refit import DAMPING
from onnxprune.refit.solvers.obs import Reader, removal_costs

LEAST_GAIN = 1e-9
"""Relative to the error of removing everything: a smaller gain is rounding."""


@dataclass(frozen=True, eq=False)
class Refined:
    """A kept set after swaps.

    Attributes:
        kept: ids, ascending; as many as before.
        error: predicted squared output error (damped, summed over readers) of that set, refitted.
        weights: refit weights per reader, [n, m], zero rows for removed units.
        swaps: (removed, brought back) in the order made.
    """

    kept: Ints
    error: float
    weights: tuple[Array, ...]
    swaps: tuple[tuple[int, int], ...]


def refine(
    readers: Sequence[Reader],
    kept: npt.ArrayLike,
    *,
    damping: float = DAMPING,
    max_swaps: int = 64,
    pool: int = 32,
) -> Refined:
    """Best swap by best swap from the unit ids `kept`, until none helps or `max_swaps` are made.

    Each round weighs the `pool` cheapest kept units against the `pool` most missed removed ones, jointly; with no
    more units than that on either side, the result is a true local optimum of single exchanges. The error never rises.
    """
    chosen = np.unique(np.asarray(kept, dtype=np.int64))
    states = [_Swept(reader, chosen, damping) for reader in readers]
    units = np.array(sorted(states[0].blocks), dtype=np.int64) if states else chosen
    if any(set(s.blocks) != set(units.tolist()) for s in states) or not np.isin(chosen, units).all():
        raise ValueError("the readers do not read the same units, or a kept id is none of them")
    inside = np.isin(units, chosen)
    least = LEAST_GAIN * sum(state.total for state in states)
    swaps: list[tuple[int, int]] = []
    while len(swaps) < max_swaps and inside.any() and not inside.all():
        out, back, change = _best_swap(states, units[inside], units[~inside], pool)
        if change >= -least:
            break
        for state in states:
            state.pivot(back, adding=True)
            state.pivot(out, adding=False)
        inside[np.searchsorted(units, [out, back])] = (False, True)
        swaps.append((out, back))
    error = sum(state.error() for state in states)
    return Refined(units[inside], error, tuple(state.weight_now() for state in states), tuple(swaps))


def _best_swap(states: Sequence[_Swept], kept: Ints, gone: Ints, pool: int) -> tuple[int, int, float]:
    """(unit out, unit back, change of error) of the best exchange between the two pools."""
    cost = np.sum([state.costs(kept) for state in states], axis=0)
    gain = np.sum([state.gains(gone) for state in states], axis=0)
    out = np.sort(kept[np.argsort(cost, kind="stable")[:pool]])
    back = np.sort(gone[np.argsort(-gain, kind="stable")[:pool]])
    change = np.array([np.sum([state.exchange(out, int(u)) for state in states], axis=0) for u in back])
    row, column = np.unravel_index(int(np.argmin(change)), change.shape)
    return int(out[column]), int(back[row]), float(change[row, column])


class _Swept:
    """One reader's Gram matrix swept on its kept rows S, and the right-hand side H·W₀ swept along.

    `matrix` holds −(H_SS)⁻¹, (H_SS)⁻¹H_SR and the Schur complement of R; `side` holds the refit weights on S and
    H_RR·W₀_R's unexplained part (the correlation of removed inputs with the output error) on R.
    """

    def __init__(self, reader: Reader, kept: Ints, damping: float) -> None:
        self.blocks = reader.blocks()
        self.original = np.asarray(reader.weight, dtype=np.float64)
        safe = damped(reader.gram, damping)
        self.gram, self.dead = safe.matrix, safe.dead
        self.w0 = np.where(safe.dead[:, None], 0.0, self.original)
        self.total = float(np.sum(self.w0 * (self.gram @ self.w0)))
        self.inside = reader.rows_of(kept)
        s, r = np.flatnonzero(self.inside), np.flatnonzero(~self.inside)
        h, target = self.gram, self.gram @ self.w0
        held = inverse(h[np.ix_(s, s)])
        across = held @ h[np.ix_(s, r)]
        self.matrix, self.side = np.empty_like(h), np.empty_like(target)
        self.matrix[np.ix_(s, s)] = -held
        self.matrix[np.ix_(s, r)] = across
        self.matrix[np.ix_(r, s)] = across.T
        self.matrix[np.ix_(r, r)] = h[np.ix_(r, r)] - h[np.ix_(r, s)] @ across
        self.side[s] = held @ target[s]
        self.side[r] = target[r] - h[np.ix_(r, s)] @ self.side[s]

    def at(self, units: Ints) -> Ints:
        return np.stack([self.blocks[int(u)] for u in units])

    def costs(self, units: Ints) -> Array:
        """What removing each kept unit adds."""
        at = self.at(units)
        return removal_costs(-self.matrix[at[:, :, None], at[:, None, :]], self.side[at])

    def gains(self, units: Ints) -> Array:
        """What bringing each removed unit back saves."""
        at = self.at(units)
        return removal_costs(self.matrix[at[:, :, None], at[:, None, :]], self.side[at])

    def exchange(self, out: Ints, back: int) -> Array:
        """Change of error when `back` returns and then each of `out` leaves."""
        r, at = self.blocks[back], self.at(out)
        schur = self.matrix[np.ix_(r, r)]
        between = self.matrix[at][:, :, r]
        gain = np.linalg.solve(schur, self.side[r])
        held = between @ np.linalg.solve(schur, between.transpose(0, 2, 1)) - self.matrix[at[:, :, None], at[:, None]]
        saved = float(np.sum(self.side[r] * gain))
        return removal_costs(held, self.side[at] - between @ gain) - saved

    def pivot(self, unit: int, *, adding: bool) -> None:
        """Sweep a unit's rows in, or back out."""
        at = self.blocks[unit]
        sign = 1.0 if adding else -1.0
        own = self.matrix[np.ix_(at, at)]
        across, rows = self.matrix[at], self.side[at]
        gain, shift = np.linalg.solve(own, across), np.linalg.solve(own, rows)
        self.matrix -= across.T @ gain
        self.side -= across.T @ shift
        self.matrix[at] = sign * gain
        self.matrix[:, at] = sign * gain.T
        self.matrix[np.ix_(at, at)] = -np.linalg.inv(own)
        self.side[at] = sign * shift
        self.inside[at] = adding

    def weight_now(self) -> Array:
        result = np.where(self.dead[:, None], self.original, self.side)
        result[~self.inside] = 0.0
        return result

    def error(self) -> float:
        change = np.where(self.inside[:, None], self.side, 0.0) - self.w0
        return float(np.sum(change * (self.gram @ change)))
