"""Bases of a head's dimensions in which the leading coordinates are the best ones to keep.

Within a head, queries may change their basis if keys take the inverse transpose, and values if the rows that read them
take the inverse: nothing that is computed changes. Both choices here are closed forms in second moments. FLAT-LLM
(2505.23966), MoDeGPT (2408.09632) and Olica (2506.08436) are relatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import Array

LEAST = 1e-6
"""Of the largest eigenvalue of a moment: no direction counts as having less, so that every basis has an inverse."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """A change of basis and its counterpart: `first`ᵀ `second` is the identity.

    Attributes:
        first: [n, n], new coordinates of queries or values, one a row: x′ = first x.
        second: [n, n], of keys, or of the rows of what reads values.
        lost: [n], what is lost of the products' mean square without each new coordinate, falling.
    """

    first: Array
    second: Array
    lost: Array


def query_key_rotation(queries: npt.ArrayLike, keys: npt.ArrayLike) -> Rotation:
    """The basis in which the first r coordinates are the best rank-r fit of the products qᵀk.

    With C the second moments of independent queries and keys, E(qᵀk − qᵀPk)² = ‖C_q^½ (I − P) C_k^½‖², whose best P of
    rank r comes from the leading singular vectors of C_q^½ C_k^½ = U Σ Vᵀ. Both sides get Σ as their new moment.

    Args:
        queries: [n, n], E[q qᵀ].
        keys: [n, n], the same of keys; their covariance, where a softmax ignores what all keys have in common.
    """
    (left, unleft), (right, unright) = _roots(queries), _roots(keys)
    u, sigma, vt = np.linalg.svd(left @ right)
    scale = np.sqrt(np.maximum(sigma, np.finfo(np.float64).tiny))[:, None]
    first, second = scale * (u.T @ unleft), scale * (vt @ unright)
    return Rotation(first, second, _seen(first, queries) * _seen(second, keys))


def value_rotation(values: npt.ArrayLike, reading: npt.ArrayLike) -> Rotation:
    """The basis in which the first r coordinates are the best rank-r fit of zᵀW.

    From the left singular vectors of C^½ W. New coordinates are uncorrelated and of unit size.

    Args:
        values: [n, n], covariance of what a head puts out.
        reading: [n, outputs], the rows W that read it.
    """
    root, unroot = _roots(values)
    weight = np.asarray(reading, dtype=np.float64)
    u = np.linalg.svd(root @ (weight @ weight.T) @ root)[0]
    first, second = u.T @ unroot, u.T @ root
    return Rotation(first, second, _seen(first, values) * _seen(second, weight @ weight.T))


def _seen(basis: Array, moment: npt.ArrayLike) -> Array:
    """The mean squares of new coordinates."""
    return np.asarray(np.maximum(np.einsum("ij,jk,ik->i", basis, np.asarray(moment, dtype=np.float64), basis), 0.0))


def _roots(moment: npt.ArrayLike) -> tuple[Array, Array]:
    """The symmetric square root of a moment and its inverse, small eigenvalues raised to `LEAST`."""
    symmetric = np.asarray(moment, dtype=np.float64)
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    largest = float(values.max())
    root = np.sqrt(np.maximum(values, LEAST * largest)) if largest > 0 else np.ones(len(values))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
