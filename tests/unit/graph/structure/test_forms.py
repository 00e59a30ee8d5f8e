"""Graphs that other tools have been over: fused sums and activations, unsorted nodes, operators of one vendor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo_forms
from graphs import agreed, written
from plans import Subject, distance, in_runtime, random_plan
from zoo import ZooModel

from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan

Build = Callable[..., ZooModel]

POST = """
<ir_version: 9, opset_import: ["" : 17, "com.microsoft": 1]>
post (float[B, S, 8] x, float[8, 16] up, float[16, 8] down, float[8] gamma, float[8] beta, float[8] bias)
    => (float[B, S, 8] y) {{
    h = MatMul(x, up)
    a = Relu(h)
    z = MatMul(a, down)
    y = com.microsoft.{norm}<epsilon = 0.001>({operands})
}}
"""
PRE = """
<ir_version: 9, opset_import: ["" : 17, "com.microsoft": 1]>
pre (float[B, S, 8] x, float[B, S, 8] x2, float[8, 16] up, float[16, 8] down, float[8] gamma, float[8] beta,
     float[8] gamma2, float[8] beta2, float[8, 6] top) => (float[B, S, 6] y) {
    n, , , s = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(x, x2, gamma, beta)
    h = MatMul(n, up)
    a = Relu(h)
    z = MatMul(a, down)
    n2, , , s2 = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(s, z, gamma2, beta2)
    t = Add(n2, s2)
    y = MatMul(t, top)
}
"""
WIDE = {"up": (8, 16), "down": (16, 8)}
X3 = np.random.default_rng(1).standard_normal((2, 3, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("norm", "operands"),
    [
        ("SkipLayerNormalization", "x, z, gamma, beta, bias"),
        ("SkipLayerNormalization", "z, x, gamma"),
        ("SkipSimplifiedLayerNormalization", "x, z, gamma, bias"),
    ],
)
def test_a_branch_ends_in_a_fused_sum(tmp_path: Path, norm: str, operands: str) -> None:
    used = {name: (8,) for name in ("gamma", "beta", "bias") if name in operands}
    text = POST.format(norm=norm, operands=operands)
    for name in {"gamma", "beta", "bias"} - used.keys():
        text = text.replace(f", float[8] {name}", "")
    subject = Subject.load(written(tmp_path, text, {**WIDE, **used}, check=False))
    (branch,) = subject.structure.branches
    assert branch.skip == "x"
    feeds = {"x": X3}
    agreed(subject, feeds)
    plan = subject.complete(Plan(subject.structure.digest, drop=(branch.id,)), feeds)
    rest = {**plan.rests, branch.id: np.linspace(-1, 1, 8, dtype=np.float32)}
    plan = Plan(subject.structure.digest, drop=(branch.id,), rests=rest)
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    assert distance(subject.gated(plan, feeds), subject.dense(feeds)) > 1e-2


def test_the_norm_beside_a_fused_sum_is_a_function_of_the_sum(tmp_path: Path) -> None:
    weights = {**WIDE, "gamma": (8,), "beta": (8,), "gamma2": (8,), "beta2": (8,), "top": (8, 6)}
    subject = Subject.load(written(tmp_path, PRE, weights, check=False))
    (branch,) = subject.structure.branches
    assert (branch.skip, branch.value) == ("s", "z")
    feeds = {"x": X3, "x2": X3[::-1].copy()}
    agreed(subject, feeds)
    plan = subject.complete(Plan(subject.structure.digest, drop=(branch.id,)), feeds)
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5


@pytest.mark.parametrize(
    "activation",
    [
        'activation = "Relu"',
        'activation = "LeakyRelu", activation_params = [0.3]',
        'activation = "Clip", activation_params = [-0.2, 0.9]',
        'activation = "HardSigmoid", activation_params = [0.3, 0.4]',
    ],
)
def test_activations_come_out_of_convolutions(tmp_path: Path, activation: str) -> None:
    text = f"""
<ir_version: 9, opset_import: ["" : 17, "com.microsoft": 1]>
conv (float[B, 4, 5, 5] x, float[8, 4, 3, 3] w, float[8] b, float[4, 8, 1, 1] w2, float[4] b2)
    => (float[B, 4, 5, 5] y) {{
    h = com.microsoft.FusedConv<pads = [1, 1, 1, 1], {activation}>(x, w, b)
    y = com.microsoft.FusedConv<{activation}>(h, w2, b2, x)
}}
"""
    weights = {"w": (8, 4, 3, 3), "b": (8,), "w2": (4, 8, 1, 1), "b2": (4,)}
    path = written(tmp_path, text, weights, check=False)
    subject = Subject.load(path)
    feeds = {"x": np.random.default_rng(2).standard_normal((2, 4, 5, 5), dtype=np.float32)}
    assert {n.domain for n in subject.model.graph} == {""}
    assert distance(subject.dense(feeds), in_runtime(path, feeds)) < 1e-5
    assert distance(in_runtime(subject.model.clone().ir, feeds), in_runtime(path, feeds)) < 1e-5
    assert [g.kind for g in subject.structure.groups] == ["channels"]
    assert len(subject.structure.branches) == 1
    agreed(subject, feeds)


def test_branches_side_by_side(tmp_path: Path) -> None:
    """y = x + (f(x) + g(x)): each may go, and both."""
    text = """
