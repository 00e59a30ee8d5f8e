"""Schedules end where they should and never turn back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.search.allocate import cubic, stages

shares = st.floats(0.01, 1.0)


@given(shares, st.integers(1, 50))
def test_cubic_falls_to_its_target_ever_more_slowly(final: float, total: int) -> None:
    path = [1.0, *(cubic(t, total, final) for t in range(total))]
    steps = [a - b for a, b in pairwise(path)]
    assert path[-1] == final
    assert all(step >= 0 for step in steps)
    assert all(a >= b - 1e-12 for a, b in pairwise(steps))


def test_cubic_by_hand() -> None:
    assert cubic(0, 2, 0.2) == pytest.approx(0.2 + 0.8 / 8)
    with pytest.raises(ValueError, match="step 3"):
        cubic(3, 3, 0.5)


@given(shares, shares)
def test_stages_fall_to_the_target_in_small_steps(target: float, current: float) -> None:
    path = stages(target, current=current)
    assert path[-1] == target
    assert all(a > b for a, b in pairwise(path))
    assert all(a - b <= 0.15 + 1e-9 for a, b in pairwise(path))
    assert len(path) == 1 or path[0] < current
    assert stages(target)[0] >= min(target, 0.8)


def test_stages_by_hand() -> None:
    assert stages(0.7) == (0.7,)
    assert stages(0.5) == pytest.approx((0.8, 0.65, 0.5))
    assert stages(0.6) == pytest.approx((0.8, 0.7, 0.6))
    assert stages(0.5, current=0.66) == pytest.approx((0.65, 0.5))
    assert stages(0.5, current=0.4) == (0.5,)


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5])
def test_a_target_is_a_share(target: float) -> None:
    with pytest.raises(UsageError):
        stages(target)
    with pytest.raises(UsageError):
        cubic(0, 3, target)
