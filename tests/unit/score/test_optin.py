"""OPTIN's two terms: each has unit mean over all units, so that λ means the same on any model."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from onnxprune.probe.trajectory import Trajectory
from onnxprune.score import Optin, Statistics

MANIFOLD, OUTPUT = np.array([1.0, 3.0, 8.0]), np.array([5.0, 1.0, 0.0])
OTHER = Trajectory(np.array([2.0, 6.0]), np.array([2.0, 4.0]))
WHOLE = Trajectory(np.array([70.0]), np.array([90.0]))


def scores(manifold: np.ndarray, output: np.ndarray, other: Trajectory = OTHER, balance: float = 0.1) -> np.ndarray:
    """Of a group of three units, beside another group and a whole branch."""
    found = {"a": Trajectory(manifold, output), "b": other, "branch": WHOLE}
    return Optin(balance).scores("a", Statistics(cast(Any, None), trajectory=found))


def test_terms_are_divided_by_their_means_over_all_units() -> None:
    """Over both groups, and not over branches: (1+3+8+2+6)/5 = 4 and (5+1+0+2+4)/5 = 2.4."""
    np.testing.assert_allclose(scores(MANIFOLD, OUTPUT), MANIFOLD / 4 + 0.1 * OUTPUT / 2.4)
    np.testing.assert_allclose(scores(MANIFOLD, OUTPUT, balance=2.0), MANIFOLD / 4 + 2.0 * OUTPUT / 2.4)


def test_no_unit_of_either_term_matters() -> None:
    expected = scores(MANIFOLD, OUTPUT)
    for a, b in ((1e6, 1.0), (1.0, 1e6), (1e-6, 1e3)):
        moved = scores(a * MANIFOLD, b * OUTPUT, Trajectory(a * OTHER.manifold, b * OTHER.output))
        np.testing.assert_allclose(moved, expected)


def test_a_term_that_is_nothing_everywhere_stays_nothing() -> None:
    """Behind the last block no features move: the outputs alone decide, and nothing is divided by zero."""
    still = Trajectory(np.zeros(2), OTHER.output)
    np.testing.assert_allclose(scores(np.zeros(3), OUTPUT, still), 0.1 * OUTPUT / 2.4)


def test_a_branch_is_measured_in_its_units_means() -> None:
    found = {"a": Trajectory(MANIFOLD, OUTPUT), "b": OTHER, "branch": WHOLE}
    got = Optin().scores("branch", Statistics(cast(Any, None), trajectory=found))
    np.testing.assert_allclose(got, [70 / 4 + 0.1 * 90 / 2.4])
