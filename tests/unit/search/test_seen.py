"""What one planner has seen of the rows serves another, elsewhere, which plans as if it had looked itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import random_graphs

from onnxprune.data import read
from onnxprune.graph.model import load
from onnxprune.graph.plan import Budget
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.rows import shape_of
from onnxprune.probe.forward import grams
from onnxprune.search import problem
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner


@pytest.mark.parametrize("count", [16, 200], ids=["tokens", "sums"])
def test_a_planner_that_is_told_plans_the_same(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(random_graphs.saved(random_graphs.build("transformer", 3), tmp_path / "dense.onnx"))
    learn = read([{"x": row[None]} for row in random_graphs.sample("transformer", count)], model.inputs)
    options = Options(Budget("flops", 0.6), units=("heads", "head_ranks", "neurons"), round_to=1)

    def planner(**told: Any) -> Planner:
        return Planner(model, analyze(model), options, learn, shape_of(model, {}, learn), **told)

    first = planner()
    joblib.dump(first.seen(), tmp_path / "seen.pkl")
    assert first.rotated.weights
    assert first.moments

    def looks(*args: Any) -> None:
        raise AssertionError("it looks at the rows again")

    monkeypatch.setattr(problem, "rotated", looks)
    monkeypatch.setattr(problem, "sensitivities", looks)
    second = planner(seen=joblib.load(tmp_path / "seen.pkl", mmap_mode="r"))
    assert second.moments.keys() == first.moments.keys()
    limit = 0.6 * first.costs.total("flops")
    one, other = first.plan(limit), second.plan(limit)
    assert (one.keep, one.drop) == (other.keep, other.drop)
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(weight, other.weights[name])


@pytest.mark.parametrize("count", [16, 200], ids=["tokens", "sums"])
def test_moments_are_those_of_the_heads_as_they_are_rotated(count: int, tmp_path: Path) -> None:
    """Taken before the bases were known, and turned into them."""
    model = load(random_graphs.saved(random_graphs.build("transformer", 3), tmp_path / "dense.onnx"))
    learn = read([{"x": row[None]} for row in random_graphs.sample("transformer", count)], model.inputs)
    options = Options(Budget("flops", 0.6), units=("heads", "head_ranks", "neurons"), round_to=1)
    made = Planner(model, analyze(model), options, learn, shape_of(model, {}, learn))
    assert made.rotated.weights
    matrices = [m for s in made.sites for m in s.matrices]
    anew = grams(made.fit, matrices, weights=made.token_weights)
    assert anew.keys() <= made.moments.keys()
    for usage, gram in anew.items():
        scale = np.abs(gram.matrix).max()
        np.testing.assert_allclose(made.moments[usage].matrix, gram.matrix, atol=1e-4 * scale)
        np.testing.assert_allclose(made.moments[usage].mean, gram.mean, atol=1e-3 * np.abs(gram.mean).max())


def test_refits_that_one_budget_tried_are_not_kept_for_the_next(tmp_path: Path) -> None:
    """Each is as large as a layer, and another budget has other levels; what the plan takes of them is its own."""
    model = load(random_graphs.saved(random_graphs.build("transformer", 3), tmp_path / "dense.onnx"))
    learn = read([{"x": row[None]} for row in random_graphs.sample("transformer", 40)], model.inputs)
    options = Options(Budget("flops", 0.6), units=("heads", "neurons"), round_to=1)
    made = Planner(model, analyze(model), options, learn, shape_of(model, {}, learn))
    dense = made.costs.total("flops")
    first = made.plan(0.7 * dense)
    assert made.start.rows and first.weights
    assert not made.start._fitted
    again = made.plan(0.7 * dense)
    assert again.keep == first.keep
    assert all(np.array_equal(array, again.weights[name]) for name, array in first.weights.items())
