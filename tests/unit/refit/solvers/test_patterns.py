"""Patterns: projection is the best allowed mask, `satisfied` is what it says, and names parse."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.refit.solvers import NM, Blocks, Library, Pattern, Tiles, parse
from onnxprune.refit.solvers.linalg import Array

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 13)
patterns = st.sampled_from(
    [NM(2, 4), NM(1, 4), NM(4, 4), NM(8, 16), Blocks(4, 1, 0.5), Blocks(2, 3, 0.3), Library(2, 2, 2, 3), Tiles(0.5, 4)]
)


def scores_of(seed: int, n: int, m: int) -> Array:
    return np.random.default_rng(seed).random((n, m))


@given(seeds, sizes, sizes, patterns)
def test_projection_satisfies_the_pattern_and_is_stable(seed: int, n: int, m: int, pattern: Pattern) -> None:
    scores = scores_of(seed, n, m)
    pattern = pattern.learn(scores)
    mask = pattern.project(scores)
    assert mask.shape == (n, m) and mask.dtype == np.bool_
    assert pattern.satisfied(mask)
    np.testing.assert_array_equal(pattern.project(scores * mask) & mask, mask & (scores * mask > 0))


@given(seeds, sizes, sizes)
def test_nm_keeps_the_largest_of_every_group(seed: int, n: int, m: int) -> None:
    scores = scores_of(seed, n, m)
    mask = NM(2, 4).project(scores)
    for start in range(0, n, 4):
        group = scores[start : start + 4]
        expected = np.sort(group, axis=0)[::-1][:2].sum(axis=0)
        np.testing.assert_allclose((group * mask[start : start + 4]).sum(axis=0), expected)
        assert (mask[start : start + 4].sum(axis=0) == min(2, len(group))).all()


@given(seeds)
def test_blocks_keep_the_best_share(seed: int) -> None:
    scores = scores_of(seed, 4, 6)
    sums = {(i, j): scores[i : i + 2, j : j + 3].sum() for i in (0, 2) for j in (0, 3)}
    best = max(combinations(sums, 2), key=lambda pair: sum(sums[p] for p in pair))
    mask = Blocks(2, 3, 0.5).project(scores)
    assert (scores * mask).sum() == pytest.approx(sum(sums[p] for p in best))


@given(seeds)
def test_library_takes_the_best_of_its_masks_for_every_block(seed: int) -> None:
    scores = scores_of(seed, 8, 8)
    library = Library(2, 4, 3, 5).learn(scores)
    assert library.masks is not None and len(set(library.masks)) == len(library.masks) <= 5
    assert all(sum(mask) == 3 for mask in library.masks)
    mask = library.project(scores)
    for i in range(0, 8, 2):
        for j in range(0, 8, 4):
            block = scores[i : i + 2, j : j + 4].ravel()
            best = max(float(block @ np.array(m)) for m in library.masks)
            assert float(block @ mask[i : i + 2, j : j + 4].ravel()) == pytest.approx(best)


def test_library_holds_the_most_frequent_masks() -> None:
    """Three blocks of one form, two of another, one of a third, the strongest: two places go to the frequent ones."""
    blocks = [[5, 4, 0, 0]] * 3 + [[0, 0, 5, 4]] * 2 + [[90, 0, 0, 80]]
    library = Library(1, 4, 2, 2).learn(np.array(blocks, dtype=np.float64))
    assert library.masks == ((True, True, False, False), (False, False, True, True))


@given(seeds, st.integers(1, 12), st.integers(1, 9))
def test_tiles_keep_the_best_range_for_every_tile(seed: int, n: int, m: int) -> None:
    scores = scores_of(seed, n, m)
    mask = Tiles(0.4, 4).project(scores)
    length = max(1, int(0.4 * n + 0.5))
    bounds = Tiles(0.4, 4).bounds(m)
    assert [i for span in bounds for i in range(*span)] == list(range(m))
    assert len(bounds) == max(1, m // 4) and min(last - first for first, last in bounds) >= min(m, 4)
    for first, last in bounds:
        tile = scores[:, first:last].sum(axis=1)
        best = max(tile[i : i + length].sum() for i in range(n - length + 1))
        assert (scores * mask)[:, first:last].sum() == pytest.approx(best)
        assert (mask[:, first:last] == mask[:, first : first + 1]).all()


def test_tiles_are_wide_and_in_steps_of_sixteen() -> None:
    assert Tiles(0.5).bounds(768) == [(0, 384), (384, 768)]
    assert Tiles(0.5, 192).bounds(768) == [(0, 192), (192, 384), (384, 576), (576, 768)]
    assert Tiles(0.5).bounds(3072) == [(0, 1536), (1536, 3072)] and Tiles(0.5).least == 384
    assert all(first % 16 == 0 for first, _ in Tiles(0.5, 192).bounds(1001))
    assert Tiles(0.5).bounds(200) == [(0, 200)]


def test_satisfied_notices_what_is_too_much() -> None:
    mask = np.zeros((8, 4), dtype=bool)
    mask[0:3, 1] = True
    assert not NM(2, 4).satisfied(mask) and NM(3, 4).satisfied(mask) and NM(3, 8).satisfied(mask)
    straddling = np.zeros((8, 1))
    straddling[2:6] = 1.0
    assert NM(2, 4).satisfied(straddling)
    assert not Blocks(4, 1, 0.1).satisfied(np.ones((8, 4))) and Blocks(4, 4, 0.5).satisfied(mask)
    assert not Library(2, 2, 1, 4).satisfied(mask)
    gap = np.zeros((6, 2), dtype=bool)
    gap[[0, 3]] = True
    assert not Tiles(0.5, 2).satisfied(gap) and Tiles(0.67, 2).satisfied(gap) and Tiles(0.5, 2).satisfied(gap & False)


def test_a_library_not_yet_learnt_counts_its_masks() -> None:
    eye = np.tile(np.eye(2), (3, 3))
    assert Library(2, 2, 2, 1).satisfied(eye)
    eye[0, 0] = 0.0
    assert Library(2, 2, 2, 1).satisfied(eye), "a mask inside another one is no second mask"
    eye[0:2, 0:2] = [[0, 1], [1, 0]]
    assert not Library(2, 2, 2, 1).satisfied(eye) and Library(2, 2, 2, 2).satisfied(eye)


def test_names_parse() -> None:
    assert parse("2:4") == NM(2, 4)
    assert parse(" 8:16 ") == NM(8, 16)
    assert parse("block:4x1:0.5") == Blocks(4, 1, 0.5)
    assert parse("4x1:0.5") == parse("block:4x1:0.5") and parse("16x16:0.25") == Blocks(16, 16, 0.25)
    assert parse("unstructured:0.5") == Blocks(1, 1, 0.5)
    assert parse("pattern:4x4:0.5") == Library(4, 4, 8)
    assert parse("pattern:2x4:0.25:6") == Library(2, 4, 2, 6)
    assert parse("tiles:0.5") == Tiles(0.5) and parse("tiles:0.5:192") == Tiles(0.5, 192)


@pytest.mark.parametrize(
    "text",
    ["", "2", "5:4", "0:4", "a:b", "2:4:8", "block:4:0.5", "block:4x0:0.5", "block:4x1:1.5", "pattern:4x4", "tiles:0",
     "pattern:0x4:0.5", "pattern:4x4:0.5:0", "tiles:half", "block:4x1x2:0.5", "4x1", "4x1:2", "4x0:0.5",
     "unstructured", "unstructured:0"],
)  # fmt: skip
def test_what_is_no_pattern_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)
