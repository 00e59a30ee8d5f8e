"""Structured OBS against brute force: every quantity is a least squares problem solved from scratch."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import DataError
from onnxprune.refit.solvers import NestedRefit, Reader, RefitOnTokens, nested_refit, obs_path, refine, refit
from onnxprune.refit.solvers.linalg import Array, Ints, damped

seeds = st.integers(0, 2**32 - 1)
DAMPING = 1e-3


def reader(seed: int, units: int, block: int = 1, outputs: int = 3, fixed: int = 0, shuffle: bool = True) -> Reader:
    """Correlated inputs; a unit's rows scattered; `fixed` rows that belong to none."""
    random = np.random.default_rng(seed)
    n = units * block + fixed
    x = random.standard_normal((3 * n, n)) @ random.standard_normal((n, n))
    ids = np.concatenate([np.repeat(np.arange(units), block), np.full(fixed, -1)])
    return Reader(random.standard_normal((n, outputs)), x.T @ x, random.permutation(ids) if shuffle else ids)


def removal_error(r: Reader, kept: Ints) -> float:
    """The error of a kept set by normal equations of the damped problem, independent of the path's formulas."""
    h = damped(r.gram, DAMPING).matrix
    rows = np.flatnonzero(np.isin(r.units, kept) | (r.units < 0))
    w = np.zeros_like(r.weight)
    w[rows] = np.linalg.solve(h[np.ix_(rows, rows)], (h @ r.weight)[rows])
    return float(np.sum((w - r.weight) * (h @ (w - r.weight))))


def greedy(readers: list[Reader], units: int) -> tuple[list[int], list[float]]:
    """Brute force of the greedy criterion: try every unit, solve every problem."""
    kept, order, errors = list(range(units)), [], [0.0]
    while kept:
        trials = [sum(removal_error(r, np.array([k for k in kept if k != u])) for r in readers) for u in kept]
        best = int(np.argmin(trials))
        order.append(kept.pop(best))
        errors.append(trials[best])
    return order, errors


@settings(max_examples=25)
@given(seeds, st.sampled_from([1, 3]), st.integers(0, 2), st.integers(1, 4))
def test_path_is_the_brute_force_greedy_one(seed: int, block: int, fixed: int, step: int) -> None:
    """Orders, errors and weights, whatever the step, with scattered rows, rows that stay, and two readers."""
    readers = [reader(seed, 6, block, fixed=fixed), reader(seed + 1, 6, 1, outputs=2)]
    order, errors = greedy(readers, 6)
    path = obs_path(readers, step=step, keep_levels=range(7), damping=DAMPING)
    assert path.order.tolist() == order
    np.testing.assert_allclose(path.error, errors, rtol=1e-6, atol=1e-9 * path.total)
    for level, weights in path.weights.items():
        for r, weight in zip(readers, weights, strict=True):
            exact = refit(r.weight, r.gram, r.rows_of(path.kept(level)), damping=DAMPING)
            np.testing.assert_allclose(weight, exact, atol=1e-6 * np.abs(r.weight).max())


@pytest.mark.parametrize("step", [1, 7, 40])
def test_large_steps_stay_exact(step: int) -> None:
    """More units than the pool holds: the order may differ from the greedy one, errors and weights may not lie."""
    r = reader(5, 150, outputs=20)
    levels = (150, 149, 100, 33, 1, 0)
    path = obs_path([r], step=step, keep_levels=levels, damping=DAMPING)
    assert sorted(path.order.tolist()) == list(range(150))
    assert (np.diff(path.error) >= 0).all()
    for level in levels:
        kept = path.kept(level)
        assert path.error_at(level) == pytest.approx(removal_error(r, kept), rel=1e-6, abs=1e-9 * path.total)
        exact = refit(r.weight, r.gram, r.rows_of(kept), damping=DAMPING)
        np.testing.assert_allclose(path.weights[level][0], exact, atol=1e-6)
    np.testing.assert_array_equal(path.weights[150][0], r.weight)


def test_of_two_copies_one_goes_for_nothing_and_the_other_does_not() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((500, 8))
    x[:, 5] = x[:, 2]
    weight = random.standard_normal((8, 4)) * 3
    path = obs_path([Reader(weight, x.T @ x, np.arange(8))], step=8, keep_levels=[7], damping=1e-6)
    assert int(path.order[0]) in (2, 5)
    assert path.error[1] < 1e-4 * path.error[2]
    other = 7 - int(path.order[0])
    np.testing.assert_allclose(path.weights[7][0][other], weight[2] + weight[5], rtol=1e-3)


