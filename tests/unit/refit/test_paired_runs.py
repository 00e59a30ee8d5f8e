"""Rows through both models at once: what a product is fitted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import written
from plans import Subject

from onnxprune.data import Dataset, Example
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.chosen import chosen_values
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.probe.forward import Rows, forward
from onnxprune.refit.compensate import compensate
from onnxprune.refit.paired_runs import SideBySide

WIDTH, UNITS = 6, 12
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,T,6] x, float[6,12] up, float[12,6] down, float[6] bias, float[6,12] gate, float[6,12] rise,
   float[12,6] fall) => (float[N,T,6] y) {
  h = MatMul(x, up)
  a = Relu(h)
  o = MatMul(a, down)
  b = Add(o, bias)
  m = Add(x, b)
  g = MatMul(m, gate)
  r = MatMul(m, rise)
  s = Sigmoid(g)
  t = Mul(s, r)
  p = MatMul(t, fall)
  y = Add(m, p)
}
"""
SHAPES = {"up": (6, 12), "down": (12, 6), "bias": (6,), "gate": (6, 12), "rise": (6, 12), "fall": (12, 6)}


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject.load(written(tmp_path, TEXT, SHAPES))


def rows_of(subject: Subject, count: int = 40) -> Rows:
    random = np.random.default_rng(1)
    made = (random.standard_normal((1, 4, WIDTH)).astype(np.float32) for _ in range(count))
    return Rows(subject.interpreter, Dataset(tuple(Example({"x": x}) for x in made), "tensors"))


def dropped(subject: Subject, rows: Rows) -> Plan:
    """The first feed-forward layer left out."""
    branch = next(b for b in subject.structure.branches if b.value in ("o", "b"))
    return subject.complete(Plan(subject.structure.digest, drop=(branch.id,)), rows.batches[0].feeds)


def values(subject: Subject, rows: Rows, *names: str, plan: Plan | None = None) -> dict[str, Any]:
    """[tokens, n] of some values."""
    state = subject.gates.gated(plan or Plan(subject.structure.digest))
    found = [forward(rows.interpreter, b.feeds, names, state) for b in rows.batches]
    return {n: torch.cat([f[n].reshape(-1, f[n].shape[-1]) for f in found]).double().numpy() for n in names}


def test_what_closes_a_branch_makes_up_for_the_drift_of_the_stream(subject: Subject) -> None:
    rows = rows_of(subject)
    plan = dropped(subject, rows)
    linears = find_linears(subject.model.graph, subject.structure)
    closing = next(x for x in linears if x.weight == "fall")
    assert closing.branch is not None
    side = SideBySide(rows, ["y"])
    found = side.moments(closing, subject.gates.gated(plan)).moments
    dense, left = values(subject, rows, "m", "p"), values(subject, rows, "m", "t", plan=plan)
    wanted = dense["p"] + dense["m"] - left["m"]
    np.testing.assert_allclose(found.y_mean, wanted.mean(0), atol=1e-4)
    np.testing.assert_allclose(found.syy, np.square(wanted - wanted.mean(0)).sum(0), rtol=1e-3)
    np.testing.assert_allclose(found.x_mean, left["t"].mean(0), atol=1e-4)


def test_the_teacher_does_not_wait_in_front_of_what_it_has_given(subject: Subject) -> None:
    """What it read there, the widest value of a layer over all tokens, is held of the student alone."""
    rows = rows_of(subject)
    linears = find_linears(subject.model.graph, subject.structure)
    side, state = SideBySide(rows, ["y"]), subject.gates.gated(Plan(subject.structure.digest))
    held = {}
    for linear in linears:
        side.moments(linear, state)
        held[linear.weight] = [set(walk.values[0]) for walk in (side.teacher, side.student)]
    teacher, student = held["down"]
    assert "a" not in teacher and {"x", "o"} <= teacher
    assert "a" in student
    assert held["fall"][0] == {"m", "p"}


