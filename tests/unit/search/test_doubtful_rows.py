"""Rows made of texts: of a classifier those that it is unsure of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo as exports
from graphs import written

from onnxprune.data import Dataset, Example, variants
from onnxprune.graph.model import load
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.rows import shape_of
from onnxprune.probe.divergence import Divergence, Kind, Measure
from onnxprune.probe.forward import Rows, Weights
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.search.doubtful_rows import doubtful, doubts, drawn
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

WORDS = 20
"""Of which one half speaks for the first class and the other for the second."""
VOTE = 1.0
"""What a word adds to the score of its class."""


def votes(folder: Path, end: str = "Identity") -> Interpreter:
    """Every token has a vote for one of two classes, and the votes are added up."""
    table = np.zeros((WORDS, 2), dtype=np.float32)
    table[2 : WORDS // 2, 0] = table[WORDS // 2 :, 1] = VOTE
    held = f"int64[1] axes = {{1}}, float[{WORDS}, 2] table = {{{', '.join(map(str, table.ravel().tolist()))}}}"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (int64[batch, tokens] input_ids) => (float[batch, 2] scores) <{held}> {{
        each = Gather(table, input_ids)
        sum = ReduceSum <keepdims = 0> (each, axes)
        scores = {end}(sum)
    }}"""
    return Interpreter(load(written(folder, text, {})).graph)


def texts(count: int = 24) -> Dataset:
    """Rows of one opinion each, between a first and a last token that all have."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        low = 2 if i % 2 else WORDS // 2
        body = random.integers(low, low + WORDS // 2 - 2, size=int(random.integers(4, 9)))
        rows.append(Example({"input_ids": np.array([[0, *body, 1]], dtype=np.int64)}))
    return Dataset(tuple(rows), "tokens")


def ids(dataset: Dataset) -> list[list[int]]:
    return [e.feeds["input_ids"][0].tolist() for e in dataset.examples]


def taught(interpreter: Interpreter, measure: Measure, made: int, seed: int = 0) -> Rows:
    """Given rows, and those made of them that teach beside them."""
    given = texts()
    return Rows(interpreter, given + variants(given, made, seed), given=Divergence((measure,)))


def known(rows: Rows) -> np.ndarray:
    found = doubts(rows)
    assert found is not None
    return found


@pytest.mark.parametrize(("end", "kind"), [("Identity", Kind.KL), ("Softmax", Kind.PROBABILITY_KL)])
def test_a_classifier_is_mended_on_made_rows_that_it_is_unsure_of(tmp_path: Path, end: str, kind: Kind) -> None:
    given, rows = texts(), taught(votes(tmp_path, end), Measure("scores", kind, single=True, temperature=4.0), 60)
    found = doubtful(rows, given, 0)
    assert ids(found.dataset)[: len(given)] == ids(given), "given rows teach whatever the model thinks of them"
    assert len(found.dataset) == len(rows.dataset)
    made, plain = (r.dataset.subset(range(len(given), len(r.dataset))) for r in (found, rows))
    assert len({tuple(row) for row in ids(made)}) > 20, "the same rows again and again"
    unsure, sure = (known(replace(rows, dataset=d)).mean() for d in (made, plain))
    assert unsure > 2 * sure, "rows are drawn as if the model were as sure of all"
    assert ids(found.dataset) == ids(doubtful(rows, given, 0).dataset)
    assert ids(found.dataset) != ids(doubtful(rows, given, 1).dataset)


def test_doubt_is_how_far_probabilities_are_from_one_class(tmp_path: Path) -> None:
    measure = Divergence((Measure("scores", Kind.KL, single=True),))
    rows = [[0, 2, 12, 1], [0, 2, 2, 2, 2, 1], [0, 2, 2, 12, 1]]
    dataset = Dataset(tuple(Example({"input_ids": np.array([r])}) for r in rows), "tokens")
    likely = 1 / (1 + np.exp(-VOTE * np.array([0, 4, 1])))
    wanted = 1 - likely**2 - (1 - likely) ** 2
    np.testing.assert_allclose(known(Rows(votes(tmp_path), dataset, given=measure)), wanted, atol=1e-4)


def test_none_are_drawn_where_a_graph_gives_other_answers_than_it_declares(tmp_path: Path) -> None:
    held = f"float[{WORDS}, 2] table = {{{', '.join(['1'] * 2 * WORDS)}}}"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (int64[batch, tokens] input_ids) => (float[batch, 2] scores) <{held}> {{
        scores = Gather(table, input_ids)
    }}"""
    rows = Rows(Interpreter(load(written(tmp_path, text, {}, check=False)).graph), texts())
    rows = replace(rows, given=Divergence((Measure("scores", Kind.KL, single=True),)))
    assert doubts(rows) is None
    assert not len(drawn(rows, texts(), 10, 0))


