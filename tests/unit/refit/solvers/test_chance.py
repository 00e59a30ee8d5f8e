"""When one divergence is lower than another on the same rows by more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.refit.solvers.chance import surely_lower

ROWS = np.array([-0.3, -0.1, 0.1, -0.1])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_two_standard_errors_whatever_the_scale(scale: float) -> None:
    """The mean is -0.1, its standard error 0.0707."""
    than = scale * np.arange(4.0)
    assert not surely_lower(than + scale * ROWS, than)
    assert surely_lower(than + scale * (ROWS - 0.05), than)
    assert not surely_lower(than, than + scale * (ROWS - 0.05))


def test_more_rows_that_say_the_same_make_it_sure() -> None:
    assert surely_lower(np.tile(ROWS, 4), np.zeros(16))
    assert not surely_lower(ROWS, np.zeros(4))


def test_numbers_that_are_exact_are_compared_as_they_are() -> None:
    assert surely_lower(1.0, 1.0 + 1e-12)
    assert not surely_lower(1.0, 1.0)
