"""Moments and ridge regression against plain least squares on the rows themselves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError
from onnxprune.refit.solvers import (
    INFINITE,
    Moments,
    Tokens,
    error,
    fit_each_held_out,
    fit_held_out,
    least_squares,
    ridge,
    ridge_path,
    scale_units,
)
from onnxprune.refit.solvers.linalg import Array

seeds = st.integers(0, 2**32 - 1)


def rows(seed: int, tokens: int, n: int, m: int, offset: float = 3.0) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, n)) @ random.standard_normal((n, n)) + offset * random.standard_normal(n)
    y = x @ random.standard_normal((n, m)) + random.standard_normal((tokens, m)) + offset
    return x, y, random.uniform(0.1, 3.0, tokens)


@given(seeds, st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_moments_of_parts_merge_to_those_of_the_whole(seed: int, sizes: list[int]) -> None:
    x, y, w = rows(seed, sum(sizes), 4, 3)
    moments, at = Moments.empty(4, 3), 0
    for size in sizes:
        moments = moments.add(x[at : at + size], y[at : at + size], w[at : at + size])
        at += size
    assert moments.count == pytest.approx(w.sum())
    np.testing.assert_allclose(moments.gram(), (x * w[:, None]).T @ x, rtol=1e-9, atol=1e-9)
    if len(x):
        np.testing.assert_allclose(moments.x_mean, np.average(x, axis=0, weights=w), rtol=1e-9, atol=1e-9)
        centred = y - np.average(y, axis=0, weights=w)
        np.testing.assert_allclose(moments.syy, (w[:, None] * centred**2).sum(axis=0), rtol=1e-9, atol=1e-9)


@given(seeds)
def test_sums_and_rows_give_the_same_moments(seed: int) -> None:
    x, y, w = rows(seed, 30, 4, 2)
    xw = x * w[:, None]
    sums = Moments.from_sums(w.sum(), xw.sum(0), w @ y, xw.T @ x, xw.T @ y, w @ y**2)
    direct = Moments.of(x, y, w)
    np.testing.assert_allclose(sums.sxx, direct.sxx, atol=1e-8)
    np.testing.assert_allclose(sums.sxy, direct.sxy, atol=1e-8)
    np.testing.assert_allclose(sums.syy, direct.syy, atol=1e-8)


def test_a_large_common_offset_costs_no_digits() -> None:
    x, y, _ = rows(0, 500, 5, 2, offset=0.0)
    near, far = Moments.empty(5, 2), Moments.empty(5, 2)
    for part in np.array_split(np.arange(500), 7):
        near, far = near.add(x[part], y[part]), far.add(x[part] + 1e6, y[part])
    np.testing.assert_allclose(far.sxx, near.sxx, rtol=1e-7)


def test_tokens_of_weight_zero_are_not_there_whatever_they_hold() -> None:
    x, y, w = rows(1, 20, 3, 2)
    w[5:9] = 0.0
    x[5:9] = np.nan
    stays = w > 0
    expected, got = Moments.of(x[stays], y[stays], w[stays]), Moments.of(x, y, w)
    assert got.count == expected.count
    np.testing.assert_array_equal(got.sxx, expected.sxx)


@given(seeds, st.booleans())
def test_error_is_that_of_the_rows(seed: int, weighted: bool) -> None:
    x, y, w = rows(seed, 25, 4, 3)
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((4, 3)), random.standard_normal(3)
    w = w if weighted else np.ones(25)
    direct = float((w[:, None] * (y - x @ weight - bias) ** 2).sum())
    assert error(Moments.of(x, y, w), weight, bias) == pytest.approx(direct, rel=1e-9)


@given(seeds, st.sampled_from([1e-3, 0.1, 1.0]), st.booleans())
def test_ridge_is_the_augmented_least_squares_solution(seed: int, strength: float, intercept: bool) -> None:
    """The same minimum by a different road: prior rows stacked under the data, solved by lstsq."""
    x, y, w = rows(seed, 40, 5, 2)
    prior = np.random.default_rng(seed).standard_normal((5, 2))
    kept = np.array([True, False, True, True, False])
    root = np.sqrt(w)[:, None]
    design = np.hstack([x[:, kept], np.ones((40, 1))]) if intercept else x[:, kept]
    mean = np.average(x[:, kept], axis=0, weights=w) if intercept else 0.0
    scale = strength * float((w[:, None] * (x[:, kept] - mean) ** 2).sum()) / 3
    pull = np.sqrt(scale) * np.eye(3, design.shape[1])
    stacked = np.vstack([design * root, pull]), np.vstack([y * root, np.sqrt(scale) * prior[kept]])
    expected = np.linalg.lstsq(*stacked, rcond=None)[0]
    fit = ridge(Moments.of(x, y, w), kept, prior, strength, intercept=intercept)
    np.testing.assert_allclose(fit.weight[kept], expected[:3], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fit.bias, expected[3] if intercept else np.zeros(2), rtol=1e-6, atol=1e-6)
    assert not fit.weight[~kept].any()


@given(seeds)
def test_a_path_is_its_points_and_its_training_error_rises_with_strength(seed: int) -> None:
    x, y, w = rows(seed, 30, 6, 2)
    moments, prior = Moments.of(x, y, w), np.random.default_rng(seed).standard_normal((6, 2))
    strengths = [0.0, 1e-3, 0.1, 10.0, INFINITE]
    path = ridge_path(moments, [0, 2, 3, 5], prior, strengths)
    for fit, strength in zip(path, strengths, strict=True):
        alone = ridge(moments, np.isin(np.arange(6), [0, 2, 3, 5]), prior, strength)
        np.testing.assert_allclose(fit.weight, alone.weight, rtol=1e-9, atol=1e-9)
    errors = [error(moments, fit.weight, fit.bias) for fit in path]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(errors))
    np.testing.assert_array_equal(path[-1].weight[[0, 2, 3, 5]], prior[[0, 2, 3, 5]])


def test_directions_no_token_excites_keep_the_prior() -> None:
    """Fewer rows than inputs, a dead input and two equal ones: still finite, exact on the rows, least change."""
    x, y, _ = rows(3, 4, 8, 2, offset=0.0)
    x[:, 2] = 0.0
    x[:, 5] = x[:, 4]
    prior = np.random.default_rng(0).standard_normal((8, 2))
    for strength in (0.0, 1e-3):
        fit = ridge(Moments.of(x, y), range(8), prior, strength)
        assert np.isfinite(fit.weight).all()
        np.testing.assert_allclose(fit.weight[2], prior[2], atol=1e-9)
        np.testing.assert_allclose(fit.weight[4] - prior[4], fit.weight[5] - prior[5], atol=1e-9)
    exact = ridge(Moments.of(x, y), range(8), prior, 0.0)
    np.testing.assert_allclose(x @ exact.weight + exact.bias, y, atol=1e-8)


def test_nothing_kept_leaves_the_mean() -> None:
    x, y, _ = rows(4, 20, 3, 2)
    fit = ridge(Moments.of(x, y), np.zeros(3, dtype=bool), np.ones((3, 2)), 0.1)
    assert not fit.weight.any()
    np.testing.assert_allclose(fit.bias, y.mean(axis=0))


@given(seeds)
def test_unit_factors_are_the_least_squares_ones(seed: int) -> None:
    x, y, w = rows(seed, 40, 6, 3)
    prior = np.random.default_rng(seed).standard_normal((6, 3))
    units = np.array([0, 1, 0, -1, 7, 1])
    parts = [x[:, units == u] @ prior[units == u] for u in (0, 1, 7)]
    root = np.sqrt(w)[:, None, None]
    design = np.stack(parts, axis=-1)
    centre = np.average(design, axis=0, weights=w), np.average(y, axis=0, weights=w)
    a = ((design - centre[0]) * root).reshape(-1, 3)
    b = ((y - centre[1])[..., None] * root).reshape(-1)
    factors = np.linalg.lstsq(a, b, rcond=None)[0]
    fit = scale_units(Moments.of(x, y, w), units, prior)
    for u, factor in zip((0, 1, 7), factors, strict=True):
        np.testing.assert_allclose(fit.weight[units == u], factor * prior[units == u], rtol=1e-6, atol=1e-8)
    assert not fit.weight[3].any()
    pull = 0.3 * np.square(a).sum() / 3  # relative to the factors' mean energy, toward one
    around = np.linalg.solve(a.T @ a + pull * np.eye(3), a.T @ (b[:, 0] if b.ndim > 1 else b) + pull)
    fit = scale_units(Moments.of(x, y, w), units, prior, 0.3)
    np.testing.assert_allclose(fit.weight[units == 7], around[2] * prior[units == 7], rtol=1e-6, atol=1e-8)


def test_with_target_is_the_layers_own_output() -> None:
    x, y, w = rows(5, 30, 4, 3)
    weight, bias = np.random.default_rng(0).standard_normal((4, 3)), np.array([1.0, -2.0, 0.5])
    direct, derived = Moments.of(x, x @ weight + bias, w), Moments.of(x, y, w).with_target(weight, bias)
    for name in ("y_mean", "sxy", "syy"):
        np.testing.assert_allclose(getattr(derived, name), getattr(direct, name), rtol=1e-9, atol=1e-9)


def test_held_out_choice_falls_back_to_the_prior() -> None:
    """Training rows that say the opposite of the held-out ones: nothing is taken from them."""
    x, _, _ = rows(6, 60, 4, 2)
    prior, bias = np.ones((4, 2)), np.zeros(2)
    train, held_out = Moments.of(x[:30], -x[:30] @ prior), Moments.of(x[30:], x[30:] @ prior)
    fit, change = fit_held_out(train, held_out, range(4), prior, bias)
    assert change == 1.0
    assert fit.strength is None
    np.testing.assert_array_equal(fit.weight, prior)


def test_overflown_rows_are_an_error_that_says_so() -> None:
    x, y, _ = rows(7, 10, 3, 2)
    x[3, 1] = np.inf
    with np.errstate(invalid="ignore"):
        moments = Moments.of(x, y)
    with pytest.raises(DataError, match="overflow"):
        ridge(moments, range(3), np.zeros((3, 2)), 0.1)


def test_bad_arguments_are_refused() -> None:
    x, y, _ = rows(8, 10, 3, 2)
    with pytest.raises(ValueError, match="weights"):
        Moments.of(x, y, -np.ones(10))
    with pytest.raises(ValueError, match="rows of x"):
        Moments.of(x, y[:5])
    with pytest.raises(ValueError, match="strength"):
        ridge(Moments.of(x, y), range(3), np.zeros((3, 2)), -1.0)
    with pytest.raises(ValueError, match="outside"):
        ridge(Moments.of(x, y), [3], np.zeros((3, 2)), 1.0)


@pytest.mark.parametrize("strength", [0.0, 0.3, INFINITE])
def test_the_last_fit_is_the_ridge_solution_on_all_tokens(strength: float) -> None:
    x, y, _ = rows(8, 80, 5, 3)
    train, held_out = Moments.of(x[:50], y[:50]), Moments.of(x[50:], y[50:])
    prior = np.random.default_rng(1).standard_normal((5, 3))
    fit, change = fit_held_out(train, held_out, [0, 1, 3], prior, np.zeros(3), [strength], both=True)
    expected = ridge(
        Moments.of(x, y), [0, 1, 3], np.where(np.isin(np.arange(5), [0, 1, 3])[:, None], prior, 0), strength
    )
    assert change < 1
    np.testing.assert_allclose(fit.weight, expected.weight, atol=1e-8)
    np.testing.assert_allclose(fit.bias, expected.bias, atol=1e-8)


@given(seeds)
def test_the_strength_that_is_chosen_errs_least_of_its_neighbours(seed: int) -> None:
    """On the tokens that choose: no more than the prior, the intercept alone, and the strengths beside it."""
    x, y, _ = rows(seed, 40, 8, 2)
    train, held_out = Moments.of(x[:20], y[:20]), Moments.of(x[20:], y[20:])
    prior, bias = np.random.default_rng(seed).standard_normal((8, 2)), np.zeros(2)
    strengths = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    fit, change = fit_held_out(train, held_out, range(8), prior, bias, [INFINITE, *strengths])
    found = error(held_out, fit.weight, fit.bias)
    start = error(held_out, prior, bias)
    assert change == pytest.approx(found / start)
    errors = [error(held_out, f.weight, f.bias) for f in ridge_path(train, range(8), prior, [*strengths, INFINITE])]
    assert found <= min(start, errors[-1]) * (1 + 1e-9)
    if fit.strength in strengths:
        at = strengths.index(fit.strength)
        assert found <= min(errors[max(at - 1, 0) : at + 2]) * (1 + 1e-9)


def test_of_one_valley_the_bottom_is_found_wherever_it_lies() -> None:
    """A true map far from the prior, and more or less noise on it: weak, middling and strong pulls are each best."""
    random = np.random.default_rng(0)
    x, truth, prior = random.standard_normal((120, 12)), random.standard_normal((12, 3)), np.zeros((12, 3))
    strengths = [1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0]
    chosen = set()
    for noise in (0.1, 1.0, 3.0, 6.0):
        y = x @ truth + noise * random.standard_normal((120, 3))
        train, held_out = Moments.of(x[:60], y[:60]), Moments.of(x[60:], y[60:])
        path = ridge_path(train, range(12), prior, strengths)
        best = min(path, key=lambda f: error(held_out, f.weight, f.bias))
        fit, _ = fit_held_out(train, held_out, range(12), prior, y.mean(axis=0), strengths)
        assert fit.strength == best.strength
        chosen.add(fit.strength)
    assert len(chosen) >= 3


@given(seeds, st.booleans(), st.booleans())
def test_few_tokens_say_what_their_moments_say(seed: int, both: bool, biased: bool) -> None:
    """Fewer tokens than inputs: the same fit, the same error, from products of tokens instead of inputs."""
    x, y, w = rows(seed, 12, 20, 3)
    few, other = Tokens.of(x[:8], y[:8], w[:8]), Tokens.of(x[8:], y[8:], w[8:])
    summed, seen = Moments.of(x[:8], y[:8], w[:8]), Moments.of(x[8:], y[8:], w[8:])
    for got, expected in ((few.moments, summed), (few.merge(other).moments, summed.merge(seen))):
        np.testing.assert_allclose(got.sxx, expected.sxx, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.sxy, expected.sxy, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.syy, expected.syy, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.x_mean, expected.x_mean, rtol=1e-9, atol=1e-9)
    for one, two in ((few, seen), (summed, other)):
        np.testing.assert_allclose(one.merge(two).moments.sxx, summed.merge(seen).sxx, rtol=1e-9, atol=1e-9)
    prior, bias = np.random.default_rng(seed).standard_normal((20, 3)), np.ones(3)
    assert error(few, prior, bias) == pytest.approx(error(summed, prior, bias), rel=1e-9)
    kept = np.arange(20) % 3 > 0
    strengths = (1e-2, 1e-1, 1.0, *((INFINITE,) if biased else ()))
    expected_fit, expected_change = fit_held_out(summed, seen, kept, prior, bias, strengths, both=both)
    for train, held in ((few, other), (few, seen), (summed, other)):
        fit, change = fit_held_out(train, held, kept, prior, bias, strengths, both=both)
        assert fit.strength == expected_fit.strength and change == pytest.approx(expected_change, rel=1e-6)
        np.testing.assert_allclose(fit.weight, expected_fit.weight, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(fit.bias, expected_fit.bias, rtol=1e-6, atol=1e-6)


@given(seeds, st.booleans())
def test_products_that_are_fitted_together_are_as_if_each_were_alone(seed: int, both: bool) -> None:
    """Queries beside keys: one factorisation, and each its own strength, weights and bias."""
    x, y, _ = rows(seed, 60, 6, 5)
    y[:, 3:] = np.random.default_rng(seed).standard_normal((60, 2))  # of these nothing can be learnt
    train, held_out = Moments.of(x[:40], y[:40]), Moments.of(x[40:], y[40:])
    prior, bias = np.random.default_rng(seed + 1).standard_normal((6, 5)), np.arange(5.0)
    strengths, kept, parts = [1e-2, 1e-1, 1.0, INFINITE], [0, 2, 3, 5], [slice(0, 3), slice(3, 5)]
    together = fit_each_held_out(train, held_out, kept, prior, bias, strengths, parts, both=both)
    for part, (fit, change) in zip(parts, together, strict=True):
        one, two = (Moments.of(x[s], y[s, part]) for s in (slice(40), slice(40, None)))
        alone, expected = fit_held_out(one, two, kept, prior[:, part], bias[part], strengths, both=both)
        assert fit.strength == alone.strength
        assert change == pytest.approx(expected)
        np.testing.assert_allclose(fit.weight, alone.weight, atol=1e-9)
        np.testing.assert_allclose(fit.bias, alone.bias, atol=1e-9)


def test_large_products_are_chosen_in_single_precision_by_some_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strength is the one that all outputs choose in double; what is fitted with it is exact."""
    random = np.random.default_rng(0)
    x, truth = random.standard_normal((400, 24)) + 5.0, random.standard_normal((24, 40))
    y = x @ truth + 2.0 * random.standard_normal((400, 40))
    train, held_out = Moments.of(x[:100], y[:100]), Moments.of(x[100:], y[100:])
    prior, strengths = truth + random.standard_normal((24, 40)), [1e-3, 1e-2, 1e-1, 1.0, 10.0, INFINITE]
    bias = y.mean(axis=0) - x.mean(axis=0) @ prior
    slow, expected = fit_held_out(train, held_out, range(24), prior, bias, strengths, both=True)
    monkeypatch.setattr(least_squares, "SINGLE", 16)
    monkeypatch.setattr(least_squares, "SAMPLED", 10)
    fast, change = fit_held_out(train, held_out, range(24), prior, bias, strengths, both=True)
    assert fast.strength == slow.strength
    assert change == pytest.approx(expected, rel=0.25)
    np.testing.assert_allclose(fast.weight, slow.weight, atol=1e-12)
