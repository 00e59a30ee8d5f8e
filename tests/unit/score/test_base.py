"""Orders from numbers: ties, sums by unit, and what the gradient scores are means of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from onnxprune.graph.structure.sites import Site
from onnxprune.score import METHODS, Fisher, Statistics
from onnxprune.score.base import per_unit, ranking

SITE = cast(Site, SimpleNamespace(id="m"))


def test_the_highest_stay_longest_and_of_equals_the_earlier_one() -> None:
    found = ranking(SITE, np.array([1.0, 3.0, 1.0, 2.0, 3.0]))
    assert found.order == (1, 4, 3, 0, 2)
    assert found.scores == (1.0, 3.0, 1.0, 2.0, 3.0)
    assert found.keep(3) == (1, 3, 4)


def test_rows_count_for_the_unit_that_owns_them() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    np.testing.assert_array_equal(per_unit(np.array([0, 2, -1, 0, 1]), values, 4), [9.0, 16.0, 2.0, 0.0])


def test_gradients_of_either_sign_count() -> None:
    """Fisher: the mean of squares; Taylor: the mean size. Samples that pull either way do not cancel."""
    gradients = np.array([[2.0, 1.0, 0.0], [-2.0, 1.0, 3.0]])
    statistics = Statistics(cast(Any, None), gate_grad={"m": gradients})
    for fisher in (Fisher(), Fisher(rearrange=False)):
        assert fisher(SITE, statistics).scores == (4.0, 1.0, 4.5)
    assert METHODS["taylor"](SITE, statistics).scores == (2.0, 1.0, 1.5)
