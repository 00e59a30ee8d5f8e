"""Pruning to a pattern without any correction: magnitude, and Wanda's magnitude times input norm (Sun et al. 2024)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import Array
from onnxprune.refit.solvers.patterns import Pattern


def magnitude(weight: npt.ArrayLike, gram: npt.ArrayLike | None, pattern: Pattern) -> Array:
    """`weight` [n, m] with its largest entries that `pattern` allows; needs no calibration, so `gram` may be None."""
    w = np.asarray(weight, dtype=np.float64)
    scores = w**2
    return np.where(pattern.learn(scores).project(scores), w, 0.0)


def wanda(weight: npt.ArrayLike, gram: npt.ArrayLike, pattern: Pattern) -> Array:
    """`weight` [n, m] with the entries of largest |w|·‖x‖₂ that `pattern` allows; `gram` [n, n] is XᵀX."""
    w = np.asarray(weight, dtype=np.float64)
    energy = np.maximum(np.diagonal(np.asarray(gram, dtype=np.float64)), 0.0)
    scores = w**2 * energy[:, None]
    return np.where(pattern.learn(scores).project(scores), w, 0.0)
