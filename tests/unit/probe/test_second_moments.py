"""Second moments summed in parts against those of all tokens at once."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.graph.put_away import Store
from onnxprune.probe import second_moments
from onnxprune.probe.second_moments import ENOUGH, Gram, Pairs, drawn
from onnxprune.refit.solvers.rotation import value_rotation

cases = st.tuples(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())


@given(cases, st.sampled_from([1, 5, 4096]), st.sampled_from([1, 2, 256]))
def test_parts_sum_to_the_whole(case: tuple[int, list[int], bool], chunk: int, strip: int) -> None:
    seed, sizes, weighted = case
    random = np.random.default_rng(seed)
    x, y = (random.standard_normal((sum(sizes), n)).astype(np.float32) for n in (5, 3))
    w = random.uniform(0.1, 2.0, len(x)).astype(np.float32) if weighted else np.ones(len(x), np.float32)
    gram, pairs = Gram(), Pairs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_moments, "CHUNK", chunk)
        patch.setattr(second_moments, "STRIP", strip)
        for at in np.split(np.arange(len(x)), np.cumsum(sizes)[:-1]):
            weight = torch.from_numpy(w[at]) if weighted else None
            with torch.inference_mode():  # as activations come
                a, b = torch.from_numpy(x[at]) * 1, torch.from_numpy(y[at]) * 1
                gram.add(a, weight)
                pairs.add(a, b, weight)
    wx, wy = x * w[:, None], y * w[:, None]
    assert gram.count == pairs.count == pytest.approx(w.sum(), rel=1e-5)
    np.testing.assert_allclose(gram.matrix, wx.T @ x, atol=1e-4)
    np.testing.assert_allclose(gram.mean, wx.sum(0) / w.sum(), atol=1e-5)
    mean = wx.sum(0) / w.sum()
    np.testing.assert_allclose(gram.centred, (wx - w[:, None] * mean).T @ (x - mean), atol=1e-3)
    for got, expected in zip(pairs.sums(), (wx.T @ x, wx.sum(0), wx.T @ y, wy.sum(0), (wy * y).sum(0)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_wide_sums_have_the_precision_of_their_products(monkeypatch: pytest.MonkeyPatch, weighted: bool) -> None:
    """They take half the memory, and are symmetric whenever they are asked for."""
    for name, value in {"SINGLE": 6, "ENOUGH_TO_MULTIPLY": 3, "STRIP": 2}.items():
        monkeypatch.setattr(second_moments, name, value)
    random = np.random.default_rng(0)
    x, w = random.standard_normal((40, 7)).astype(np.float32), random.uniform(0.5, 2, 40).astype(np.float32)
    gram, pairs, narrow = Gram(), Pairs(), Gram()
    for at in np.split(np.arange(40), [1, 4, 9, 11, 30]):
        weight = torch.from_numpy(w[at]) if weighted else None
        with torch.inference_mode():
            gram.add(torch.from_numpy(x[at]) * 1, weight)
            pairs.add(torch.from_numpy(x[at]) * 1, torch.from_numpy(x[at, :2]) * 1, weight)
            narrow.add(torch.from_numpy(x[at, :5]) * 1, weight)
        if len(at) > 7:
            np.testing.assert_allclose(gram.matrix, gram.matrix.T, rtol=1e-5)
    wx = x * w[:, None] if weighted else x
    assert gram.matrix.dtype == np.float32 and gram.nbytes == 7 * 7 * 4 + 7 * 8
    assert {s.dtype for s in (*pairs.sums(), *narrow.sums(), gram.mean)} == {np.dtype(np.float64)}
    np.testing.assert_allclose(gram.matrix, wx.T @ x, atol=1e-4)
    np.testing.assert_allclose(gram.mean * gram.count, wx.sum(0), atol=1e-4)
    np.testing.assert_allclose(pairs.sums()[0], wx.T @ x, atol=1e-4)
    gram.put_away(Store(2**20))
    assert gram.matrix.dtype == np.float32
    turned = gram.turned(np.linalg.qr(random.normal(size=(7, 7)))[0])
    assert turned.matrix.dtype == np.float32 and turned.matrix.trace() == pytest.approx(gram.matrix.trace(), rel=1e-5)


def test_sums_that_memory_does_not_hold_are_read_back_from_files() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32))
    store = Store(6 * 6 * 8 + 6 * 8)
    grams = [Gram() for _ in range(3)]
    for gram in grams:
        gram.add(x)
        gram.put_away(store)
    assert store.left == 0 and store._folder is not None
    folder = store._folder.path
    assert len(list(folder.iterdir())) == 4
    for gram in grams:
        np.testing.assert_allclose(gram.matrix, x.double().T @ x.double(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(gram.mean, x.double().mean(0), atol=1e-6)
        assert gram.count == 20
    del gram, grams, store
    gc.collect()
    assert not folder.exists()


def test_fewer_tokens_than_they_are_wide_are_kept_as_they_are() -> None:
    random = np.random.default_rng(0)
    x, y = (torch.from_numpy(random.standard_normal((12, n)).astype(np.float32)) for n in (8, 3))
    weight = torch.linspace(0.5, 2.0, 12)
    gram, pairs = Gram(), Pairs()
    for at in (slice(0, 3), slice(3, 8)):
        gram.add(x[at], weight[at])
        pairs.add(x[at], y[at], weight[at])
    few, root = gram.tokens, weight[:8].sqrt()[:, None].numpy()
    assert few is not None
    np.testing.assert_allclose(few, x[:8].numpy() * root, rtol=1e-6)
    told = pairs.few()
    assert told is not None and gram.count == pytest.approx(float(weight[:8].sum()))
    np.testing.assert_array_equal(told[1], y[:8])
    for _ in range(2):  # asked again it is the same, and still these tokens
        np.testing.assert_allclose(gram.matrix, few.T @ few, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gram.mean, weight[:8] @ x[:8] / weight[:8].sum(), rtol=1e-5, atol=1e-6)
    gram.put_away(Store(0))
    assert gram.tokens is not None
    gram.add(x[8:], weight[8:])
    pairs.add(x[8:], y[8:], weight[8:])
    assert gram.tokens is None and pairs.few() is None
    np.testing.assert_allclose(gram.matrix, (x * weight[:, None]).T @ x, rtol=1e-5, atol=1e-5)
    assert gram.count == pytest.approx(float(weight.sum()))


def test_positions_of_pictures_are_drawn_where_there_are_more_than_enough() -> None:
    assert drawn(ENOUGH, 2, 2) is None
    some = drawn(ENOUGH, 1, 4)
    assert some is not None
    assert len(some) == ENOUGH // 4 and len(np.unique(some)) == len(some)
    np.testing.assert_array_equal(some, drawn(ENOUGH, 1, 4))  # the same for inputs and targets
    assert 0.45 < some.mean() / ENOUGH < 0.55


@pytest.mark.parametrize("seed", range(6))
def test_what_is_turned_into_nothing_is_nothing(seed: int) -> None:
    """Heads of low rank have directions without anything in them, whose unit is as large as rounding lets it be."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(200, 5)) @ random.normal(size=(5, 8))
    gram = Gram()
    gram.add(torch.from_numpy(x))
    rotation = value_rotation(gram.centred / gram.count, random.normal(size=(8, 16)))
    found = gram.turned(rotation.first)
    size = np.diagonal(found.matrix)
    assert (size == 0).tolist() == [False] * 5 + [True] * 3
    np.testing.assert_allclose(found.matrix[:5, :5], (exact := rotation.first[:5] @ x.T) @ exact.T, rtol=0, atol=0.5)
    assert np.linalg.eigvalsh(found.matrix).min() > -1e-3 * size.max()
    assert np.linalg.eigvalsh(found.centred).min() > -1e-3 * size.max()


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_left_about_a_large_mean_is_no_rounding(weighted: bool) -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((1000, 4)).astype(np.float32), 30 + 1e-3 * random.standard_normal((1000, 3))
    w = random.uniform(0.1, 2.0, len(x)).astype(np.float32)
    y = y.astype(np.float32)
    pairs = Pairs()
    for i in range(0, len(x), 90):
        some = slice(i, i + 90)
        pairs.add(torch.from_numpy(x[some]), torch.from_numpy(y[some]), torch.from_numpy(w[some]) if weighted else None)
    used = w.astype(np.float64) if weighted else np.ones(len(x))
    mean = used @ y / used.sum()
    spread = used @ (y.astype(np.float64) - mean) ** 2
    _, sx, _, sy, squares = pairs.sums()
    np.testing.assert_allclose(squares - sy**2 / pairs.count, spread, rtol=1e-4)
    np.testing.assert_allclose(sx, used @ x, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(sy, used @ y, rtol=1e-7)
