"""Bases of heads: each closed form is the best that a search finds, costs what it says, and undoes itself."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.refit.solvers.rotation import Rotation, query_key_rotation, value_rotation

RNG = np.random.default_rng(11)
SIZE = 5


def moment(rank: int = 2 * SIZE, seed: int = 0) -> np.ndarray:
    factors = np.random.default_rng(seed).standard_normal((SIZE, rank)) * np.arange(1, SIZE + 1)[:, None]
    return factors @ factors.T


def root(c: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(c)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def projection(found: Rotation, rank: int) -> np.ndarray:
    return found.first[:rank].T @ found.second[:rank]


def lost_by_pairs(cq: np.ndarray, ck: np.ndarray, p: np.ndarray) -> float:
    """E(qᵀk − qᵀPk)² of independent queries and keys."""
    gone = np.eye(SIZE) - p
    return float(np.trace(gone.T @ cq @ gone @ ck))


def searched(left: np.ndarray, right: np.ndarray, rank: int) -> float:
    """The least ‖left (I − A B) right‖² over all A, B of a rank, by alternating least squares from many starts."""
    best = np.inf
    for start in range(8):
        b = np.random.default_rng(start).standard_normal((rank, SIZE))
        for _ in range(400):
            a = np.linalg.lstsq((b @ right).T, right.T, rcond=None)[0].T
            b = np.linalg.lstsq(left @ a, left, rcond=None)[0]
        best = min(best, float(np.square(left @ (np.eye(SIZE) - a @ b) @ right).sum()))
    return best


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_queries_and_keys_lose_least(rank: int) -> None:
    cq, ck = moment(seed=1), moment(seed=2)
    found = query_key_rotation(cq, ck)
    lost = lost_by_pairs(cq, ck, projection(found, rank))
    assert lost == pytest.approx(searched(root(cq), root(ck), rank), rel=1e-5)
    assert lost == pytest.approx(found.lost[rank:].sum())
    assert lost < min(
        lost_by_pairs(cq, ck, projection(query_key_rotation(cq, np.eye(SIZE)), rank)),
        lost_by_pairs(cq, ck, projection(query_key_rotation(np.eye(SIZE), ck), rank)),
    )


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_values_lose_least(rank: int) -> None:
    c, w = moment(seed=3), RNG.standard_normal((SIZE, 7))
    found = value_rotation(c, w)
    gone = np.eye(SIZE) - found.first[:rank].T @ found.second[:rank]
    lost = float(np.square(root(c) @ gone @ w).sum())
    assert lost == pytest.approx(float(np.square(np.linalg.svd(root(c) @ w)[1][rank:]).sum()))
    assert lost == pytest.approx(found.lost[rank:].sum())


@pytest.mark.parametrize("rank", [0, 2, SIZE])
def test_bases_have_inverses_whatever_the_moments(rank: int) -> None:
    """Directions that no row showed are kept apart, and nothing is lost without them."""
    c = moment(rank, seed=4)
    for found in (query_key_rotation(c, moment(seed=5)), value_rotation(c, RNG.standard_normal((SIZE, 7)))):
        np.testing.assert_allclose(found.first.T @ found.second, np.eye(SIZE), atol=1e-8)
        assert (np.diff(found.lost) <= 1e-9 * found.lost.max()).all()
        assert found.lost[rank:].max(initial=0.0) <= 1e-9 * found.lost.max(initial=0.0)


def test_what_the_first_coordinates_cover_is_shared_by_both_sides() -> None:
    cq, ck = moment(seed=6), moment(seed=7)
    found = query_key_rotation(cq, ck)
    sides = found.first @ cq @ found.first.T, found.second @ ck @ found.second.T
    np.testing.assert_allclose(*sides, rtol=1e-6, atol=1e-6 * sides[0].max())
    np.testing.assert_allclose(sides[0], np.diag(np.diagonal(sides[0])), atol=1e-6 * sides[0].max())
