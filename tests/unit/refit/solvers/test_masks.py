"""The mask solvers and the least squares that ends them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.refit.solvers import NM, SOLVERS, Blocks, Library, Pattern, Tiles, admm, on_support, sparsegpt, support
from onnxprune.refit.solvers.linalg import Array, Bools, damped

seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int = 16, m: int = 6) -> tuple[Array, Array]:
    """(weight, Gram matrix) with correlated inputs of unequal energy."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((4 * n, n)) @ random.standard_normal((n, n)) * np.exp(random.standard_normal(n))
    return random.standard_normal((n, m)), x.T @ x


@settings(max_examples=30)
@given(seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_support_solution_is_each_columns_least_squares(seed: int, share: float) -> None:
    """Independently: stack the damping under a square root of H and solve every column with lstsq."""
    weight, gram = problem(seed)
    mask = np.random.default_rng(seed + 1).random(weight.shape) < share
    solved = on_support(weight, gram, mask, damping=0.01)
    penal = gram + 0.01 * np.diag(np.diagonal(gram))
    root = np.linalg.cholesky(penal).T
    for j in range(weight.shape[1]):
        expected = np.linalg.lstsq(root[:, mask[:, j]], root @ weight[:, j], rcond=None)[0]
        np.testing.assert_allclose(solved[mask[:, j], j], expected, rtol=1e-6, atol=1e-8)
    assert not solved[~mask].any()


@settings(max_examples=20)
@given(seeds)
def test_iterative_support_solution_agrees_with_the_direct_one(seed: int) -> None:
    weight, gram = problem(seed, 24, 10)
    mask = np.random.default_rng(seed).random(weight.shape) < 0.5
    direct = on_support(weight, gram, mask)
    iterated = on_support(weight, gram, mask, max_direct_flops=0.0)

    def output_error(w: Array) -> float:
        return float(np.sum((w - weight) * (gram @ (w - weight))))

    signal = float(np.sum(weight * (gram @ weight)))
    assert abs(output_error(direct) - output_error(iterated)) <= 1e-6 * signal
    assert not iterated[~mask].any()


def test_iterations_start_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the weights' own units, whatever the inputs' scales are: with no step made, that is the result."""
    weight, gram = problem(4)
    mask = np.random.default_rng(0).random(weight.shape) < 0.5
    monkeypatch.setattr(support, "MAX_ITERATIONS", 0)
    start = on_support(weight, gram, mask)
    np.testing.assert_allclose(on_support(weight, gram, mask, start=start, max_direct_flops=0.0), start)
    first = on_support(weight, gram, mask, max_direct_flops=0.0)
    np.testing.assert_allclose(first, np.where(mask, weight, 0.0))


def test_dead_inputs_keep_their_weights_where_the_mask_does() -> None:
    weight, gram = problem(0)
    gram[3], gram[:, 3] = 0.0, 0.0
    mask = NM(2, 4).project(np.random.default_rng(0).random(weight.shape))
    for solved in (on_support(weight, gram, mask), on_support(weight, gram, mask, max_direct_flops=0.0)):
        np.testing.assert_array_equal(solved[3], np.where(mask[3], weight[3], 0.0))
        assert np.isfinite(solved).all()
    for name, solver in SOLVERS.items():
        pruned = solver(weight, gram, NM(2, 4))
        assert np.isfinite(pruned).all() and NM(2, 4).satisfied(pruned), name


@settings(max_examples=25)
@given(
    seeds,
    st.sampled_from(sorted(SOLVERS)),
    st.sampled_from([NM(2, 4), NM(8, 16), Blocks(4, 1, 0.5), Blocks(4, 4, 0.3), Library(4, 2, 4, 3), Tiles(0.5, 4)]),
    st.sampled_from([(16, 6), (18, 7), (3, 2)]),
)
def test_every_solver_obeys_every_pattern(seed: int, name: str, pattern: Pattern, shape: tuple[int, int]) -> None:
    weight, gram = problem(seed, *shape)
    before = weight.copy(), gram.copy()
    pruned = SOLVERS[name](weight, gram, pattern)
    assert pruned.shape == shape
    assert pattern.satisfied(pruned)
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(gram, before[1])


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_pattern_that_keeps_everything_changes_nothing(name: str) -> None:
    weight, gram = problem(2)
    np.testing.assert_allclose(SOLVERS[name](weight, gram, NM(4, 4)), weight, atol=1e-9)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_weights_that_fit_already_are_found_and_left(name: str) -> None:
    """A planted 2:4 matrix of clear weights: every solver must find the mask and change nothing."""
    weight, gram = problem(3)
    planted = np.where(NM(2, 4).project(np.abs(weight)), weight + np.sign(weight), 0.0)
    np.testing.assert_allclose(SOLVERS[name](planted, gram, NM(2, 4)), planted, atol=1e-8)


@given(seeds)
def test_uncorrelated_inputs_leave_nothing_to_correct(seed: int) -> None:
    """With a diagonal H the best mask keeps the largest |w|·‖x‖, unchanged; ADMM may confuse near ties, no more."""
    weight, gram = problem(seed, 64)
    diagonal = np.diag(np.diagonal(gram))
    best = SOLVERS["wanda"](weight, diagonal, NM(2, 4))
    np.testing.assert_allclose(sparsegpt(weight, diagonal, NM(2, 4), damping=0.0), best, atol=1e-9)
    found = admm(weight, diagonal, NM(2, 4))
    np.testing.assert_allclose(found[found != 0], weight[found != 0], atol=1e-9)
    energy = np.diagonal(gram)[:, None]
    least = float(np.sum(energy * (best - weight) ** 2))
    assert least * (1 - 1e-9) <= float(np.sum(energy * (found - weight) ** 2)) <= 1.05 * least


class _Fixed:
    """A pattern with one allowed mask."""

    rows: int | None = None

    def __init__(self, mask: Bools) -> None:
        self.mask = mask

    def learn(self, scores: Array) -> Pattern:
        return self

    def project(self, scores: Array) -> Bools:
        return self.mask

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        return not (np.asarray(mask) != 0)[~self.mask].any()


@settings(max_examples=20)
@given(seeds, st.sampled_from([1, 5, 128]))
def test_sparsegpt_is_the_exact_sequential_surgeon(seed: int, block: int) -> None:
    """Input by input, later inputs re-solved from scratch to make up for each zero: the same weights."""
    weight, gram = problem(seed, 12, 4)
    mask = np.random.default_rng(seed).random(weight.shape) < 0.5
    h = damped(gram, 0.01).matrix
    expected = weight.copy()
    for i in range(12):
        removed = np.where(mask[i], 0.0, expected[i])
        expected[i] -= removed
        if i < 11:
            later = slice(i + 1, 12)
            expected[later] += np.linalg.solve(h[later, later], np.outer(h[later, i], removed))
    pruned = sparsegpt(weight, gram, _Fixed(mask), damping=0.01, block=block)
    np.testing.assert_allclose(pruned, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_solvers_are_deterministic() -> None:
    weight, gram = problem(6, 32, 16)
    for solver in SOLVERS.values():
        np.testing.assert_array_equal(solver(weight, gram, NM(2, 4)), solver(weight, gram, NM(2, 4)))
