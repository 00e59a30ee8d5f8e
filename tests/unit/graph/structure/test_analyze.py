"""What the analysis finds, and what it leaves alone: unknown operators, control flow, outputs, shared weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import agreed, written
from plans import Subject, distance, in_runtime
from zoo import ZooModel

from onnxprune.errors import UnsupportedError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan, Structure

Build = Callable[..., ZooModel]


FFN = """
<ir_version: 9, opset_import: ["" : 17, "com.microsoft": 1]>
ffn (float[N, 8] x, float[8, 16] up, float[16] bias, float[16, 8] down) => (float[N, 8] y) {{
    h = MatMul(x, up)
    b = Add(h, bias)
    {body}
    z = MatMul(a, down)
    y = Add(x, z)
}}
"""
SHAPES = {"up": (8, 16), "bias": (16,), "down": (16, 8)}
X = {"x": np.random.default_rng(1).standard_normal((3, 8), dtype=np.float32)}


def test_an_ffn_is_neurons_in_a_branch(tmp_path: Path) -> None:
    subject = Subject.load(written(tmp_path, FFN.format(body="a = Relu(b)"), SHAPES))
    (group,), (branch,) = subject.structure.groups, subject.structure.branches
    assert (group.kind, group.shape, group.branch) == ("neurons", (16,), branch.id)
    assert [(r.weight, r.weight_axis, r.axis) for r in group.readers] == [("down", 0, 1)]
    assert branch.reader is not None and branch.reader.weight == "down"
    agreed(subject, X)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = com.microsoft.ComplexMul(b, b)", "ComplexMul"),
        ("a = Softmax(b)", "normalised by Softmax"),
        ("a = CumSum(b, one)", "CumSum"),
    ],
)
def test_what_is_not_cut_through_pins_and_says_why(tmp_path: Path, body: str, reason: str) -> None:
    text = FFN.format(body=("one = Constant<value_int = 1>()\n    " if "one" in body else "") + body)
    subject = Subject.load(written(tmp_path, text, SHAPES))
    assert subject.structure.groups == ()
    assert any(reason in why for pin in subject.structure.pins if pin.size == 16 for why in pin.reasons)


PAIR = """
<ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
pair (float[N, 8] x, float[8, 12] up, float[12, 8] down, float[8, 16] up2, float[16, 8] down2) => (float[N, 8] y) {{
    h = MatMul(x, up)
    a = Tanh(h)
    z = MatMul(a, down)
    m = Add(x, z)
    h2 = MatMul(m, up2)
    {body}
    z2 = MatMul(a2, down2)
    y = Add(m, z2)
}}
"""
PAIR_SHAPES = {"up": (8, 12), "down": (12, 8), "up2": (8, 16), "down2": (16, 8)}

CHOICE = """t = ReduceSum<keepdims = 0>(x)
    zero = Constant<value_float = 0.0>()
    positive = Greater(t, zero)
    a2 = If (positive) <
        then_branch = yes () => (float[N, 16] p) {
            s = SequenceConstruct(h2)
            i = Constant<value_int = 0>()
            p = SequenceAt(s, i)
        },
        else_branch = no () => (float[N, 16] q) { q = Tanh(h2) }
    >"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [(CHOICE, "holds graphs of its own"), ('a2 = ai.onnx.ml.Normalizer<norm = "L2">(h2)', "Normalizer")],
)
def test_what_is_unknown_pins_and_the_rest_is_cut(tmp_path: Path, body: str, reason: str) -> None:
    """Control flow and operators of other domains: ONNX Runtime computes them, and nothing they touch is cut."""
    subject = Subject.load(written(tmp_path, PAIR.format(body=body), PAIR_SHAPES))
    assert [(g.kind, g.shape) for g in subject.structure.groups] == [("neurons", (12,))]
    assert any(reason in why for p in subject.structure.pins if p.size == 16 for why in p.reasons)
    for sign in (1, -1):
        feeds = {"x": sign * np.abs(X["x"])}
        assert distance(subject.dense(feeds), in_runtime(subject.model.ir, feeds)) < 1e-5
        agreed(subject, feeds)


