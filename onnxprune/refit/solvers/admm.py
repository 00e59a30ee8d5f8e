"""Layer-wise pruning to a pattern by the alternating direction method of multipliers.

min ‖XW − XŴ‖² over Ŵ in a pattern (Boža, "Fast and effective weight update for pruned LLMs", 2024; ALPS, Meng et al.
2024; patterns: Wang, arXiv 2407.08334). W follows the inputs' Gram matrix, Z the pattern, and the multipliers bring
them together; the mask tightens over the first steps and is then frozen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers import support
from onnxprune.refit.solvers.linalg import Array, Bools, inverse
from onnxprune.refit.solvers.patterns import Pattern
from onnxprune.refit.solvers.schedule import way

DAMPING = 0.1


def admm(
    weight: npt.ArrayLike,
    gram: npt.ArrayLike,
    pattern: Pattern,
    *,
    steps: int = 20,
    tighten: int = 15,
    rho: float = 1.0,
    damping: float = DAMPING,
) -> Array:
    """`weight` [n, m] pruned to `pattern`, with the remaining weights solved for.

    Args:
        gram: [n, n] XᵀX of the inputs on calibration tokens.
        steps: iterations in all; the mask is frozen after the first `tighten`.
        rho: penalty, relative to the normalised Gram matrix's unit diagonal.
        damping: added to that diagonal while searching for the mask; the final solve has its own.
    """
    w0 = np.asarray(weight, dtype=np.float64)
    scale, h, _ = support.normalised(gram, damping)
    # All entries are of the order of one, and the mask needs no more digits: single precision takes half the time.
    scaled = (w0 * scale).astype(np.float32)
    pattern = pattern.learn(np.square(scaled, dtype=np.float64))
    goal = h.astype(np.float32) @ scaled
    h[np.diag_indices_from(h)] += rho
    solve = inverse(h).astype(np.float32)
    w, u, z = scaled, np.zeros_like(scaled), scaled
    mask = np.ones(w0.shape, dtype=bool)
    for step in range(max(steps, tighten)):
        moved = w + u
        if step < tighten:
            mask = partly(pattern.project(np.square(moved, dtype=np.float64)), np.abs(moved), way(step, tighten))
        z = np.where(mask, moved, 0.0)
        u = moved - z
        w = solve @ (goal + rho * (z - u))
    return support.on_support(w0, gram, mask, start=z / scale)


def partly(mask: Bools, magnitude: Array, progress: float) -> Bools:
    """`mask`, but with only the smallest `progress` share of what it removes removed yet."""
    removed = magnitude[~mask]
    spared = removed.size - round(progress * removed.size)
    if spared <= 0:
        return mask
    threshold = np.partition(removed, removed.size - spared)[removed.size - spared]
    return np.asarray(mask | (magnitude >= threshold))