@pytest.mark.parametrize("measure", [Measure("scores", Kind.COSINE), Measure("scores", Kind.KL, single=False)])
def test_other_models_are_mended_on_the_rows_that_they_are_scored_on(tmp_path: Path, measure: Measure) -> None:
    rows = taught(votes(tmp_path), measure, 30)
    assert doubtful(rows, texts(), 0) is rows


def test_where_no_rows_are_made_none_are_drawn(tmp_path: Path) -> None:
    rows = taught(votes(tmp_path), Measure("scores", Kind.KL, single=True), 0)
    assert doubtful(rows, texts(), 0) is rows


def test_a_plan_is_mended_on_these_rows(zoo: Callable[..., exports.ZooModel], monkeypatch: pytest.MonkeyPatch) -> None:
    built = zoo("bert", "torchscript", "sdpa")
    model = load(built.path)
    feeds = [{k: v[:1] for k, v in built.sample(seed=i).items()} for i in range(40)]
    for row in feeds:  # texts begin and end alike
        row["input_ids"][:, 0], row["input_ids"][:, -1] = 1, 2
    rows = Dataset(tuple(Example(f) for f in feeds), "tokens")
    options = Options(Budget("flops", 0.6), units=("neurons",))
    kl = Divergence((Measure(model.graph.outputs[0].name or "", Kind.KL, single=True),))
    monkeypatch.setattr("onnxprune.probe.forward.choose_for", lambda *_: kl)
    planner = Planner(model, analyze(model), options, rows, shape_of(model, {}, rows))
    taken: list[Rows] = []

    def compensate(
        gates: Gates, fit: Rows, *rest: Any, weights: Weights, **named: Any
    ) -> tuple[Plan, float, list[Any]]:
        taken.append(fit)
        assert all(len(w) == len(fit.batches) for w in weights.values())
        assert tuple(b.feeds["input_ids"].size for b in fit.batches) in {tuple(map(len, w)) for w in weights.values()}
        return rest[2], 0.0, []

    monkeypatch.setattr("onnxprune.search.planner.compensate", compensate)
    planner.finished(Plan(model.digest))
    assert taken == [planner.mending]
    assert ids(planner.mending.dataset) != ids(planner.fit.dataset)
    assert len(planner.mending.dataset) == len(planner.fit.dataset) == 2 * len(planner.given)

    def looks(*args: Any) -> None:
        raise AssertionError("it looks at the rows again")

    assert planner.again(replace(options, method="wanda")).mending is planner.mending
    seen = planner.seen()
    monkeypatch.setattr("onnxprune.search.problem.doubtful", looks)
    monkeypatch.setattr("onnxprune.search.problem.sensitivities", looks)
    other = Planner(model, analyze(model), options, rows, shape_of(model, {}, rows), seen=seen)
    other.finished(Plan(model.digest))
    assert ids(taken[1].dataset) == ids(taken[0].dataset)
    alone = replace(options, compensate=False)
    Planner(model, analyze(model), alone, rows, shape_of(model, {}, rows), seen=replace(seen, mending=None)).seen()