def test_what_nobody_can_compute_is_named(tmp_path: Path) -> None:
    body = "a2 = ai.onnx.ml.NeverHeardOf(h2)"
    subject = Subject.load(written(tmp_path, PAIR.format(body=body), PAIR_SHAPES, check=False))
    assert len(subject.structure.groups) == 1
    with pytest.raises(UnsupportedError, match=r"ai\.onnx\.ml::NeverHeardOf, opset 3"):
        subject.dense(X)


def test_the_width_of_inputs_and_outputs_is_pinned(tmp_path: Path) -> None:
    subject = Subject.load(written(tmp_path, FFN.format(body="a = Relu(b)"), SHAPES))
    reasons = {why for p in subject.structure.pins if p.size == 8 for why in p.reasons}
    assert reasons >= {"an input of the graph", "an output of the graph"}


def test_a_weight_used_twice_is_one_group(tmp_path: Path) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
tied (float[N, 8] x, float[8, 16] up, float[16, 8] down) => (float[N, 8] y) {
    h = MatMul(x, up)
    a = Relu(h)
    z = MatMul(a, down)
    h2 = MatMul(z, up)
    a2 = Relu(h2)
    y = MatMul(a2, down)
}
"""
    subject = Subject.load(written(tmp_path, text, {"up": (8, 16), "down": (16, 8)}))
    kinds = {(g.kind, g.size): len(g.readers) for g in subject.structure.groups}
    assert kinds == {("neurons", 16): 2}
    agreed(subject, X)


def test_equal_vectors_that_an_exporter_stored_once_do_not_tie_layers(tmp_path: Path) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
shared (float[N, 8] x, float[8, 16] up, float[16] bias, float[16, 8] down, float[8, 16] up2, float[16, 8] down2)
    => (float[N, 8] y) {
    h = MatMul(x, up)
    a = Add(h, bias)
    z = MatMul(a, down)
    h2 = MatMul(z, up2)
    a2 = Add(h2, bias)
    y = MatMul(a2, down2)
}
"""
    subject = Subject.load(
        written(tmp_path, text, {"up": (8, 16), "bias": (16,), "down": (16, 8), "up2": (8, 16), "down2": (16, 8)})
    )
    assert sorted(g.size for g in subject.structure.groups) == [8, 16, 16]
    agreed(subject, X)


def test_a_branch_read_elsewhere_is_no_branch(tmp_path: Path) -> None:
    text = FFN.format(body="a = Relu(b)").replace("=> (float[N, 8] y)", "=> (float[N, 8] y, float[N, 8] w)")
    text = text.replace("y = Add(x, z)", "y = Add(x, z)\n    w = Neg(z)")
    subject = Subject.load(written(tmp_path, text, SHAPES))
    assert subject.structure.branches == ()
    assert len(subject.structure.groups) == 1


def test_structure_survives_json(zoo: Build) -> None:
    structure = Subject.load(zoo("llama", "dynamo", "sdpa").path).structure
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


def test_planted_heads_and_neurons_are_groups_of_their_own(zoo: Build) -> None:
    for exporter in ("torchscript", "dynamo"):
        structure = Subject.load(zoo("bert", exporter, "sdpa").path).structure
        assert [g.size for g in structure.groups if g.kind == "heads"] == [4, 4]
        assert [g.size for g in structure.groups if g.kind == "neurons" and g.branch] == [48, 48]
        assert [b.kind for b in structure.branches] == ["attention", "ffn", "attention", "ffn"]


def test_identity_chains_to_outputs_keep_names(tmp_path: Path) -> None:
    text = FFN.format(body="a = Relu(b)").replace(
        "y = Add(x, z)", "s = Add(x, z)\n    i = Identity(s)\n    y = Identity(i)"
    )
    model = models.load(written(tmp_path, text, SHAPES))
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert [n.op_type for n in model.graph].count("Identity") == 0


