"""ADMM: what its multipliers gain, and that its mask tightens step by step."""

from __future__ import annotations

import numpy as np
from unit.refit.solvers.test_masks import problem

from onnxprune.refit.solvers import NM, admm, on_support, wanda
from onnxprune.refit.solvers.admm import partly
from onnxprune.refit.solvers.linalg import Array


def lost(found: Array, weight: Array, gram: Array) -> float:
    change = found - weight
    return float(np.sum(change * (gram @ change)) / np.sum(weight * (gram @ weight)))


def test_the_mask_follows_the_inputs_correlations() -> None:
    """A quarter less error than least squares on the mask of |w|·‖x‖ alone; without multipliers it is a tenth."""
    gained = []
    for seed in range(16):
        weight, gram = problem(seed, 32, 16)
        found = admm(weight, gram, NM(2, 4))
        alone = on_support(weight, gram, wanda(weight, gram, NM(2, 4)) != 0)
        gained.append(np.log(lost(found, weight, gram) / lost(alone, weight, gram)))
    assert max(gained) < 0
    assert np.mean(gained) < -0.2


def test_a_mask_tightens_by_the_smallest_it_removes() -> None:
    magnitude = np.array([[5.0, 4.0, 1.0], [0.5, 3.0, 2.0]])
    mask = np.array([[True, False, False], [False, True, False]])  # 4, 1, 0.5 and 2 are to go
    assert partly(mask, magnitude, 0.0).all()
    np.testing.assert_array_equal(partly(mask, magnitude, 0.5), [[True, True, False], [False, True, True]])
    np.testing.assert_array_equal(partly(mask, magnitude, 1.0), mask)
