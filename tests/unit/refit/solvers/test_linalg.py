"""Factors, inverses and downdates against NumPy's general ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from onnxprune.errors import DataError
from onnxprune.refit.solvers.linalg import (
    Array,
    Factored,
    cholesky,
    damped,
    damped_tokens,
    inverse,
    numpy_on_one_thread,
    product,
    substitute,
    subtract_product,
)

cases = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))


def made(seed: int, n: int, m: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((3 * n, n))
    return x.T @ x + np.eye(n), random.standard_normal((n, m))


@given(cases)
def test_positive_definite_matrices(case: tuple[int, int, int]) -> None:
    h, b = made(*case)
    before = h.copy(), b.copy()
    factor = cholesky(h)
    np.testing.assert_allclose(np.tril(factor) @ np.tril(factor).T, h, atol=1e-9)
    np.testing.assert_allclose(inverse(h) @ h, np.eye(len(h)), atol=1e-9)
    np.testing.assert_array_equal(inverse(h), inverse(h).T)
    np.testing.assert_allclose(h @ Factored(h).solve(b), b, atol=1e-9)
    assert Factored(h).matrix is None  # what is factored is not held beside its factor
    np.testing.assert_allclose(factor @ substitute(factor, b), b, atol=1e-9)
    np.testing.assert_allclose(factor.T @ substitute(factor, b, transposed=True), b, atol=1e-9)
    np.testing.assert_array_equal(h, before[0])
    np.testing.assert_array_equal(b, before[1])


@given(cases)
def test_a_leading_block_of_a_factor_is_a_factor(case: tuple[int, int, int]) -> None:
    h, b = made(*case)
    k = max(1, len(h) // 2)
    found = substitute(cholesky(h)[:k, :k], b[:k])
    np.testing.assert_allclose(found, substitute(cholesky(h[:k, :k].copy()), b[:k]), atol=1e-9)


@given(cases)
def test_a_product_is_subtracted_in_place(case: tuple[int, int, int]) -> None:
    h, b = made(*case)
    for matrix, left, right in ((h, b.T.copy(), 2.0 * b.T), (b.copy(), h, b)):
        expected = matrix - left.T @ right
        subtract_product(matrix, left, right)
        np.testing.assert_allclose(matrix, expected, atol=1e-9)


@given(cases)
def test_a_product_is_the_product(case: tuple[int, int, int]) -> None:
    h, b = made(*case)
    np.testing.assert_allclose(product(h, b), h @ b, atol=1e-9)
    np.testing.assert_allclose(product(b.T, h), b.T @ h, atol=1e-9)


def test_numpy_gets_its_threads_back_and_torch_keeps_its_own() -> None:
    def threads() -> dict[str, int]:
        return {lib["filepath"]: lib["num_threads"] for lib in threadpool_info()}

    before, torch_has = threads(), torch.get_num_threads()
    with pytest.raises(KeyError), numpy_on_one_thread():
        during = threads()
        assert torch.get_num_threads() == torch_has
        raise KeyError
    own = {path for path in before if "numpy" in Path(path).parent.name}
    assert during == before | dict.fromkeys(own, 1)
    assert threads() == before


def test_indefinite_by_rounding_is_still_solved_and_a_factor_of_it_refused() -> None:
    h = np.array([[1.0, 0.0], [0.0, -1e-12]])
    np.testing.assert_allclose(h @ inverse(h), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(h @ Factored(h).solve(np.ones((2, 1))), np.ones((2, 1)), atol=1e-9)
    with pytest.raises(DataError, match="not positive definite"):
        cholesky(h)


def test_without_damping_there_is_enough_of_it_for_an_inverse() -> None:
    tokens = np.ones((2, 4))
    assert np.linalg.eigvalsh(damped(tokens.T @ tokens, 0.0).matrix).min() > 0
    assert damped_tokens(tokens, 0.0)[2] > 0
