"""Optimal brain surgeon input by input (SparseGPT, Frantar & Alistarh, ICML 2023).

Inputs are visited once, in order; what pruning one of them costs is made up for by the inputs still to come, through
the Cholesky factor of H⁻¹. Cheaper than `admm` and a little worse.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import Array, cholesky, damped, inverse
from onnxprune.refit.solvers.patterns import Pattern

DAMPING = 1e-2
BLOCK = 128


def sparsegpt(
    weight: npt.ArrayLike, gram: npt.ArrayLike, pattern: Pattern, *, damping: float = DAMPING, block: int = BLOCK
) -> Array:
    """`weight` [n, m] pruned to `pattern`.

    N:M groups and pattern blocks are chosen when the visit reaches them, on the weights as corrected so far; patterns
    that weigh the whole matrix (a share of all blocks, tiles) are chosen at the start.

    Args:
        gram: [n, n] XᵀX of the inputs on calibration tokens.
        damping: share of H's mean diagonal added to it.
        block: inputs whose corrections are gathered before the rest of the matrix is updated.
    """
    w = np.array(weight, dtype=np.float64)
    safe = damped(gram, damping)
    original = w.copy()
    w[safe.dead] = 0.0
    factor = cholesky(inverse(safe.matrix)).T
    pivots = np.diagonal(factor)[:, None]
    pattern = pattern.learn((w / pivots) ** 2)
    group = pattern.rows
    mask = pattern.project((w / pivots) ** 2)
    size = block if group is None else max(1, block // group) * group
    for start in range(0, len(w), size):
        stop = min(start + size, len(w))
        errors = np.zeros((stop - start, w.shape[1]))
        for row in range(start, stop):
            if group is not None and row % group == 0:
                ahead = slice(row, min(row + group, len(w)))
                mask[ahead] = pattern.project((w[ahead] / pivots[ahead]) ** 2)
            wrong = np.where(mask[row], 0.0, w[row]) / factor[row, row]
            errors[row - start] = wrong
            w[row, ~mask[row]] = 0.0
            w[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], wrong)
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return np.where(safe.dead[:, None] & mask, original, w)