def test_dead_inputs_go_first_at_no_cost_and_are_left_alone_until_then() -> None:
    r = reader(1, 6, 2, shuffle=False)
    h = np.array(r.gram)
    dead = np.isin(r.units, [1, 4])
    h[dead] = 0.0
    h[:, dead] = 0.0
    path = obs_path([Reader(r.weight, h, r.units)], keep_levels=[6, 5, 4])
    assert set(path.order[:2].tolist()) == {1, 4}
    np.testing.assert_array_equal(path.error[:3], 0.0)
    alive = ~dead
    np.testing.assert_array_equal(path.weights[6][0], r.weight)
    last = r.units == path.order[1]
    np.testing.assert_array_equal(path.weights[5][0][last], r.weight[last])
    np.testing.assert_allclose(path.weights[4][0][alive], r.weight[alive], atol=1e-9)


def test_a_rank_deficient_gram_stays_finite_and_near_the_weights() -> None:
    random = np.random.default_rng(2)
    x = random.standard_normal((5, 40)).astype(np.float32)
    weight = random.standard_normal((40, 3))
    path = obs_path([Reader(weight, x.T @ x, np.arange(40))], keep_levels=[20])
    assert np.isfinite(path.error).all()
    assert np.linalg.norm(path.weights[20][0]) < 10 * np.linalg.norm(weight)


@settings(max_examples=20)
@given(seeds, st.sampled_from([1, 2]), st.integers(1, 5))
def test_refined_set_is_a_local_optimum_and_its_error_true(seed: int, block: int, level: int) -> None:
    readers = [reader(seed, 6, block), reader(seed + 1, 6, 1)]

    def total(kept: Ints) -> float:
        return sum(removal_error(r, kept) for r in readers)

    start = np.random.default_rng(seed).permutation(6)[:level]
    refined = refine(readers, start, damping=DAMPING)
    assert len(refined.kept) == level
    assert refined.error == pytest.approx(total(refined.kept), rel=1e-6)
    assert refined.error <= total(start) * (1 + 1e-9)
    gone = np.setdiff1d(np.arange(6), refined.kept)
    neighbours = [np.append(np.setdiff1d(refined.kept, [u]), r) for u in refined.kept for r in gone]
    assert all(refined.error <= total(kept) * (1 + 1e-6) for kept in neighbours)
    for r, weight in zip(readers, refined.weights, strict=True):
        exact = refit(r.weight, r.gram, r.rows_of(refined.kept), damping=DAMPING)
        np.testing.assert_allclose(weight, exact, atol=1e-6 * np.abs(exact).max())
    if not refined.swaps:
        assert set(start.tolist()) == set(refined.kept.tolist())


def test_swaps_from_greedy_reach_the_best_set_more_often_than_greedy() -> None:
    """Over fixed problems: greedy plus swaps against the optimum over all subsets."""
    greedy_hits = refined_hits = 0
    for seed in range(30):
        r = reader(seed, 8)
        path = obs_path([r], damping=DAMPING)
        best = min(removal_error(r, np.array(kept)) for kept in combinations(range(8), 3))
        refined = refine([r], path.kept(3), damping=DAMPING)
        assert best * (1 - 1e-6) <= refined.error <= path.error_at(3) * (1 + 1e-6)
        greedy_hits += path.error_at(3) <= best * (1 + 1e-6)
        refined_hits += refined.error <= best * (1 + 1e-6)
    assert greedy_hits < refined_hits


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_swaps_do_not_depend_on_the_unit_of_weights(scale: float) -> None:
    """What is too little to swap for is told beside the error of removing everything."""
    r = reader(9, 12, outputs=4)
    worst = obs_path([r], damping=DAMPING).order[:6]
    swaps = refine([r], worst, damping=DAMPING).swaps
    assert swaps
    assert refine([replace(r, weight=scale * r.weight)], worst, damping=DAMPING).swaps == swaps


