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
from onnxprune.graph import large_products

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


def cholesky(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The lower triangular L with LLᵀ = `matrix` [n, n], symmetric positive definite, in its precision.

    Raises:
        DataError: it is not positive definite.
    """
    factor = _factor(matrix)
    if factor is None:
        raise DataError("a Gram matrix of layer inputs is not positive definite: too few digits; damp it more")
    return np.asarray(factor.numpy())


def inverse(matrix: Array) -> Array:
    """The inverse of a symmetric positive definite matrix [n, n], exactly symmetric."""
    import torch

    factor = _factor(matrix)
    if factor is not None:
        return np.asarray(torch.cholesky_inverse(factor).numpy())
    result = np.asarray(torch.linalg.inv(torch.from_numpy(matrix)).numpy(), dtype=np.float64)
    result += result.T.copy()
    result *= 0.5
    return result


def solve(matrix: Array, right: Array) -> Array:
    """`matrix`⁻¹B for a symmetric positive definite matrix [n, n] and B [n, m]."""
    return Factored(matrix).solve(right)


class Factored:
    """A symmetric positive definite matrix [n, n], in either precision, factored once for many right sides."""

    def __init__(self, matrix: npt.NDArray[Any]) -> None:
        self.factor = _factor(matrix)
        self.matrix = matrix if self.factor is None else None  # as large as the factor, and not needed beside it

    def solve(self, right: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`matrix`⁻¹B for B [n, m], in the matrix's precision."""
        import torch

        b = torch.from_numpy(right)
        if self.matrix is not None:
            return np.asarray(torch.linalg.solve(torch.from_numpy(self.matrix), b).numpy())
        return np.asarray(torch.cholesky_solve(b, self.factor).numpy())


def shifted(matrix: npt.NDArray[Any], by: float) -> npt.NDArray[Any]:
    """A copy of a matrix [n, n] with a number added to its diagonal."""
    found = matrix.copy()
    found[np.diag_indices_from(found)] += found.dtype.type(by)
    return found


def product(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """AB for large A [n, k] and B [k, m] of one precision."""
    import torch

    return np.asarray(large_products.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy())


def single_product(left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """AB in single precision, for A and B that have no more."""
    import torch

    one, other = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (left, right))
    return np.asarray(large_products.matmul(one, other).numpy())


def _factor(matrix: npt.NDArray[Any]) -> Any:
    """The Cholesky factor as a tensor; None where rounding has made the matrix indefinite."""
    import torch

    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    return None if int(failed) else factor


def substitute(factor: npt.NDArray[Any], right: npt.NDArray[Any], *, transposed: bool = False) -> npt.NDArray[Any]:
    """L⁻¹B, or L⁻ᵀB, for a lower triangular L [n, n] and B [n, m] of one precision."""
    import torch

    lower = torch.from_numpy(factor)
    triangle = lower.mT if transposed else lower
    return np.asarray(torch.linalg.solve_triangular(triangle, torch.from_numpy(right), upper=transposed).numpy())


def subtract_product(matrix: npt.NDArray[Any], left: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
    """`matrix` −= LᵀR in place, without a copy of it. matrix [n, m], left [k, n], right [k, m]."""
    import torch

    large_products.add_product(torch.from_numpy(matrix), torch.from_numpy(left).mT, torch.from_numpy(right), by=-1.0)


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