@pytest.mark.parametrize(
    ("family", "exporter"),
    [("mpnet", "torchscript"), ("t5-encoder", "torchscript"), ("t5-encoder", "dynamo"), ("distilbert", "dynamo")],
)
def test_a_side_tensor_does_not_tie_the_heads_of_all_layers(zoo: Build, family: str, exporter: str) -> None:
    """One position bias, or one expanded mask, for all layers: each has its own index into it, or its own Expand."""
    model = zoo(family, exporter, "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    heads = [g for g in subject.structure.groups if g.kind == "heads"]
    assert [g.size for g in heads] == [4, 4]
    plan = Plan(subject.structure.digest, {heads[0].id: (0, 2), heads[1].id: (1, 2, 3)})
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
    added = {n.name for n in subject.model.graph if "_side_" in (n.name or "") or "_for_" in (n.name or "")}
    assert added
    whole = subject.rewritten(Plan(subject.structure.digest)).graph
    assert not added & {n.name for n in whole}, "what was made for each reader stays in the graph"


def test_a_pruned_file_is_read_like_any_other(zoo: Build, tmp_path: Path) -> None:
    """Its indices into one position bias are there already, under the names that new ones would get."""
    model = zoo("t5-encoder", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    heads = [g.id for g in subject.structure.groups if g.kind == "heads"]
    plan = Plan(subject.structure.digest, {heads[0]: (0, 2), heads[1]: (0, 2)})
    again = Subject.load(models.save(subject.rewritten(plan), tmp_path / "cut.onnx")[0])
    names = [v.name for n in again.model.graph for v in n.outputs]
    assert len(set(names)) == len(names)
    assert distance(again.dense(feeds), subject.written(plan, feeds)) < 1e-5
    second = Plan(again.structure.digest, {g.id: (1,) for g in again.structure.groups if g.kind == "heads"})
    assert distance(again.written(second, feeds), again.gated(second, feeds)) < 1e-4


def test_matrices_inside_control_flow_that_stays_closed_are_named_with_why(tmp_path: Path) -> None:
    """Sequences are not followed."""
    text = """<ir_version: 8, opset_import: ["" : 15]>
    g (float[B, 6] x, bool first) => (float[B, 6] y) {
        y = If(first) <
            then_branch = a () => (float[B, 6] p) {
                m = Constant<value = float[2, 6] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>()
                t = Transpose(m)
                n = MatMul(x, t)
                s = SequenceConstruct(n)
                i = Constant<value_int = 0>()
                o = SequenceAt(s, i)
                p = MatMul(o, m)
            },
            else_branch = b () => (float[B, 6] q) { q = Neg(x) }
        >
    }"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    pins = Subject.load(path).structure.pins
    assert {pin.size for pin in pins} == {2, 6}
    assert all("holds graphs of its own" in why for pin in pins for why in pin.reasons)


OUTER = """
<ir_version: 9, opset_import: ["" : 17]>
outer (float[N, 8] x, float[8, 4] up, float[16, 8] down) => (float[N, 8] y) {
    h = MatMul(x, up)
    last = Constant<value_ints = [2]>()
    first = Constant<value_ints = [1]>()
    column = Unsqueeze(h, last)
    row = Unsqueeze(h, first)
    table = Mul(column, row)
    shape = Constant<value_ints = [-1, 16]>()
    pairs = Reshape(table, shape)
    y = MatMul(pairs, down)
}
"""


def test_a_width_that_meets_itself_is_pinned(tmp_path: Path) -> None:
    """Bilinear pooling: a row of the matrix that reads the table belongs to two units."""
    subject = Subject.load(written(tmp_path, OUTER, {"up": (8, 4), "down": (16, 8)}))
    assert subject.structure.groups == ()
    assert any("twice" in why for pin in subject.structure.pins if pin.size == 4 for why in pin.reasons)


ONE_HOT = """
<ir_version: 9, opset_import: ["" : 17]>
lookup (int64[N, 5] ids, float[9, 16] table, float[16, 6] down) => (float[N, 5, 6] y) {
    axis = Constant<value_ints = [2]>()
    wide = Unsqueeze(ids, axis)
    all = Constant<value_ints = [0, 1, 2, 3, 4, 5, 6, 7, 8]>()
    hits = Equal(wide, all)
    hot = Cast <to = 1> (hits)
    e = MatMul(hot, table)
    a = Tanh(e)
    y = MatMul(a, down)
}
"""


def test_a_vocabulary_written_as_a_comparison_is_pinned(tmp_path: Path) -> None:
    """Embeddings of exporters that know no Gather: rows of the table are tokens, not neurons."""
    subject = Subject.load(written(tmp_path, ONE_HOT, {"table": (9, 16), "down": (16, 6)}))
    assert [group.shape for group in subject.structure.groups] == [(16,)]
    assert any("vocabulary" in why for pin in subject.structure.pins if pin.size == 9 for why in pin.reasons)
