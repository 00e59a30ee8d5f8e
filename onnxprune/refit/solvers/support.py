"""Exact least squares on a given support: the last step of mask solvers.

For every output column j with support S: min (w − w₀)ᵀ H (w − w₀) over w that vanish outside S, which is
H_SS w_S = (H w₀)_S. Columns that share a support are solved together; where every column has one of its own and the
systems are large, all columns run one conjugate gradient iteration per matrix product, from a warm start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import MIN_DAMPING, Array, Bools, Ints, clean

DAMPING = 1e-1
"""Some thousand tokens leave much of the error to chance: less pull makes it larger on tokens that were not fitted."""
DIRECT_FLOPS = 5e10
"""Up to here the direct solution takes about a second."""

TOLERANCE = 1e-4
"""Of a residual, relative to the target's: the error is then within 1e-6 of its least, relative to the signal."""
MAX_ITERATIONS = 200


def on_support(
    weight: npt.ArrayLike,
    gram: npt.ArrayLike,
    mask: npt.ArrayLike,
    *,
    damping: float = DAMPING,
    start: npt.ArrayLike | None = None,
    max_direct_flops: float = DIRECT_FLOPS,
) -> Array:
    """The weights [n, m] on the support `mask` [n, m] whose outputs are nearest to those of `weight` [n, m].

    Args:
        gram: [n, n] XᵀX of the inputs; each input's own energy times `damping` is added, which pulls toward `weight`.
        start: [n, m] where the iterative solution starts, if it comes to that; it never ends worse than it started.
    """
    w0 = np.asarray(weight, dtype=np.float64)
    allowed = np.asarray(mask, dtype=bool)
    scale, unit, dead = normalised(gram, damping)
    target = unit @ (w0 * scale)
    groups = list(_same_support(allowed))
    if sum(2 / 3 * len(rows) ** 3 + 2 * len(rows) ** 2 * len(columns) for rows, columns in groups) <= max_direct_flops:
        solved = np.zeros_like(w0)
        for rows, columns in groups:
            if len(rows):
                at = np.ix_(rows, columns)
                solved[at] = np.linalg.solve(unit[np.ix_(rows, rows)], target[at])
    else:
        first = w0 if start is None else np.asarray(start, dtype=np.float64)
        solved = _conjugate_gradients(unit, target, allowed, np.where(allowed, first * scale, 0.0))
    return np.where(dead[:, None] & allowed, w0, solved / scale)


def range_errors(
    weight: npt.ArrayLike, gram: npt.ArrayLike, ranges: Sequence[tuple[int, int]], *, damping: float = DAMPING
) -> Array:
    """What each output [m] loses where only a range of inputs is read, after the best correction: [ranges, m].

    (w − ŵ)ᵀ H (w − ŵ) of the damped H, with ŵ the exact least squares on the range: wᵀHw − bᵀ(H_SS)⁻¹b, b = (Hw)_S.
    """
    w0 = np.asarray(weight, dtype=np.float64)
    scale, unit, _ = normalised(gram, damping)
    scaled = w0 * scale
    target = unit @ scaled
    whole = np.einsum("nm,nm->m", scaled, target)
    found = np.empty((len(ranges), w0.shape[1]))
    for i, (start, stop) in enumerate(ranges):
        b = target[start:stop]
        found[i] = whole - np.einsum("nm,nm->m", b, np.linalg.solve(unit[start:stop, start:stop], b))
    return np.maximum(found, 0.0)


def normalised(gram: npt.ArrayLike, damping: float) -> tuple[Array, Array, Bools]:
    """(D [n, 1], D⁻¹HD⁻¹ + damping · I [n, n], dead [n]) with D = diag(H)^½, and 1 for inputs that are dead."""
    safe = clean(gram)
    scale = np.where(safe.dead, 1.0, np.sqrt(np.diagonal(safe.matrix)))
    unit = safe.matrix / scale[:, None] / scale
    unit[np.diag_indices_from(unit)] = 1.0 + max(damping, MIN_DAMPING)
    return scale[:, None], unit, safe.dead


def _same_support(mask: Bools) -> Iterator[tuple[Ints, Ints]]:
    """(rows, columns) for each distinct column of the mask."""
    packed = np.ascontiguousarray(np.packbits(mask, axis=0).T)
    _, index = np.unique(packed, axis=0, return_inverse=True)
    order = np.argsort(index.ravel(), kind="stable")
    for columns in np.split(order, np.flatnonzero(np.diff(index.ravel()[order])) + 1):
        if len(columns):
            yield np.flatnonzero(mask[:, columns[0]]), columns


def _conjugate_gradients(h: Array, target: Array, mask: Bools, x: Array) -> Array:
    """Each column of `x` [n, m] to the minimum of ½xᵀHx − xᵀb on its support; H [n, n] has a constant diagonal."""
    enough = TOLERANCE**2 * np.einsum("nm,nm->m", target, target)
    off = ~mask
    residual = target - h @ x
    residual[off] = 0.0
    direction = residual.copy()
    image = np.empty_like(x)
    size = np.einsum("nm,nm->m", residual, residual)
    for _ in range(MAX_ITERATIONS):
        if (size <= enough).all():
            break
        np.matmul(h, direction, out=image)
        image[off] = 0.0
        curvature = np.einsum("nm,nm->m", direction, image)
        step = np.divide(size, curvature, out=np.zeros_like(size), where=curvature > 0)
        x += step * direction
        image *= step
        residual -= image
        after = np.einsum("nm,nm->m", residual, residual)
        direction *= np.divide(after, size, out=np.zeros_like(size), where=size > 0)
        direction += residual
        size = after
    return x
