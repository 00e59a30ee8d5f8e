"""Rewriting: what is left has the sizes that were planned, descriptions that hold, and nothing lying about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written
from plans import Subject, choose, distance, random_plan
from zoo import ZooModel

from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.values import dims

Build = Callable[..., ZooModel]


def thinned(subject: Subject, share: float, kinds: tuple[str, ...] = ("heads", "neurons", "channels")) -> Plan:
    rng = np.random.default_rng(0)
    keep = {
        g.id: choose(g.shape, max(1, round(share * g.shape[-1])), rng)
        for g in subject.structure.groups
        if g.kind in kinds
    }
    return Plan(subject.structure.digest, keep)


@pytest.mark.parametrize("family", ["bert", "llama", "vit", "resnet", "mobilenet-v2", "swin"])
def test_descriptions_hold_what_the_graph_computes(zoo: Build, family: str, tmp_path: Path) -> None:
    """Stale shapes cost fusions, and make checkers fail."""
    model = zoo(family, "torchscript", "eager")
    subject = Subject.load(model.path)
    (file,) = models.save(subject.rewritten(thinned(subject, 0.5)), tmp_path / "half.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True, data_prop=True)
    assert inferred.graph.output


def test_a_cut_graph_is_analysed_as_a_smaller_one(zoo: Build, tmp_path: Path) -> None:
    """Pruning can go on from a pruned file: the same groups, with fewer units."""
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    (file,) = models.save(subject.rewritten(thinned(subject, 0.5)), tmp_path / "half.onnx")
    again = Subject.load(file)
    before = {g.id: g.size for g in subject.structure.groups if g.kind in ("heads", "neurons")}
    after = {g.id: g.size for g in again.structure.groups if g.kind in ("heads", "neurons")}
    assert after == {name: size // 2 for name, size in before.items()}
    plan = again.complete(random_plan(again, np.random.default_rng(3)), model.feeds)
    assert distance(again.written(plan, model.feeds), again.gated(plan, model.feeds)) < 1e-4


@pytest.mark.parametrize("family", ["bert", "llama", "mobilenet-v2"])
def test_cutting_one_unit_after_the_other_is_cutting_both(zoo: Build, family: str, tmp_path: Path) -> None:
    model = zoo(family, "torchscript", "sdpa")
    subject, feeds = Subject.load(model.path), model.feeds
    group = next(g for g in subject.structure.groups if g.kind in ("neurons", "channels") and not g.context)
    first = tuple(u for u in range(group.size) if u != 2)
    (file,) = models.save(subject.rewritten(Plan(subject.structure.digest, {group.id: first})), tmp_path / "one.onnx")
    again = Subject.load(file)
    second = tuple(u for u in range(group.size - 1) if u != 4)  # 5 of the original
    twice = again.written(Plan(again.structure.digest, {group.id: second}), feeds)
    both = tuple(u for u in range(group.size) if u not in (2, 5))
    assert distance(twice, subject.written(Plan(subject.structure.digest, {group.id: both}), feeds)) < 1e-6


def test_nothing_is_left_that_nobody_reads(zoo: Build) -> None:
    model = zoo("llama", "dynamo", "sdpa")
    subject = Subject.load(model.path)
    drop = tuple(b.id for b in subject.structure.branches if b.kind == "attention")
    plan = subject.complete(Plan(subject.structure.digest, drop=drop), model.feeds)
    graph = subject.rewritten(plan).graph
    for value in graph.initializers.values():
        assert value.uses() or value.is_graph_output(), value.name
    for node in graph:
        assert any(v.uses() or v.is_graph_output() for v in node.outputs), node.name


def test_weights_keep_their_type(zoo: Build, tmp_path: Path) -> None:
    """Refit weights come in double precision; the file has the model's own."""
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    plan = random_plan(subject, np.random.default_rng(0), drop=0, refit=1, tile=0)
    wide = Plan(
        plan.digest,
        plan.keep,
        weights={k: v.astype(np.float64) for k, v in plan.weights.items()},
        intercepts={k: v.astype(np.float64) for k, v in plan.intercepts.items()},
    )
    (file,) = models.save(subject.rewritten(wide), tmp_path / "wide.onnx")
    kinds = {t.data_type for t in onnx.load(file).graph.initializer}
    assert onnx.TensorProto.DOUBLE not in kinds
    assert distance(subject.written(wide, model.feeds), subject.gated(wide, model.feeds)) < 1e-4


def test_intercepts_join_a_bias_that_is_there(zoo: Build) -> None:
    """Where a bias follows, no node is added."""
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    value = next(n.outputs[0] for n in subject.model.graph if n.name and n.name.endswith("layer.0/output/dense/MatMul"))
    assert value.name is not None
    width = (dims(value) or ())[-1]
    assert width == 32
    plan = Plan(subject.structure.digest, intercepts={value.name: np.ones(32, np.float32)})
    assert subject.rewritten(plan).graph.num_nodes() == subject.rewritten(Plan(plan.digest)).graph.num_nodes()
    assert distance(subject.written(plan, model.feeds), subject.gated(plan, model.feeds)) < 1e-5


HEADER = '<ir_version: 9, opset_import: ["" : 17]>\n'
BIASES = {
    "scaled": (
        "bias (float[N, 8] x, float[8, 6] w, float[6] b, float[6, 4] v) => (float[N, 4] y) {"
        " h = Gemm<beta = 2.0>(x, w, b)  a = Relu(h)  y = MatMul(a, v) }"
    ),
    "shared": (
        "bias (float[N, 8] x, float[8, 6] w, float[6] b, float[8, 6] u, float[6, 4] v) => (float[N, 4] y) {"
        " h = Gemm(x, w, b)  g = Gemm(x, u, b)  s = Add(h, g)  a = Relu(s)  y = MatMul(a, v) }"
    ),
    "added-twice": (
        "bias (float[N, 8] x, float[8, 6] w, float[6] b, float[8, 6] u, float[6, 4] v) => (float[N, 4] y) {"
        " h = MatMul(x, w)  i = Add(h, b)  g = MatMul(x, u)  j = Add(g, b)  s = Mul(i, j)  y = MatMul(s, v) }"
    ),
    "told": (
        "bias (float[N, 8] x, float[8, 6] w, float[6] b, float[6, 4] v) => (float[N, 6] h, float[N, 4] y) {"
        " h = MatMul(x, w)  i = Add(h, b)  a = Relu(i)  y = MatMul(a, v) }"
    ),
}
SHAPES = {"w": (8, 6), "u": (8, 6), "b": (6,), "v": (6, 4)}


@pytest.mark.parametrize("form", BIASES)
def test_an_intercept_joins_no_bias_that_is_more_than_its_own(form: str, tmp_path: Path) -> None:
    """One that is scaled, that others add, or that is added to what the graph gives before it."""
    used = {name: shape for name, shape in SHAPES.items() if f"{name})" in BIASES[form] or f", {name}," in BIASES[form]}
    subject = Subject.load(written(tmp_path, HEADER + BIASES[form], used))
    plan = Plan(subject.structure.digest, intercepts={"h": np.arange(1, 7, dtype=np.float32)})
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)}
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    assert distance(subject.written(plan, feeds), subject.dense(feeds)) > 1e-2
