"""The belief behind the swaps: the table to begin with, the truth once it was measured often enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.search.allocate.belief import Belief

seeds = st.integers(0, 2**32 - 1)


def damages(seed: int, modules: int = 5, levels: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.cumsum(random.uniform(0.1, 1.0, levels)) * random.uniform(0.5, 2.0) for _ in range(modules)]


@given(seeds)
def test_before_any_measurement_it_is_the_table(seed: int) -> None:
    table = damages(seed)
    for believed, given_ in zip(Belief(table).mean(), table, strict=True):
        np.testing.assert_allclose(believed, given_, rtol=1e-9)


@settings(max_examples=20)
@given(seeds)
def test_many_measurements_make_it_the_truth(seed: int) -> None:
    """Moves measured in a world where every module's damage has its own factors: the belief finds them."""
    random = np.random.default_rng(seed)
    table = damages(seed)
    truth = [
        a * d + b * np.sqrt(d) for d, a, b in zip(table, random.uniform(0, 2, 5), random.uniform(0, 1, 5), strict=True)
    ]
    belief = Belief(table)
    for _ in range(800):
        moved = random.permutation(5)[:2].tolist()
        changes = [(i, int(random.integers(4)), int(random.integers(4))) for i in moved]
        belief.observe(changes, sum(float(truth[i][after] - truth[i][before]) for i, before, after in changes))
    step = belief.step
    for sampled in (belief.mean(), belief.sample(random)):
        for believed, true in zip(sampled, truth, strict=True):
            np.testing.assert_allclose(np.diff(believed), np.diff(true), atol=0.5 * step)


def test_sampling_is_wide_where_nothing_was_measured_and_narrow_where_it_was() -> None:
    table, random = damages(1), np.random.default_rng(0)
    belief = Belief(table)
    for _ in range(50):
        belief.observe([(0, 0, 3)], float(table[0][3] - table[0][0]))
    steps = np.array([[t[3] - t[0] for t in belief.sample(random)] for _ in range(200)])
    prior = np.array([t[3] - t[0] for t in table])
    spread = steps.std(axis=0) / prior
    assert spread[0] < 0.3 * spread[1:].min()


@pytest.mark.parametrize("levels", [[0.0, 0.0], [1.0], [np.inf, 0.0, 0.2], [-0.1, 0.0, 0.3]])
def test_flat_single_forbidden_and_negative_damages_are_finite(levels: list[float]) -> None:
    belief = Belief([np.array(levels), np.array([0.0, 0.5])])
    belief.observe([(1, 0, 1)], 0.7)
    for table in (belief.mean(), belief.sample(np.random.default_rng(0))):
        assert all(np.isfinite(values).all() for values in table)


def test_hints_between_equal_damages_are_no_steps() -> None:
    """Where most levels damage alike, but for a hint, measurements are not taken for more exact than they are."""
    table = [np.concatenate([np.linspace(1.0, 0.1, 4), 1e-11 * np.arange(40)[::-1]]) for _ in range(6)]
    belief = Belief(table)
    assert belief.step == pytest.approx(0.3, rel=0.1)
    for i in range(20):
        belief.observe([(i % 6, 0, 3), ((i + 1) % 6, 3, 0)], 0.01)
    assert np.isfinite(belief.sample(np.random.default_rng(0))[0]).all()