<ir_version: 9, opset_import: ["" : 17]>
beside (float[B, 8] x, float[8, 12] up, float[12, 8] down, float[8, 16] up2, float[16, 8] down2, float[8, 4] top)
    => (float[B, 4] y) {
    h = MatMul(x, up)
    a = Relu(h)
    f = MatMul(a, down)
    h2 = MatMul(x, up2)
    a2 = Tanh(h2)
    g = MatMul(a2, down2)
    both = Add(f, g)
    s = Add(both, x)
    y = MatMul(s, top)
}
"""
    weights = {"up": (8, 12), "down": (12, 8), "up2": (8, 16), "down2": (16, 8), "top": (8, 4)}
    subject, feeds = Subject.load(written(tmp_path, text, weights)), {"x": X3[0]}
    branches = {b.value: b for b in subject.structure.branches}
    assert branches.keys() == {"f", "g", "both"}
    homes = {g.size: g.branch for g in subject.structure.groups if g.branch}
    assert homes == {12: branches["f"].id, 16: branches["g"].id}
    for drop in (("f",), ("g",), ("f", "g"), ("both",)):
        plan = Plan(subject.structure.digest, drop=tuple(branches[d].id for d in drop))
        plan = subject.complete(plan, feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    agreed(subject, feeds)


def test_of_two_open_sizes_the_minus_one_stays_where_it_was(tmp_path: Path) -> None:
    """A Reshape's target whose last number is -1, the one before it computed from a tensor's own size."""
    text = """
<ir_version: 9, opset_import: ["" : 17]>
two (float[B, 6, 8] x, float[8, 12] up, float[12, 4] down) => (float[P, Q, R, 4] y) {
    h = MatMul(x, up)
    n = NonZero(x)
    long = Shape<start = 1>(n)
    one = Constant<value_ints = [1]>()
    ones = Div(long, long)
    twelve = Constant<value_ints = [12]>()
    open = Constant<value_ints = [-1]>()
    target = Concat<axis = 0>(one, ones, open, twelve)
    r = Reshape(h, target)
    a = Relu(r)
    y = MatMul(a, down)
}
"""
    path = written(tmp_path, text, {"up": (8, 12), "down": (12, 4)}, check=False)
    subject, feeds = Subject.load(path), {"x": np.repeat(X3, 2, 1)}
    assert distance(in_runtime(subject.model.clone().ir, feeds), in_runtime(path, feeds)) < 1e-6
    assert distance(subject.dense(feeds), in_runtime(path, feeds)) < 1e-5


def test_activations_come_out_of_products(tmp_path: Path) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17, "com.microsoft": 1]>
gemm (float[B, 8] x, float[16, 8] up, float[16] bias, float[16, 6] down, float[6] last) => (float[B, 6] y) {
    h = com.microsoft.FusedGemm<transB = 1, alpha = 0.5, activation = "LeakyRelu", activation_alpha = 0.2>(x, up, bias)
    y = com.microsoft.FusedGemm<activation = "Tanh">(h, down, last)
}
"""
    path = written(tmp_path, text, {"up": (16, 8), "bias": (16,), "down": (16, 6), "last": (6,)}, check=False)
    subject, feeds = Subject.load(path), {"x": X3[0]}
    assert [n.op_type for n in subject.model.graph] == ["Gemm", "LeakyRelu", "Gemm", "Tanh"]
    assert distance(subject.dense(feeds), in_runtime(path, feeds)) < 1e-5
    agreed(subject, feeds)


def test_nodes_may_stand_in_any_order(zoo: Build, tmp_path: Path) -> None:
    """Some converters append what they insert at the end; ONNX Runtime sorts, and so does the tool."""
    model = zoo("bert", "torchscript", "eager")
    proto = onnx.load(model.path)
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "model.onnx")
    found, plain = Subject.load(tmp_path / "model.onnx").structure, Subject.load(model.path).structure
    assert sorted(g.id for g in found.groups) == sorted(g.id for g in plain.groups)
    assert len(found.branches) == len(plain.branches) == 4