def test_many_swaps_lose_no_precision() -> None:
    r = reader(9, 120, outputs=10)
    worst = obs_path([r], damping=DAMPING).order[:60]
    refined = refine([r], worst, damping=DAMPING, max_swaps=50, pool=8)
    assert len(refined.swaps) > 20
    exact = refit(r.weight, r.gram, r.rows_of(refined.kept), damping=DAMPING)
    np.testing.assert_allclose(refined.weights[0], exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("seed", range(6))
def test_of_a_small_pool_the_cheapest_goes_and_the_most_missed_returns(seed: int) -> None:
    r = reader(seed, 12, outputs=4)
    start = obs_path([r], damping=DAMPING).order[:6]  # the worst half
    inside, outside = np.sort(start), np.setdiff1d(np.arange(12), start)
    out = min(inside, key=lambda u: removal_error(r, np.setdiff1d(inside, [u])))
    back = min(outside, key=lambda u: removal_error(r, np.append(inside, u)))
    assert refine([r], start, damping=DAMPING, max_swaps=1, pool=1).swaps == ((out, back),)


def test_refining_nothing_or_everything_changes_nothing() -> None:
    r = reader(3, 5)
    everything = refine([r], range(5))
    assert everything.swaps == () and everything.error == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(everything.weights[0], r.weight, atol=1e-8)
    nothing = refine([r], [])
    assert nothing.swaps == () and not nothing.weights[0].any()


def test_wrong_readers_are_refused() -> None:
    a, b = reader(0, 4), reader(1, 5)
    with pytest.raises(ValueError, match="same units"):
        obs_path([a, b])
    with pytest.raises(ValueError, match="different sizes"):
        obs_path([Reader(a.weight, a.gram, np.array([0, 0, 1, 2]))])
    with pytest.raises(ValueError, match="outside"):
        obs_path([a], keep_levels=[9])
    with pytest.raises(ValueError, match="none of them"):
        refine([a], [0, 9])
    h: Array = np.array(a.gram)
    h[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        obs_path([Reader(a.weight, h, a.units)])


@given(seeds, st.booleans())
def test_few_tokens_refit_as_their_gram_matrix_does(seed: int, silent: bool) -> None:
    random = np.random.default_rng(seed)
    x, weight = random.standard_normal((6, 15)), random.standard_normal((15, 4)).astype(np.float32)
    if silent:
        x[:, [2, 7]] = 0.0
    order = random.permutation(15)
    few, summed = RefitOnTokens(weight, x, order), NestedRefit(weight, x.T @ x, order)
    for count in (0, 1, 5, 14, 15):
        np.testing.assert_allclose(few.at(count), summed.at(count), atol=2e-4)


@pytest.mark.parametrize("block", [1, 2])
def test_few_tokens_are_gone_through_as_their_gram_matrix_is(block: int) -> None:
    random = np.random.default_rng(block)
    x, units = random.standard_normal((9, 12 * block)), np.repeat(np.arange(12), block)
    weight = random.standard_normal((12 * block, 4))
    few, summed = (obs_path([Reader(weight, gram, units)], keep_levels=[5, 2]) for gram in (x, x.T @ x))
    np.testing.assert_array_equal(few.order, summed.order)
    np.testing.assert_allclose(few.error, summed.error, rtol=1e-4)
    assert few.total == pytest.approx(summed.total, rel=1e-5)
    assert few.error[-1] == pytest.approx(few.total, rel=1e-4)
    for level in (5, 2):
        np.testing.assert_allclose(few.weights[level][0], summed.weights[level][0], atol=1e-3)


def test_tokens_that_overflow_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        RefitOnTokens(np.ones((3, 2)), [[1.0, np.inf, 0.0]], [0, 1, 2])


def test_many_rows_are_taken_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is as good as in double, and so are the weights at every level."""
    one = reader(3, 64, outputs=8)
    exact, slow = obs_path([one], damping=DAMPING), refit(one.weight, one.gram, np.arange(40), damping=DAMPING)
    monkeypatch.setattr(nested_refit, "SINGLE", 32)
    path, fast = obs_path([one], damping=DAMPING), refit(one.weight, one.gram, np.arange(40), damping=DAMPING)
    np.testing.assert_allclose(path.error, exact.error, rtol=1e-2, atol=1e-4 * exact.total)
    np.testing.assert_allclose(fast, slow, atol=1e-3 * np.abs(slow).max())
