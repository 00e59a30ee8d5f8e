"""Weights refit to fewer inputs: the nearest to the given ones in the damped H, for every beginning of an order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import (
    Array,
    as_rows,
    cholesky,
    damped,
    damped_tokens,
    product,
    single_product,
    solve,
    substitute,
)

DAMPING = 1e-2
SINGLE = 1024
"""Rows from which on single precision takes over where the damped H, or its inverse, has been made in double."""


def precision(rows: int) -> type[np.floating[Any]]:
    """Of factors for so many rows."""
    return np.float32 if rows >= SINGLE else np.float64


class NestedRefit:
    """Refit weights of every level of one order of rows, the most important first, from a single factorisation.

    The weights nearest to W in the damped H with only the first k rows are H_kk⁻¹ (HW)_k. With H = LLᵀ in this order,
    the factor of H_kk is the leading block of L, and L⁻¹HW serves all k: a level costs one triangular solve. It is
    what `obs_path` arrives at, for any kept set.

    Args:
        weight, gram: [n, m], [n, n].
        order: row indices [n], those that stay longest first.
    """

    def __init__(
        self, weight: npt.ArrayLike, gram: npt.ArrayLike, order: npt.ArrayLike, *, damping: float = DAMPING
    ) -> None:
        self.weight = np.asarray(weight)
        self.order = np.asarray(order, dtype=np.int64)
        safe = damped(gram, damping)
        h = safe.matrix[np.ix_(self.order, self.order)].astype(precision(len(self.order)))
        self.dead = safe.dead[self.order]
        del safe
        self.factor = cholesky(h)
        given = np.where(self.dead[:, None], 0.0, self.weight[self.order]).astype(h.dtype)
        self.image = substitute(self.factor, product(h, given))

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return self.factor.nbytes + self.image.nbytes + self.weight.nbytes

    def at(self, count: int) -> Array:
        """The weights [n, m] with the first `count` rows of the order, the others zero."""
        if count == len(self.order):
            return self.weight.astype(np.float64)
        found = np.zeros(self.weight.shape)
        solved = substitute(self.factor[:count, :count], self.image[:count], transposed=True)
        # A dead input's weights read nothing: they stay as they are.
        rows = self.order[:count]
        found[rows] = np.where(self.dead[:count, None], self.weight[rows], solved)
        return found


class RefitOnTokens:
    """`NestedRefit` of fewer tokens x_t than there are rows, where H = XᵀX is known by X [t, n].

    With K of the rows kept and G of those gone, the nearest weights are W_K + X_Kᵀ(X_K X_Kᵀ + δ)⁻¹ X_G W_G.
    """

    def __init__(
        self, weight: npt.ArrayLike, tokens: npt.ArrayLike, order: npt.ArrayLike, *, damping: float = DAMPING
    ) -> None:
        self.weight, self.order = np.asarray(weight, dtype=np.float32), np.asarray(order, dtype=np.int64)
        self.x, _, self.shift = damped_tokens(tokens, damping)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return int(self.weight.nbytes + self.x.nbytes)

    def at(self, count: int) -> npt.NDArray[np.floating]:
        """The weights [n, m] with the first `count` rows of the order, the others zero."""
        if count == len(self.order):
            return np.array(self.weight)
        kept, gone = self.order[:count], self.order[count:]
        found = np.zeros_like(self.weight)
        left = single_product(self.x[:, gone], self.weight[gone]).astype(np.float64)
        own = self.x[:, kept]
        kernel = single_product(own, own.T).astype(np.float64)
        kernel[np.diag_indices_from(kernel)] += self.shift
        found[kept] = self.weight[kept] + single_product(own.T, solve(kernel, left).astype(np.float32))
        return found


def refit(weight: npt.ArrayLike, gram: npt.ArrayLike, kept: npt.ArrayLike, *, damping: float = DAMPING) -> Array:
    """`NestedRefit` for one kept set (mask or indices): the weights [n, m] nearest to `weight` in the damped H."""
    w = np.asarray(weight, dtype=np.float64)
    rows = as_rows(kept, len(w))
    order = np.concatenate([rows, np.setdiff1d(np.arange(len(w)), rows)])
    return NestedRefit(w, gram, order, damping=damping).at(len(rows))
