"""Dimensions of queries and keys: the order in which they go, and that dead ones go first and unnoticed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from graphs import ATTENDED, written
from plans import Subject, distance, in_runtime

from onnxprune import data
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import even, find_sites
from onnxprune.probe.forward import Rows, record
from onnxprune.score.head_moments import meeting_of
from onnxprune.score.unweighted import Side, _greedy, _ranking, unweighted_rankings

RNG = np.random.default_rng(5)
TEXT = (
    """
<ir_version: 9, opset_import: ["" : 17]>
attention (float[N, T, 16] x, float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[16, 16] wo)
    => (float[N, T, 16] y) {
    split = Constant<value_ints = [0, 0, 2, 8]>()
    flat = Constant<value_ints = [0, 0, 16]>()
    root = Constant<value_float = 0.35355338>()
    a = MatMul(x, wq)
    b = Reshape(a, split)
    q = Transpose<perm = [0, 2, 1, 3]>(b)
    d = MatMul(x, wk)
    e = Reshape(d, split)
    k = Transpose<perm = [0, 2, 3, 1]>(e)
    f = MatMul(x, wv)
"""
    + ATTENDED
    + "}"
)
DEAD = (1, 3, 6, 8 + 0, 8 + 3, 8 + 5)
"""Three dimensions of each head: of some the queries are zero, of others the keys."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = written(tmp_path, TEXT, dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)))
    proto = onnx.load(file)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        for unit in DEAD:
            if tensor.name == ("wq" if unit % 2 else "wk"):
                array[:, unit] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, file)
    return file


def test_dead_dimensions_are_the_first_to_go_of_every_head(path: Path) -> None:
    """In the basis that they are in, as where it must stay."""
    examples = [{"x": RNG.standard_normal((1, 5, 16), dtype=np.float32)} for _ in range(24)]
    subject = Subject.load(path)
    rows = Rows(subject.interpreter, data.read(examples, subject.model.inputs, outputs=subject.model.outputs))
    group = next(g for g in subject.structure.groups if g.readers[0].weight is None)
    assert (group.kind, group.shape) == ("head_dims", (2, 8))
    sites = [s for s in find_sites(subject.model.graph, subject.structure, ("head_dims",)) if s.group is group]
    ranking = unweighted_rankings(rows, sites, subject.structure)[group.id]
    kept = even(sites[0], ranking).keep(10)
    assert set(range(16)) - set(kept) == set(DEAD)
    plan = Plan(subject.structure.digest, {group.id: kept})
    feeds = {"x": RNG.standard_normal((2, 7, 16), dtype=np.float32)}
    assert distance(subject.written(plan, feeds), in_runtime(path, feeds)) < 1e-5


def test_what_adds_least_to_the_change_of_the_scores_goes_next() -> None:
    factors = RNG.standard_normal((5, 9))
    form = (factors @ factors.T) * (factors @ factors.T)
    order, added = _greedy(form)
    assert sorted(order) == list(range(5))
    for step, unit in enumerate(order):
        gone = order[:step]
        costs = {
            u: form[np.ix_([*gone, u], [*gone, u])].sum() - form[np.ix_(gone, gone)].sum()
            for u in range(5)
            if u not in gone
        }
        assert unit == min(costs, key=costs.__getitem__)
        assert added[step] == pytest.approx(costs[unit])


def test_what_goes_later_is_worth_no_less_even_if_it_makes_up_for_what_went() -> None:
    """Two dimensions whose products cancel: without the first, the second adds less than nothing."""
    reader = SimpleNamespace(node="n")
    site = SimpleNamespace(id="s", rows=1, group=SimpleNamespace(shape=(2,), readers=(reader,)))
    query = SimpleNamespace(moments=np.array([[[1.0, 1.0], [1.0, 1.0]]]), count=1, member=np.eye(2))
    key = SimpleNamespace(moments=np.array([[[1.0, -0.9], [-0.9, 1.0]]]), count=1, member=np.eye(2))
    assert _ranking(site, {("n", 0): query, ("n", 1): key}).scores == (1.0, 1.0)  # type: ignore[arg-type, dict-item]


def test_what_all_keys_have_in_common_is_left_out_and_of_queries_it_is_not(path: Path) -> None:
    """A softmax ignores what is added to all of a query's scores."""
    examples = [{"x": 2 + RNG.standard_normal((1, 5, 16), dtype=np.float32)} for _ in range(24)]
    subject = Subject.load(path)
    rows = Rows(subject.interpreter, data.read(examples, subject.model.inputs, outputs=subject.model.outputs))
    group = next(g for g in subject.structure.groups if g.readers[0].weight is None)
    (site,) = [s for s in find_sites(subject.model.graph, subject.structure, ("head_dims",)) if s.group is group]
    meeting = meeting_of(site, rows, subject.structure)
    record(rows, meeting.used)
    arrays = {name: v.const_value.numpy() for name, v in subject.model.graph.initializers.items() if v.const_value}
    x = np.concatenate([e["x"][0] for e in examples]).astype(np.float64)
    queries, keys = ((x @ arrays[name]).reshape(-1, 2, 8) for name in ("wq", "wk"))
    centred = keys - keys.mean(0)
    wanted = [np.einsum("thi,thj->hij", a, a) / len(x) for a in (queries, centred)]
    for found, moment in zip(meeting.moments(arrays.__getitem__), wanted, strict=True):
        np.testing.assert_allclose(found, moment, rtol=1e-3, atol=1e-3)


def test_padding_is_no_token(path: Path) -> None:
    subject = Subject.load(path)
    examples = [{"x": RNG.standard_normal((1, 5, 16), dtype=np.float32)} for _ in range(2)]
    rows = Rows(subject.interpreter, data.read(examples, subject.model.inputs, outputs=subject.model.outputs))
    group = next(g for g in subject.structure.groups if g.readers[0].weight is None)
    (site,) = [s for s in find_sites(subject.model.graph, subject.structure, ("head_dims",)) if s.group is group]
    real = np.array([[True, True, True, False, False], [True, True, True, True, True]])
    x = RNG.standard_normal((2, 2, 5, 8), dtype=np.float32)
    side = Side(site, group.readers[0], 0, rows, subject.structure)
    side.add(torch.from_numpy(x), torch.from_numpy(real))
    for head, found in enumerate(side.second_moments()):
        tokens = x[:, head][real].astype(np.float64)
        np.testing.assert_allclose(found, tokens.T @ tokens / len(tokens), rtol=1e-4, atol=1e-5)
    assert side.tokens.tolist() == [8, 8]
