"""Least squares on what is left: exact where units are copies, no stronger than held-out tokens allow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written

from onnxprune.data import Dataset, Example
from onnxprune.graph.model import load
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.probe.forward import Evaluator, Rows
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.second_moments import Pairs
from onnxprune.refit.compensate import compensate
from onnxprune.refit.solvers import INFINITE, Moments, error, ridge_path

WIDTH, UNITS = 6, 16

FFN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,T,6] x, float[6,16] up, float[16,6] down) => (float[N,T,6] y) {
  h = MatMul(x, up)
  a = Relu(h)
  o = MatMul(a, down)
  y = Add(x, o)
}
"""


@dataclass
class Subject:
    """A residual FFN whose second half of neurons are copies of the first, with half of them cut."""

    gates: Gates
    plan: Plan

    def rows(self, count: int, seed: int, tokens: int = 4) -> Rows:
        random = np.random.default_rng(seed)
        made = (random.standard_normal((1, tokens, WIDTH)).astype(np.float32) for _ in range(count))
        return Rows(self.gates.interpreter, Dataset(tuple(Example({"x": x}) for x in made), "tensors"))

    def divergence(self, plan: Plan, rows: Rows) -> np.ndarray:
        return Evaluator(rows).per_row(self.gates.gated(plan))


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    path = written(tmp_path, FFN, {"up": (WIDTH, UNITS), "down": (UNITS, WIDTH)})
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name == "up":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:, UNITS // 2 :] = array[:, : UNITS // 2]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "up"))
    onnx.save(proto, path)
    model = load(path)
    structure = analyze(model)
    (group,) = (g for g in structure.groups if g.kind == "neurons")
    plan = Plan(model.digest, keep={group.id: tuple(range(UNITS // 2))})
    return Subject(Gates(structure, Interpreter(model.graph)), plan)


def test_copies_that_went_are_made_up_for(subject: Subject) -> None:
    linears = find_linears(subject.gates.interpreter.graph, subject.gates.structure)
    held = subject.rows(40, seed=2)
    before = subject.divergence(subject.plan, held).mean()
    mended, value, steps = compensate(
        subject.gates, subject.rows(200, seed=1), held, Evaluator(held), subject.plan, linears, strengths=(1e-6, 1e-2)
    )
    assert before > 0.05
    assert value < 1e-6 * before
    assert steps[-1].kept == "1e-06"
    assert subject.divergence(mended, subject.rows(40, seed=3)).mean() < 1e-6 * before


def test_few_tokens_are_followed_less(subject: Subject) -> None:
    linears = find_linears(subject.gates.interpreter.graph, subject.gates.structure)
    held = Evaluator(subject.rows(40, seed=2))
    (group,) = subject.plan.keep
    # Neurons that have no copy left: what they wrote is noise to the others.
    plan = replace(subject.plan, keep={group: (0, 1, 2, 3)})
    _, _, many = compensate(subject.gates, subject.rows(200, seed=1), held.rows, held, plan, linears)
    _, value, few = compensate(subject.gates, subject.rows(2, seed=1, tokens=2), held.rows, held, plan, linears)
    strength = {"bias": np.inf, None: np.inf}
    followed = [strength.get(step.kept) or float(step.kept or 0) for step in (many[-1], few[-1])]
    assert followed[0] < followed[1]
    assert all(step.error <= 1 for step in (*few, *many))
    assert value <= held(subject.gates.gated(plan)) * 1.05


def test_a_plan_that_rows_show_to_be_worse_is_refused(subject: Subject) -> None:
    linears = find_linears(subject.gates.interpreter.graph, subject.gates.structure)

    class Contrary(Evaluator):
        calls = 0

        def per_row(self, gated: object) -> np.ndarray:
            self.calls += 1
            return np.linspace(0.9, 1.1, 20) * self.calls

    held = subject.rows(10, seed=2)
    given, value, steps = compensate(
        subject.gates, subject.rows(50, seed=1), held, Contrary(held), subject.plan, linears
    )
    assert given is subject.plan
    assert value == pytest.approx(1.0)
    assert steps == []


def test_pairs_give_the_squared_error_and_ridge_its_limits() -> None:
    import torch

    random = np.random.default_rng(0)
    x, y, w = (torch.from_numpy(random.standard_normal(s).astype(np.float32)) for s in ((50, 5), (50, 3), (50,)))
    pairs = Pairs()
    pairs.add(x[:20], y[:20], w[:20].abs())
    pairs.add(x[20:], y[20:], w[20:].abs())
    sxx, sx, sxy, sy, syy = pairs.sums()
    moments = Moments.from_sums(pairs.count, sx, sy, sxx, sxy, syy)
    weight, intercept = random.standard_normal((5, 3)), random.standard_normal(3)
    residual = y.numpy() - x.numpy() @ weight - intercept
    expected = (w.abs().numpy()[:, None] * residual**2).sum()
    assert error(moments, weight, intercept) == pytest.approx(expected, rel=1e-4)
    live = [0, 1, 2, 4]
    kept, strong, weak = ridge_path(moments, live, weight, (INFINITE, 1e9, 1e-9))
    np.testing.assert_array_equal(kept.weight[live], weight[live])
    np.testing.assert_allclose(strong.weight[live], weight[live], atol=1e-5)
    root = w.abs().sqrt().numpy()[:, None]
    design = np.concatenate([x.numpy()[:, live], np.ones((50, 1))], axis=1)
    solved = np.linalg.lstsq(root * design, root * y.numpy(), rcond=None)[0][:-1]
    np.testing.assert_allclose(weak.weight[live], solved, atol=1e-3)
