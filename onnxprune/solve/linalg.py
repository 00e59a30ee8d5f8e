"""Symmetric positive definite work that every solver shares: damping, dead inputs, block inverses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

DEAD = 1e-14
"""An input whose energy is below this share of the largest one carries nothing but rounding."""

MIN_DAMPING = 1e-9
"""Below this an inverse in double precision is not worth having."""


@dataclass(frozen=True, eq=False)
class Gram:
    """A Gram matrix without its accidents.

    Attributes:
        matrix: [n, n] symmetric; rows and columns of dead inputs are zero but for a positive diagonal.
        dead: [n] inputs that were never active on the calibration rows.
    """

    matrix: Array
    dead: Bools


def clean(gram: npt.ArrayLike) -> Gram:
    """`gram` [n, n] (XᵀX) symmetrised, its dead inputs isolated.

    Raises:
        DataError: the matrix holds NaN or infinity.
    """
    h = np.array(gram, dtype=np.float64)
    if not np.isfinite(h).all():
        raise DataError(
            "a Gram matrix of layer inputs is not finite: some calibration row overflows in the model; "
            "remove that row or run the model in fp32"
        )
    h += h.T
    h *= 0.5
    diagonal = np.diagonal(h)
    dead = diagonal <= DEAD * max(float(diagonal.max(initial=0.0)), 0.0)
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    h[dead, :] = 0.0
    h[:, dead] = 0.0
    h[dead, dead] = mean
    return Gram(h, dead)


def damped(gram: npt.ArrayLike, damping: float) -> Gram:
    """`clean`, and made safe to invert: H + damping · mean(diag H) · I, the mean over living inputs."""
    safe = clean(gram)
    alive = np.flatnonzero(~safe.dead)
    if len(alive):
        safe.matrix[alive, alive] += max(damping, MIN_DAMPING) * float(np.diagonal(safe.matrix)[alive].mean())
    return safe


def inverse(matrix: Array) -> Array:
    """The inverse of a symmetric positive definite matrix [n, n], exactly symmetric."""
    result = np.linalg.inv(matrix)
    result += result.T.copy()
    result *= 0.5
    return np.asarray(result, dtype=np.float64)


def substitute(factor: Array, right: Array, *, transposed: bool = False, block: int = 64) -> Array:
    """L⁻¹B, or L⁻ᵀB, for a lower triangular L [n, n] and B [n, m], by blocks."""
    found = np.array(right, dtype=np.float64)
    starts = range(0, len(factor), block)
    for start in reversed(starts) if transposed else starts:
        here, after = slice(start, start + block), slice(start + block, None)
        if transposed:
            found[here] = np.linalg.solve(factor[here, here].T, found[here] - factor[after, here].T @ found[after])
        else:
            found[here] = np.linalg.solve(factor[here, here], found[here] - factor[here, :start] @ found[:start])
    return found


def as_rows(kept: npt.ArrayLike, size: int) -> Ints:
    """Row indices, ascending, from a bool mask [size] or from indices."""
    chosen = np.asarray(kept)
    if chosen.dtype == np.bool_:
        if chosen.shape != (size,):
            raise ValueError(f"mask of shape {chosen.shape} over {size} inputs")
        return np.flatnonzero(chosen).astype(np.int64)
    rows = np.unique(chosen.astype(np.int64))
    if rows.size and (rows[0] < 0 or rows[-1] >= size):
        raise ValueError(f"input index outside 0..{size - 1}")
    return rows
