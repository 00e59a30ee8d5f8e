"""Gated space: gates act where units are read, weights and intercepts where they are said to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import written
from plans import Subject, choose, distance
from zoo import ZooModel

from onnxprune.errors import UnsupportedError
from onnxprune.graph.model import load
from onnxprune.graph.nested import reads
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze

Build = Callable[..., ZooModel]


@pytest.fixture
def bert(zoo: Build) -> tuple[Subject, dict[str, np.ndarray]]:
    model = zoo("bert", "torchscript", "sdpa")
    return Subject.load(model.path), model.feeds


def test_no_plan_is_no_gate(bert: tuple[Subject, dict[str, np.ndarray]]) -> None:
    subject, feeds = bert
    gated = subject.gates.gated(Plan(subject.structure.digest))
    assert not gated.weights and not gated.edit
    whole = {g.id: tuple(range(g.size)) for g in subject.structure.groups}
    assert distance(subject.gated(Plan(subject.structure.digest, whole), feeds), subject.dense(feeds)) < 1e-6


def test_gating_does_not_touch_the_dense_weights(bert: tuple[Subject, dict[str, np.ndarray]]) -> None:
    subject, feeds = bert
    before = subject.dense(feeds)
    for group in subject.structure.groups:
        plan = Plan(subject.structure.digest, {group.id: choose(group.shape, 1, np.random.default_rng(0))})
        assert distance(subject.gated(plan, feeds), before) > 0
    assert distance(subject.dense(feeds), before) == 0


def test_what_gated_units_hold_does_not_matter(bert: tuple[Subject, dict[str, np.ndarray]]) -> None:
    """Disturbing what writes a removed unit changes nothing; disturbing one that stays does."""
    subject, feeds = bert
    group = next(g for g in subject.structure.groups if g.kind == "neurons" and g.size == 48)
    nodes = {n.name: n for n in subject.model.graph}
    source = nodes[group.readers[0].node].inputs[0]
    assert source is not None and source.name is not None
    kept = tuple(range(0, 48, 2))
    gated = subject.gates.gated(Plan(subject.structure.digest, {group.id: kept}))
    inner = subject.interpreter.run(feeds, outputs=[source.name])[source.name]
    outcomes = []
    for disturbed in (None, 1, 0):
        value = inner.clone()
        if disturbed is not None:
            value[..., disturbed::2] += 10
        found = subject.interpreter.run({**feeds, source.name: value}, weights=gated.weights, edit=gated.edit)
        outcomes.append({name: tensor.numpy() for name, tensor in found.items()})
    assert distance(outcomes[1], outcomes[0]) < 1e-6
    assert distance(outcomes[2], outcomes[0]) > 1e-3


def test_intercepts_reach_every_reader_and_outputs(bert: tuple[Subject, dict[str, np.ndarray]]) -> None:
    subject, feeds = bert
    shift = np.array([0.5, -2.0], np.float32)
    found = subject.gated(Plan(subject.structure.digest, intercepts={"logits": shift}), feeds)
    np.testing.assert_allclose(found["logits"], subject.dense(feeds)["logits"] + shift, rtol=1e-5)
    embedded = next(v.name or "" for n in subject.model.graph for v in n.outputs if n.op_type == "LayerNormalization")
    readers = sum(v is not None and v.name == embedded for n in subject.model.graph for v in reads(n))
    assert readers > 3  # query, key, value and the stream
    plan = Plan(subject.structure.digest, intercepts={embedded: np.linspace(-1, 1, 32, dtype=np.float32)})
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    assert distance(subject.gated(plan, feeds), subject.dense(feeds)) > 1e-2


def test_a_branch_that_leaves_no_constant_is_refused(zoo: Build) -> None:
    """Where something of the input passes a gated branch, it cannot be replaced by numbers."""
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    branch = subject.structure.branch("ffn.0")
    varying = torch.randn(2, 7, 32)
    with pytest.raises(UnsupportedError, match=r"ffn\.0 .*depends on the input"):
        subject.gates._rest(branch, varying)


def test_gradients_pass_through_gates(bert: tuple[Subject, dict[str, np.ndarray]]) -> None:
    """The gate of a unit, as a number: its derivative is a finite difference."""
    subject, feeds = bert
    group = next(g for g in subject.structure.groups if g.kind == "heads")
    reader = group.readers[0]
    gates = torch.ones(4, dtype=torch.float64, requires_grad=True)
    double = {name: subject.interpreter.weight(name).double() for name in _floats(subject)}

    def output(values: torch.Tensor) -> torch.Tensor:
        spread = values.repeat_interleave(8)
        edit = {(reader.node, reader.input): lambda x: x * spread}
        found: torch.Tensor = subject.interpreter.run(feeds, weights=double, edit=edit)["logits"]
        return found.double().square().sum()

    output(gates).backward()
    assert gates.grad is not None
    for unit in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[unit] = 1e-3
        with torch.no_grad():
            slope = (output(torch.ones(4).double() + step) - output(torch.ones(4).double() - step)) / 2e-3
        assert float(gates.grad[unit]) == pytest.approx(float(slope), rel=1e-3, abs=1e-5)


def _floats(subject: Subject) -> list[str]:
    values = subject.model.graph.initializers.values()
    return [v.name or "" for v in values if v.dtype is not None and v.dtype.is_floating_point()]


def test_a_gate_on_activations_is_a_product(zoo: Build, tmp_path: Path) -> None:
    """Query and key dimensions have no weight to zero: one of the two operands is multiplied, head by head."""
    model = zoo("bert", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    group = next(g for g in subject.structure.groups if g.kind == "head_dims" and g.readers[0].weight is None)
    assert group.shape == (4, 8)
    rng = np.random.default_rng(0)
    plan = Plan(subject.structure.digest, {group.id: choose(group.shape, 5, rng)})
    other = Plan(subject.structure.digest, {group.id: choose(group.shape, 5, rng)})
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    assert distance(subject.gated(other, feeds), subject.gated(plan, feeds)) > 1e-4


def test_hooks_at_one_use_all_act_in_their_order(bert: tuple[Subject, dict[str, np.ndarray]]) -> None:
    """A stream that gets an intercept, and a map in the place of the branch that is added to it: one use, both act."""
    subject, feeds = bert
    branch = next(b for b in subject.structure.branches if b.id == "ffn.0")
    skip = next(n for n in subject.model.graph if n.name == branch.add).inputs[1 - branch.operand]
    assert skip is not None and skip.name is not None
    rng = np.random.default_rng(0)
    shift, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((32,), (33, 32)))
    rest = np.zeros(1, dtype=np.float32)
    plan = Plan(
        subject.structure.digest, drop=(branch.id,), intercepts={skip.name: shift}, maps={branch.id: matrix},
        rests={branch.id: rest},
    )  # fmt: skip
    gated = subject.gates.gated(plan)
    x = torch.randn(2, 3, 32)
    moved = x + torch.from_numpy(shift)
    expected = moved + moved @ torch.from_numpy(matrix[1:]) + torch.from_numpy(matrix[0])
    torch.testing.assert_close(gated.edit[branch.add, 1 - branch.operand](x), expected, rtol=1e-4, atol=1e-4)
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5


def test_both_operands_of_one_node_are_gated(tmp_path: Path) -> None:
    """A value that one node reads twice has two uses, each with its hook."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    square (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  y = Mul(a, a) }
    """
    interpreter = Subject.load(written(tmp_path, text, {})).interpreter
    node = next(n.name or "" for n in interpreter.graph if n.op_type == "Mul")
    x = np.full((1, 4), 3.0, np.float32)
    edit = {(node, 0): lambda t: t * 2, (node, 1): lambda t: t + 1, ("", 0): lambda t: -t}
    np.testing.assert_array_equal(interpreter.run({"x": x}, edit=edit)["y"].numpy(), np.full((1, 4), -24.0))


def test_a_branch_whose_weights_others_share_leaves_alone(zoo: Build) -> None:
    model = zoo("albert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    for branch in subject.structure.branches:
        plan = Plan(subject.structure.digest, drop=(branch.id,))
        complete = subject.complete(plan, model.feeds)
        assert distance(subject.gated(plan, model.feeds), subject.written(complete, model.feeds)) < 1e-4


@pytest.mark.parametrize("gone", [2, 3, 5])
def test_a_norm_sees_the_channels_that_stay_whatever_their_number(zoo: Build, gone: int) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    loaded = load(model.path)
    subject = Subject(loaded, analyze(loaded, hidden=True))
    group = next(g for g in subject.structure.groups if g.kind == "hidden")
    plan = Plan(subject.structure.digest, {group.id: tuple(range(group.size - gone))})
    assert distance(subject.gated(plan, model.feeds), subject.written(plan, model.feeds)) < 1e-4


def test_what_is_cut_of_a_product_goes_with_its_intercept(tmp_path: Path) -> None:
    """A fused attention reads what a product gives and an intercept is added to: of both, the same dimensions stay."""
    text = """<ir_version: 11, opset_import: ["" : 23]>
fused (float[N, T, 8] x, float[8, 32] wq, float[8, 32] wk, float[8, 32] wv, float[32, 8] wo) => (float[N, T, 8] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    a = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)
    y = MatMul(a, wo)
}"""
    weights = {"wq": (8, 32), "wk": (8, 32), "wv": (8, 32), "wo": (32, 8)}
    subject = Subject.load(written(tmp_path, text, weights))
    group = next(g for g in subject.structure.groups if g.readers[0].weight is None)
    assert (group.kind, group.shape) == ("head_dims", (4, 8))
    rng = np.random.default_rng(0)
    intercepts = {name: rng.standard_normal(32).astype(np.float32) for name in "qk"}
    plan = Plan(subject.structure.digest, {group.id: choose(group.shape, 5, rng)}, intercepts=intercepts)
    feeds = {"x": rng.standard_normal((2, 3, 8)).astype(np.float32)}
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
