"""Rows of several lengths in one batch, and the graphs that do not allow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import written
from plans import Subject
from zoo import ZooModel

from onnxprune import data
from onnxprune.data import Dataset, Example
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe.filling import filling
from onnxprune.probe.forward import Evaluator, Rows, grams


def _rows(lengths: list[int]) -> Dataset:
    feeds = [{"ids": np.full((1, n), n), "mask": np.ones((1, n), np.int64)} for n in lengths]
    return Dataset(tuple(Example(f) for f in feeds), "tokens")


def test_rows_of_nearly_one_length_go_together_and_are_told_from_filling() -> None:
    rows = _rows([9, 3, 8, 10, 40, 3, 39])
    fill = rows.fillable
    assert fill == {"ids": 0, "mask": 0}
    first, second, third = rows.filled_batches(fill)
    assert [b.index.tolist() for b in (first, second, third)] == [[1, 5], [2, 0, 3], [6, 4]]
    assert first.real is None and first.feeds["ids"].shape == (2, 3)
    assert second.real is not None and second.real.sum(1).tolist() == [8, 9, 10]
    np.testing.assert_array_equal(second.feeds["mask"], second.real)
    assert second.feeds["ids"][0].tolist() == [8] * 8 + [0, 0] and second.feeds["ids"].dtype == np.int64


def test_large_batches_are_hardly_filled_and_limits_hold() -> None:
    rows = _rows([50] * 8 + [60] * 8)
    fill = rows.fillable
    assert fill is not None
    assert [len(b) for b in rows.filled_batches(fill)] == [8, 8]
    assert [len(b) for b in rows.filled_batches(fill, max_rows=3)] == [3, 3, 3, 3, 3, 1]
    assert all(b.feeds["ids"].size <= 130 for b in rows.filled_batches(fill, max_tokens=130))
    assert sorted(i for b in rows.filled_batches(fill, max_tokens=130) for i in b.index.tolist()) == list(range(16))


def test_what_has_no_mask_of_ones_is_not_filled() -> None:
    rows = _rows([3, 4])
    first = rows.examples[0]
    for other in (
        replace(first, feeds={**first.feeds, "mask": np.array([[1, 1, 0]])}),
        replace(first, feeds={"ids": first.feeds["ids"]}),
        replace(first, feeds={**first.feeds, "x": np.zeros((1, 3), np.float32)}),
        replace(first, feeds={**first.feeds, "kind": np.zeros((1, 1), np.int64)}),
        replace(first, real=np.ones((1, 3), bool)),
    ):
        assert replace(rows, examples=(other, rows.examples[1])).fillable is None
    for whole in ({"max_batch": 1}, {"shared": frozenset({"ids"})}, {"inside": {"ids": 1}}, {"together": 2}):
        assert replace(rows, **whole).fillable is None


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_filled_rows_give_what_they_give_alone(zoo: Callable[..., ZooModel], family: str) -> None:
    model = zoo(family, "torchscript", "eager")
    subject = Subject.load(model.path)
    told = data.read(
        [model.sample(1, tokens=4 + i % 3, seed=i) for i in range(9)],
        subject.model.inputs, outputs=subject.model.outputs,
    )  # fmt: skip
    plain = Rows(subject.interpreter, told)
    fill = filling(subject.interpreter, told, plain.divergence)
    assert fill is not None
    filled = Rows(subject.interpreter, told, given=plain.divergence, fill=fill)
    assert len(plain.batches) == 3 and len(filled.batches) == 1
    sites = find_sites(subject.model.graph, subject.structure)
    state = subject.gates.gated(Plan(subject.model.digest, keep={sites[-1].id: (0,)}))
    order = [int(i) for b in plain.batches for i in b.index]
    one, other = Evaluator(plain).per_row(state)[np.argsort(order)], Evaluator(filled).per_row(state)
    np.testing.assert_allclose(other[np.argsort(filled.batches[0].index)], one, rtol=1e-3, atol=1e-7)
    assert one.max() > 1e-5
    matrices = [m for s in sites for m in s.matrices]
    for usage, gram in grams(filled, matrices).items():
        np.testing.assert_allclose(gram.matrix, grams(plain, matrices)[usage].matrix, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("masked", [True, False])
def test_a_graph_that_does_not_keep_to_its_mask_is_not_filled(tmp_path: Path, masked: bool) -> None:
    """The mean over a row's tokens: of those that the mask tells, or of all."""
    pooled = "r = Mul(e, w)" if masked else "r = Identity(e)"
    text = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    net (int64[N, T] input_ids, int64[N, T] attention_mask) => (float[N, 6] y) {{
        two = Constant <value_ints = [2]> ()
        one = Constant <value_ints = [1]> ()
        e = Gather(table, input_ids)
        m = Cast <to = 1> (attention_mask)
        w = Unsqueeze(m, two)
        {pooled}
        s = ReduceSum <keepdims = 0> (r, one)
        n = ReduceSum <keepdims = 1> (m, one)
        y = Div(s, n)
    }}
    """
    subject = Subject.load(written(tmp_path, text, {"table": (9, 6)}))
    feeds = [
        {"input_ids": np.arange(n)[None] % 9, "attention_mask": np.ones((1, n), np.int64)} for n in (3, 4, 6, 5, 3, 7)
    ]
    rows = data.read(feeds, subject.model.inputs, outputs=subject.model.outputs)
    found = filling(subject.interpreter, rows, Rows(subject.interpreter, rows).divergence)
    assert (found is not None) is masked


@pytest.mark.parametrize("tokens_first", [True, False])
def test_outputs_are_filled_where_what_is_behind_the_last_token_is_told(tmp_path: Path, tokens_first: bool) -> None:
    """Whose tokens are on another axis than the mask's are all compared, those that fill up, too."""
    text = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    net (int64[N, T] input_ids, int64[N, T] attention_mask) => (float[N, A, B] y) {{
        two = Constant <value_ints = [2]> ()
        e = Gather(table, input_ids)
        m = Cast <to = 1> (attention_mask)
        w = Unsqueeze(m, two)
        r = Mul(e, w)
        y = {"Identity (r)" if tokens_first else "Transpose <perm = [0, 2, 1]> (r)"}
    }}
    """
    subject = Subject.load(written(tmp_path, text, {"table": (9, 6)}))
    feeds = [{"input_ids": np.arange(n)[None] % 9, "attention_mask": np.ones((1, n), np.int64)} for n in (4, 7, 5)]
    rows = data.read(feeds, subject.model.inputs, outputs=subject.model.outputs)
    found = filling(subject.interpreter, rows, Rows(subject.interpreter, rows).divergence)
    assert (found is not None) is tokens_first