def test_what_is_fitted_together(subject: Subject) -> None:
    """Products of the same value, but none that closes a branch: it also makes up for what it does not read."""
    linears = {x.weight: x for x in find_linears(subject.model.graph, subject.structure)}
    side = SideBySide(rows_of(subject, 8), ["y"])
    gate, rise, closing = linears["gate"], linears["rise"], linears["fall"]
    beside = replace(gate, branch=closing.branch)
    assert side.alike(gate, rise)
    assert not side.alike(gate, linears["up"])
    assert not side.alike(gate, beside)
    assert not side.alike(beside, gate)


def test_what_a_dropped_branch_leaves_is_all_that_it_gave_on_average(subject: Subject) -> None:
    """Its bias, too, which comes after the product that is asked."""
    rows = rows_of(subject)
    plan = dropped(subject, rows)
    (name,) = plan.drop

    class Fair:
        """Rows that find nothing worse."""

        wanted = ("y",)

        def per_row(self, gated: Any) -> np.ndarray:
            return np.ones(8)

    linears = find_linears(subject.model.graph, subject.structure)
    mended, _, _ = compensate(subject.gates, rows, rows, Fair(), plan, linears)  # type: ignore[arg-type]
    average = values(subject, rows, "b")["b"].mean(0)
    np.testing.assert_allclose(np.asarray(mended.rests[name]).reshape(-1), average, atol=1e-4)


def test_products_whose_tokens_weigh_differently_are_fitted_apart(subject: Subject) -> None:
    rows = rows_of(subject, 4)
    gate, rise = (x for x in find_linears(subject.model.graph, subject.structure) if x.weight in ("gate", "rise"))
    up = next(x for x in find_linears(subject.model.graph, subject.structure) if x.weight == "up")
    assert SideBySide(rows, ["y"]).alike(gate, rise)
    assert not SideBySide(rows, ["y"]).alike(up, gate)
    weights = {rise.node: [torch.ones(16) for _ in rows.batches]}
    assert not SideBySide(rows, ["y"], weights).alike(gate, rise)


ROUTED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,T,6] x, float[6,12] up, float[12,6] down, float[6,1] router, float[6,8] first, float[8,6] second,
   float[6,3] out) => (float[N,T,3] y) {
  none = Constant<value_float = 0.0>()
  all = Constant<value_ints = [-1]>()
  tokens = Constant<value_ints = [-1, 6]>()
  zero = Constant<value_ints = [0]>()
  h = MatMul(x, up)
  a = Relu(h)
  o = MatMul(a, down)
  m = Add(x, o)
  s = MatMul(m, router)
  score = Reshape(s, all)
  taken = Greater(score, none)
  found = NonZero(taken)
  at = Squeeze(found, zero)
  flat = Reshape(m, tokens)
  some = Gather(flat, at)
  e = MatMul(some, first)
  f = Relu(e)
  g = MatMul(f, second)
  place = Unsqueeze(at, all)
  put = ScatterND(flat, place, g)
  size = Shape(m)
  back = Reshape(put, size)
  y = MatMul(back, out)
}
"""


def test_experts_are_fitted_on_the_tokens_that_the_teacher_gave_them(tmp_path: Path) -> None:
    """The student routes others to them: as many more or less, and none beside its own counterpart."""
    shapes = {"up": (6, 12), "down": (12, 6), "router": (6, 1), "first": (6, 8), "second": (8, 6), "out": (6, 3)}
    subject = Subject.load(written(tmp_path, ROUTED, shapes))
    assert {"some", "e", "f", "g"} <= chosen_values(subject.model.graph)
    assert chosen_values(subject.model.graph).isdisjoint({"m", "score", "at", "put", "size", "back", "y"})
    rows = rows_of(subject)
    (site,) = (g.id for g in subject.structure.groups if g.size == UNITS)
    plan = subject.complete(Plan(subject.structure.digest, {site: (0, 1)}), rows.batches[0].feeds)
    second = next(x for x in find_linears(subject.model.graph, subject.structure) if x.weight == "second")
    found = SideBySide(rows, ["y"]).moments(second, subject.gates.gated(plan)).moments
    dense, left = values(subject, rows, "f", "g"), values(subject, rows, "f", "g", plan=plan)
    assert len(dense["f"]) != len(left["f"])
    np.testing.assert_allclose(found.x_mean, dense["f"].mean(0), atol=1e-4)
    np.testing.assert_allclose(found.y_mean, dense["g"].mean(0), atol=1e-4)
