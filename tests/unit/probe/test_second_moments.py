"""Second moments summed in parts against those of all tokens at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.probe import second_moments
from onnxprune.probe.second_moments import Gram, Pairs

cases = st.tuples(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())


@given(cases, st.sampled_from([1, 5, 4096]))
def test_parts_sum_to_the_whole(case: tuple[int, list[int], bool], chunk: int) -> None:
    seed, sizes, weighted = case
    random = np.random.default_rng(seed)
    x, y = (random.standard_normal((sum(sizes), n)).astype(np.float32) for n in (5, 3))
    w = random.uniform(0.1, 2.0, len(x)).astype(np.float32) if weighted else np.ones(len(x), np.float32)
    gram, pairs = Gram(), Pairs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_moments, "CHUNK", chunk)
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
