"""Laws of the solvers: a fit never loses to its prior, and better-informed pruning errs less on rows it never saw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.refit.solvers import (
    INFINITE,
    NM,
    SOLVERS,
    Blocks,
    Moments,
    Pattern,
    Reader,
    error,
    fit_held_out,
    obs_path,
    refit,
    ridge_path,
    scale_units,
)
from onnxprune.refit.solvers.linalg import Array

seeds = st.integers(0, 2**32 - 1)
strengths = st.lists(st.sampled_from([0.0, 1e-4, 1e-2, 1.0, 100.0, INFINITE]), min_size=1, max_size=4)


def activations(seed: int, tokens: int, n: int) -> tuple[Array, Array]:
    """Two samples of correlated inputs with unequal energies and means, as hidden activations are."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((max(1, n // 4), n)) / np.sqrt(max(1, n // 4))
    scale, shift = np.exp(0.7 * random.standard_normal(n)), random.standard_normal(n)
    latent = random.standard_normal((2 * tokens, len(mix)))
    x = (latent @ mix + 0.4 * random.standard_normal((2 * tokens, n))) * scale + shift
    return x[:tokens], x[tokens:]


@given(seeds, st.integers(1, 60), st.integers(1, 8), strengths)
def test_training_error_never_exceeds_the_priors(seed: int, tokens: int, kept: int, path: list[float]) -> None:
    """Whatever λ, however few rows: with the intercept fitted, and by whole weights or by factors per unit."""
    random = np.random.default_rng(seed)
    x, _ = activations(seed, tokens, 8)
    y, weights = random.standard_normal((tokens, 3)), random.uniform(0.1, 2.0, tokens)
    moments, prior = Moments.of(x, y, weights), random.standard_normal((8, 3))
    rows = np.sort(random.permutation(8)[:kept])
    cut = np.zeros_like(prior)
    cut[rows] = prior[rows]
    bias = random.standard_normal(3)
    before = error(moments, cut, bias)
    for fit in ridge_path(moments, rows, prior, path):
        assert error(moments, fit.weight, fit.bias) <= before * (1 + 1e-9) + 1e-9
    units = np.where(np.isin(np.arange(8), rows), np.arange(8) // 2, -1)
    factors = scale_units(moments, units, prior)
    assert error(moments, factors.weight, factors.bias) <= before * (1 + 1e-9) + 1e-9


@given(seeds, st.integers(1, 30), st.integers(0, 8), strengths)
def test_held_out_error_never_exceeds_the_priors(seed: int, tokens: int, kept: int, path: list[float]) -> None:
    random = np.random.default_rng(seed)
    x, unseen = activations(seed, tokens, 8)
    truth = random.standard_normal((8, 3))
    noise = random.standard_normal((2, tokens, 3))
    rows = random.permutation(8)[:kept]
    bias = random.standard_normal(3)
    train, held_out = Moments.of(x, x @ truth + noise[0]), Moments.of(unseen, unseen @ truth)
    fit, _ = fit_held_out(train, held_out, rows, truth, bias, path)
    cut = np.zeros_like(truth)
    cut[rows] = truth[rows]
    before = float(((unseen @ truth - unseen @ cut - bias) ** 2).sum())
    after = float(((unseen @ truth - unseen @ fit.weight - fit.bias) ** 2).sum())
    assert after <= before * (1 + 1e-9) + 1e-9


@given(seeds, st.integers(1, 8))
def test_refit_errs_no_more_than_cutting(seed: int, kept: int) -> None:
    """In the damped metric it minimises, for any kept set; and more kept units never err more along the path."""
    x, _ = activations(seed, 40, 8)
    weight = np.random.default_rng(seed).standard_normal((8, 3))
    gram = x.T @ x
    metric = gram + 0.01 * np.trace(gram) / 8 * np.eye(8)
    rows = np.random.default_rng(seed + 1).permutation(8)[:kept]
    cut = np.zeros_like(weight)
    cut[rows] = weight[rows]

    def err(w: Array) -> float:
        return float(np.sum((w - weight) * (metric @ (w - weight))))

    assert err(refit(weight, gram, rows)) <= err(cut) * (1 + 1e-9)
    path = obs_path([Reader(weight, gram, np.arange(8))])
    assert (np.diff(path.error) >= 0).all()
    assert path.error[-1] == pytest.approx(path.total, rel=1e-6)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(8, 16), Blocks(4, 1, 0.5)], ids=str)
def test_better_informed_solvers_err_less_on_unseen_rows(pattern: Pattern) -> None:
    """admm < sparsegpt < wanda < magnitude, in the mean over seeds, on rows none of them saw."""
    errors: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for seed in range(5):
        x, unseen = activations(seed, 600, 48)
        weight = np.random.default_rng(seed).standard_normal((48, 32))
        signal = float(((unseen @ weight) ** 2).sum())
        for name, solver in SOLVERS.items():
            pruned = solver(weight, x.T @ x, pattern)
            errors[name].append(float(((unseen @ (pruned - weight)) ** 2).sum()) / signal)
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert mean["admm"] < mean["sparsegpt"] < mean["wanda"] < mean["magnitude"], mean


def test_obs_order_errs_less_on_unseen_rows_than_ranking_by_norms() -> None:
    """Half of the neurons cut, weights refitted alike: the greedy path against wanda's scores on the reader's rows."""
    ratios = []
    for seed in range(5):
        x, unseen = activations(seed, 600, 64)
        weight = np.random.default_rng(seed).standard_normal((64, 16))
        gram = x.T @ x
        path = obs_path([Reader(weight, gram, np.arange(64))], keep_levels=[32])
        wanda = np.argsort(-np.diagonal(gram) * (weight**2).sum(axis=1))[:32]

        def unseen_error(w: Array, x: Array = unseen, weight: Array = weight) -> float:
            return float(((x @ (w - weight)) ** 2).sum())

        ratios.append(unseen_error(path.weights[32][0]) / unseen_error(refit(weight, gram, wanda)))
    assert float(np.mean(ratios)) < 0.9, ratios
