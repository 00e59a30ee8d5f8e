"""Symmetric positive definite work that every solver shares: damping, dead inputs, factors, inverses, downdates.

Factorisations, products and updates of large matrices go through torch, in double precision: its inverse from a
Cholesky factor takes half the time of a general one, it subtracts a product in place, which NumPy can only by way of a
copy, and two libraries with threads of their own would take turns to wait for each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

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


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """NumPy's own BLAS with one thread: after a product the others spin for a while, on cores that torch's wait for."""
    controller = ThreadpoolController()
    own = [lib.filepath for lib in controller.lib_controllers if "numpy" in Path(lib.filepath).parent.name]
    with controller.select(filepath=own).limit(limits=1):
        yield


def clean(gram: npt.ArrayLike) -> Gram:
    """`gram` [n, n] (XᵀX) symmetrised, its dead inputs isolated.

    Raises:
        DataError: the matrix holds NaN or infinity.
    """
    h = np.array(gram, dtype=np.float64)
    require_finite(h)
    h += h.T
    h *= 0.5
    diagonal = np.diagonal(h)
    dead = diagonal <= DEAD * max(float(diagonal.max(initial=0.0)), 0.0)
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    h[dead, :] = 0.0
    h[:, dead] = 0.0
    h[dead, dead] = mean
    return Gram(h, dead)


def require_finite(array: npt.NDArray[np.floating]) -> None:
    """Refuse layer inputs, or products of them, that are NaN or infinite.

    Raises:
        DataError: they are.
    """
    if not np.isfinite(array).all():
        raise DataError(
            "a Gram matrix of layer inputs is not finite: some calibration row overflows in the model; "
            "remove that row or run the model in fp32"
        )


def damped(gram: npt.ArrayLike, damping: float) -> Gram:
    """`clean`, and made safe to invert: H + damping · mean(diag H) · I, the mean over living inputs."""
    safe = clean(gram)
    alive = np.flatnonzero(~safe.dead)
    if len(alive):
        safe.matrix[alive, alive] += max(damping, MIN_DAMPING) * float(np.diagonal(safe.matrix)[alive].mean())
    return safe


def damped_tokens(tokens: npt.ArrayLike, damping: float) -> tuple[npt.NDArray[np.float32], Bools, float]:
    """`damped` of XᵀX, for fewer tokens X [t, n] than inputs.

    Returns:
        X with nothing of dead inputs, which inputs are dead, and δ: H is XᵀX + δI.
    """
    x = np.asarray(tokens, dtype=np.float32)
    require_finite(x)
    energy = np.einsum("tn,tn->n", x, x, dtype=np.float64)
    dead = energy <= DEAD * float(energy.max(initial=0.0))
    shift = max(damping, MIN_DAMPING) * (float(energy[~dead].mean()) if not dead.all() else 1.0)
    return np.where(dead, np.float32(0.0), x), dead, shift


def cholesky(matrix: Array) -> Array:
    """The lower triangular L with LLᵀ = `matrix` [n, n], symmetric positive definite.

    Raises:
        DataError: it is not positive definite.
    """
    factor = _factor(matrix)
    if factor is None:
        raise DataError("a Gram matrix of layer inputs is not positive definite: too few digits; damp it more")
    return np.asarray(factor.numpy(), dtype=np.float64)


def inverse(matrix: Array) -> Array:
    """The inverse of a symmetric positive definite matrix [n, n], exactly symmetric."""
    import torch

    factor = _factor(matrix)
    found = torch.linalg.inv(torch.from_numpy(matrix)) if factor is None else torch.cholesky_inverse(factor)
    result = np.asarray(found.numpy(), dtype=np.float64)
    result += result.T.copy()
    result *= 0.5
    return result


def solve(matrix: Array, right: Array) -> Array:
    """`matrix`⁻¹B for a symmetric positive definite matrix [n, n] and B [n, m]."""
    import torch

    factor, b = _factor(matrix), torch.from_numpy(right)
    found = torch.linalg.solve(torch.from_numpy(matrix), b) if factor is None else torch.cholesky_solve(b, factor)
    return np.asarray(found.numpy(), dtype=np.float64)


def product(left: Array, right: Array) -> Array:
    """AB for large A [n, k] and B [k, m]."""
    import torch

    return np.asarray((torch.from_numpy(left) @ torch.from_numpy(right)).numpy(), dtype=np.float64)


def single_product(left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """AB in single precision, for A and B that have no more."""
    import torch

    one, other = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (left, right))
    return np.asarray((one @ other).numpy())


def _factor(matrix: Array) -> Any:
    """The Cholesky factor as a tensor; None where rounding has made the matrix indefinite."""
    import torch

    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    return None if int(failed) else factor


def substitute(factor: Array, right: Array, *, transposed: bool = False) -> Array:
    """L⁻¹B, or L⁻ᵀB, for a lower triangular L [n, n] and B [n, m]."""
    import torch

    lower = torch.from_numpy(factor)
    triangle = lower.mT if transposed else lower
    found = torch.linalg.solve_triangular(triangle, torch.from_numpy(right), upper=transposed)
    return np.asarray(found.numpy(), dtype=np.float64)


def subtract_product(matrix: Array, left: Array, right: Array) -> None:
    """`matrix` −= LᵀR in place, without a copy of it. matrix [n, m], left [k, n], right [k, m]."""
    import torch

    torch.from_numpy(matrix).addmm_(torch.from_numpy(left).mT, torch.from_numpy(right), alpha=-1.0)


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
