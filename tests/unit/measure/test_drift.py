"""Explained variance against its formula, and what the other distances cannot see."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.measure.drift import Drift, DriftTally, Spread
from onnxprune.probe.divergence import choose

RNG = np.random.default_rng(0)


def tallied(dense: np.ndarray, pruned: np.ndarray, name: str = "y", batch: int = 7) -> tuple[DriftTally, Drift]:
    tally = DriftTally(choose({name: dense}), {name: [dense]})
    for start in range(0, len(dense), batch):
        tally.add({name: dense[start : start + batch]}, {name: pruned[start : start + batch]}, None)
    return tally, tally.result()


@pytest.mark.parametrize("shape", [(40, 5), (40, 6, 8), (40, 3, 4, 4), (40, 1)])
def test_explained_variance_is_that_of_every_element_over_rows(shape: tuple[int, ...]) -> None:
    dense = RNG.normal(3, 0.1, shape).astype(np.float32)
    pruned = dense + RNG.normal(0, 0.02, shape).astype(np.float32)
    found = tallied(dense, pruned)[1].explained_variance
    wide = dense.astype(np.float64)
    assert found == pytest.approx(1 - np.square(pruned - wide).mean() / wide.var(0).mean(), abs=1e-6)


def test_rows_of_several_lengths_share_a_mean_and_padding_does_not_count() -> None:
    rows = [RNG.normal(size=(1, n, 3)) + np.array([5, 0, -5]) for n in (2, 3, 3, 4)]
    spread = Spread()
    for row in rows:
        spread.add(row)
    flat = np.concatenate([row[0] for row in rows])
    assert spread.total == pytest.approx(np.square(flat - flat.mean(0)).sum())
    assert spread.relative == pytest.approx(np.sqrt(spread.total / np.square(flat).sum()))

    dense = np.full((4, 4, 3), 1e6)  # what padding holds
    real = np.zeros((4, 4), bool)
    for i, row in enumerate(rows):
        dense[i, : row.shape[1]], real[i, : row.shape[1]] = row[0], True
    tally = DriftTally(choose({"y": dense}), {"y": [dense]})
    pruned = np.where(real[..., None], dense * 0.9, -1e6)
    tally.add({"y": dense}, {"y": pruned}, real)
    expected = 1 - np.square(0.1 * flat).sum() / np.square(flat - flat.mean(0)).sum()
    assert tally.result().explained_variance == pytest.approx(expected, abs=1e-6)


def test_an_offset_of_all_rows_hides_from_cosine_and_agreement_alone() -> None:
    dense = np.array([9.0, 5.0, 1.0]) + 1e-3 * RNG.normal(size=(50, 3))
    tally, drift = tallied(dense, np.broadcast_to(dense.mean(0), dense.shape), "logits")
    assert drift.agreement == 1 and drift.cosine == pytest.approx(1, abs=1e-6)
    assert drift.explained_variance == pytest.approx(0, abs=1e-6)
    assert any("hardly vary" in w for w in tally.doubts(drift))
    assert any("no longer vary" in w for w in tally.broken(drift))


def test_a_model_that_decides_one_class_or_computes_something_else_is_broken() -> None:
    dense, common = RNG.normal(size=(60, 3)), 20 * RNG.normal(size=(60, 1))
    for before, after, said in (
        (dense, dense + np.array([9, 0, 0]), "decides for class 0 on every row"),
        (dense, RNG.normal(size=(60, 3)), "of the dense outputs' variance"),
        (dense + common, RNG.normal(size=(60, 3)) + common, "decisions are other"),
    ):
        tally, drift = tallied(before, after, "logits")
        assert any(said in line for line in tally.broken(drift)), said
    tally, drift = tallied(dense, dense + 0.05 * RNG.normal(size=(60, 3)), "logits")
    assert tally.broken(drift) == tally.doubts(drift) == ()


def test_nothing_left_is_less_than_the_mean_tells_and_decisions_by_luck() -> None:
    dense = RNG.normal(2, 1, (60, 3))
    noise, mean = RNG.normal(2, 1, (60, 3)), np.broadcast_to(dense.mean(0), dense.shape)
    for name in ("values", "logits"):
        for pruned, nothing in ((noise, True), (mean, True), (dense + 0.3 * noise, False), (dense, False)):
            tally, drift = tallied(dense, pruned, name)
            assert tally.nothing_left(drift) == nothing, name
    tally, drift = tallied(dense, dense + 9 * RNG.normal(size=(60, 1)), "logits")  # the same for all classes
    assert drift.explained_variance is not None and drift.explained_variance < 0 and not tally.nothing_left(drift)
    for tells in (0.01, 1.0):  # outputs that hardly vary, and a model of which they vary otherwise
        near = 100 + tells * 100 * dense
        tally, drift = tallied(near, near - tells * 100 * (dense - noise))
        assert tally.nothing_left(drift) == (tells == 1.0)
        tally, drift = tallied(near, np.broadcast_to(near.mean(0), near.shape))
        assert tally.nothing_left(drift)
    tally, drift = tallied(dense[:7], noise[:7], "values")
    assert not tally.nothing_left(drift)  # few rows are luck


def test_outputs_and_rows_that_cannot_tell() -> None:
    same = np.ones((20, 3)) * [1.0, 2.0, 3.0]
    tally, drift = tallied(same, same, "logits")
    assert drift.explained_variance is None and drift.variation == 0
    assert "same for all rows" in tally.doubts(drift)[0] and not tally.broken(drift)
    tally, drift = tallied(same[:1], same[:1], "logits")
    assert drift.explained_variance is None and "one row" in tally.doubts(drift)[0]
    one = np.array([5.0, 0, 0]) + RNG.normal(0, 0.3, (20, 3))
    tally, drift = tallied(one, one, "logits")
    assert "for class 0 on every row" in tally.doubts(drift)[0]