def test_shapes_go_on_behind_what_only_the_runtime_knows(tmp_path: Path) -> None:
    """No library infers SampleOp; ONNX Runtime says what it gives, and the rest of the model is cut."""
    text = """
<ir_version: 9, opset_import: ["" : 17, "com.microsoft": 1]>
behind (float[B, 8] x, float[8, 12] in, float[12, 16] up, float[16, 8] down) => (float[B, 8] y) {
    h = MatMul(x, in)
    c = com.microsoft.SampleOp(h)
    u = MatMul(c, up)
    a = Relu(u)
    y = MatMul(a, down)
}
"""
    subject = Subject.load(written(tmp_path, text, {"in": (8, 12), "up": (12, 16), "down": (16, 8)}, check=False))
    assert [g.size for g in subject.structure.groups] == [16]
    assert any("SampleOp" in why for pin in subject.structure.pins if pin.size == 12 for why in pin.reasons)
    feeds = {"x": X3[0]}
    plan = Plan(subject.structure.digest, {"neurons.0": (1, 5, 7)})
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5


def test_what_no_shape_is_known_of_stops_only_what_is_behind_it(tmp_path: Path) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17, "some.vendor": 1]>
beside (float[B, 8] x, float[8, 12] up, float[12, 8] down, float[8, 16] up2, float[16, 8] down2)
    => (float[B, 8] y, float[B, 8] z) {
    h = MatMul(x, up)
    a = some.vendor.NeverHeardOf(h)
    y = MatMul(a, down)
    h2 = MatMul(x, up2)
    a2 = Relu(h2)
    z = MatMul(a2, down2)
}
"""
    weights = {"up": (8, 12), "down": (12, 8), "up2": (8, 16), "down2": (16, 8)}
    structure = Subject.load(written(tmp_path, text, weights, check=False)).structure
    assert [g.size for g in structure.groups] == [16]
    assert any("NeverHeardOf" in why for pin in structure.pins for why in pin.reasons)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_heads_that_share_an_axis_with_the_batch(zoo: Build, exporter: str) -> None:
    """DeBERTa keeps batch·heads in one axis, tiles its position keys over it and shares their index between layers."""
    subject = Subject.load(zoo("deberta-v2", exporter, "eager").path)
    kinds = [(g.kind, g.size) for g in subject.structure.groups if g.branch]
    assert kinds.count(("heads", 4)) == 2
    assert kinds.count(("neurons", 48)) == 2
    assert {kind for kind, _ in kinds} == {"heads", "head_dims", "neurons"}
    assert all(len(g.context) == 1 for g in subject.structure.groups if g.kind == "head_dims")
    assert [b.kind for b in subject.structure.branches] == ["attention", "ffn"] * 2


EVERYDAY = [
    ("bert", "torchscript", "transformers.optimizer, level 1"),  # Attention, EmbedLayerNormalization, skips, BiasGelu
    ("gpt2", "torchscript", "session extended"),  # FusedMatMul, sizes picked twice
    ("vit", "dynamo", "onnxscript ort_fusions"),  # MultiHeadAttention
    ("vit", "torchscript", "transformers.optimizer, fp16"),  # sums of a fused norm read on, in half precision
]


@pytest.mark.parametrize(("family", "exporter", "form"), EVERYDAY)
def test_fused_graphs_are_cut(zoo: Build, tmp_path: Path, family: str, exporter: str, form: str) -> None:
    model = zoo(family, exporter, "sdpa")
    zoo_forms.make(form, model, tmp_path / "model.onnx")
    subject, feeds = Subject.load(tmp_path / "model.onnx"), model.feeds
    sizes = {kind: [g.size for g in subject.structure.groups if g.kind == kind] for kind in ("heads", "neurons")}
    assert sizes["heads"] == [4, 4]
    assert sizes["neurons"].count(48) == 2
    assert sorted(b.kind for b in subject.structure.branches) == ["attention", "attention", "ffn", "ffn"]
    for seed in range(3):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
        tolerance = 1e-2 if "fp16" in form else 1e-4
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < tolerance


def test_the_layout_of_one_machine_is_said_to_be_that(zoo: Build, tmp_path: Path) -> None:
    """Blocked convolutions, as a session at its highest level writes them, are for that machine alone."""
    model = zoo("resnet", "torchscript", "eager")
    zoo_forms.make("session all", model, tmp_path / "model.onnx")
    found = models.load(tmp_path / "model.onnx")
    if not any(n.domain == "com.microsoft.nchwc" for n in found.graph):
        pytest.skip("this machine's convolutions are not blocked")
    reasons = {why for p in Subject.load(tmp_path / "model.onnx").structure.pins for why in p.reasons}
    assert any("com.microsoft.nchwc" in why and "level" in why for why in reasons)
