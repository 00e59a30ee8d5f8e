"""ADMM: what its multipliers gain, and that its mask tightens step by step."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from unit.refit.solvers.test_masks import problem

from onnxprune.refit.solvers import NM, admm, on_support, wanda
from onnxprune.refit.solvers.admm import partly
from onnxprune.refit.solvers.linalg import Array, Bools
from onnxprune.refit.solvers.schedule import way

module = importlib.import_module("onnxprune.refit.solvers.admm")


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


def test_the_mask_tightens_over_the_first_steps_and_is_then_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []

    def watched(mask: Bools, magnitude: Array, progress: float) -> Bools:
        found = partly(mask, magnitude, progress)
        seen.append((progress, int(found.sum())))
        return found

    monkeypatch.setattr(module, "partly", watched)
    weight, gram = problem(0, 32, 16)
    found = admm(weight, gram, NM(2, 4), steps=20, tighten=5)
    assert [progress for progress, _ in seen] == [way(step, 5) for step in range(5)]
    kept = [count for _, count in seen]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1] == np.count_nonzero(found) == weight.size // 2
