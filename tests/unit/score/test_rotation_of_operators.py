"""Attention in one operator: the same bases as in its parts, folded into the same weights, cut as they are gated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written
from plans import Subject, distance

from onnxprune import data
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe.forward import Rows
from onnxprune.score.rotation import Rotated, rotated

RNG = np.random.default_rng(9)
HEAD = """<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
attention (float[N, T, 16] x, {}) => (float[N, T, 16] y) {{
"""
APART = (
    "float[16, 16] wq, float[16] bq, float[16, {0}] wk, float[{0}] bk, float[16, {0}] wv, float[{0}] bv, "
    "float[16, 16] wo"
)
TAIL = "z = MatMul(o, wo)\ny = Add(x, z)\n}"
MADE = """
    q0 = MatMul(x, wq)
    q = Add(q0, bq)
    k0 = MatMul(x, wk)
    k = Add(k0, bk)
    v0 = MatMul(x, wv)
    v = Add(v0, bv)
"""
SPREAD = """
    split = Constant<value_ints = [0, 0, 4, 4]>()
    few = Constant<value_ints = [0, 0, {heads}, 4]>()
    flat = Constant<value_ints = [0, 0, 16]>()
    q1 = Reshape(q, split)
    q4 = Transpose<perm = [0, 2, 1, 3]>(q1)
    k1 = Reshape(k, few)
    k4 = Transpose<perm = [0, 2, 1, 3]>(k1)
    v1 = Reshape(v, few)
    v4 = Transpose<perm = [0, 2, 1, 3]>(v1)
"""
MERGED = """
    o1 = Transpose<perm = [0, 2, 1, 3]>(o4)
    o = Reshape(o1, flat)
"""
PARTS = """
    root = Constant<value_float = 0.5>()
    kt = Transpose<perm = [0, 1, 3, 2]>(k4)
    raw = MatMul(q4, kt)
    s = Mul(raw, root)
    p = Softmax(s)
    o4 = MatMul(p, v4)
"""
FORMS = {
    "parts": (APART.format(16), MADE + SPREAD.format(heads=4) + PARTS + MERGED),
    "heads apart": (APART.format(16), MADE + SPREAD.format(heads=4) + "o4 = Attention(q4, k4, v4)\n" + MERGED),
    "heads flat": (APART.format(16), MADE + "o = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)\n"),
    "multi": (
        "float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[16, 16] wo, float[48] b",
        "q = MatMul(x, wq)\nk = MatMul(x, wk)\nv = MatMul(x, wv)\n"
        "o = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, b)\n",
    ),
    "packed": (
        "float[16, 48] w, float[48] b, float[16, 16] wo",
        "o = com.microsoft.Attention<num_heads = 4>(x, w, b)\n",
    ),
    "grouped": (APART.format(8), MADE + "o = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)\n"),
    "grouped apart": (APART.format(8), MADE + SPREAD.format(heads=2) + "o4 = Attention(q4, k4, v4)\n" + MERGED),
}
"""Inputs and body; the first five compute the same."""


def subject_of(folder: Path, form: str) -> Subject:
    given, body = FORMS[form]
    width = 8 if "[8]" in given else 16
    shapes = {
        name: tuple(int(d) for d in kind[6:-1].split(","))
        for kind, name in (part.rsplit(" ", 1) for part in given.replace(", float", "\nfloat").split("\n"))
    }
    file = written(folder, HEAD.format(given) + body + TAIL, shapes)
    proto, rng = onnx.load(file), np.random.default_rng(4)
    parts = {f"w{k}": rng.standard_normal((16, 16 if k in "qo" else width)) for k in "qkvo"}
    parts |= {f"b{k}": rng.standard_normal(16 if k == "q" else width) for k in "qkv"}
    parts["w"] = np.concatenate([parts[f"w{k}"] for k in "qkv"], 1)
    parts["b"] = np.concatenate([parts[f"b{k}"] for k in "qkv"])
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array((0.5 * parts[tensor.name]).astype(np.float32), tensor.name))
    onnx.save(proto, file)
    return Subject.load(file)


def turned(subject: Subject) -> Rotated:
    rng = np.random.default_rng(1)
    examples = [{"x": rng.standard_normal((1, 6, 16), dtype=np.float32)} for _ in range(12)]
    rows = Rows(subject.interpreter, data.read(examples, subject.model.inputs, outputs=subject.model.outputs))
    sites = find_sites(subject.model.graph, subject.structure, ("head_ranks",))
    return rotated(rows, sites, subject.structure, lambda n: subject.interpreter.weight(n).numpy())


@pytest.mark.parametrize("form", FORMS)
def test_operators_that_are_all_of_attention_are_rotated_and_cut(tmp_path: Path, form: str) -> None:
    subject = subject_of(tmp_path, form)
    found = turned(subject)
    assert len(found.rankings) == 2
    assert not found.held
    assert "head_dims" not in {g.kind for g in subject.structure.groups if g.id not in found.rankings}
    feeds = {"x": RNG.standard_normal((2, 7, 16), dtype=np.float32)}
    whole = Plan(subject.structure.digest, weights=found.weights)
    assert distance(subject.gated(whole, feeds), subject.dense(feeds)) < 1e-5
    for count in (1, 3):
        keep = {g: r.keep(count * len(r.order) // 4) for g, r in found.rankings.items()}
        plan = replace(whole, keep=keep)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
        assert distance(subject.gated(plan, feeds), subject.dense(feeds)) > 1e-3


@pytest.mark.parametrize("form", list(FORMS)[1:5])
def test_operators_lose_what_their_parts_lose(tmp_path: Path, form: str) -> None:
    losses = []
    for name in ("parts", form):
        (folder := tmp_path / name).mkdir()
        rankings = turned(subject_of(folder, name)).rankings
        losses.append(sorted([sorted(r.scores) for r in rankings.values()]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3, atol=1e-5)


def test_heads_that_share_keys_share_a_basis(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, "grouped")
    found = turned(subject)
    pairs = next(g for g in subject.structure.groups if g.id in found.rankings and g.readers[0].weight is None)
    assert pairs.shape == (2, 4)
    old, new = (
        {n: np.asarray(w) for n, w in weights.items()}
        for weights in ({n: subject.interpreter.weight(n).numpy() for n in found.weights}, found.weights)
    )
    first, second = (
        np.linalg.lstsq(old["wq"][:, s], new["wq"][:, s], rcond=None)[0] for s in (slice(0, 4), slice(4, 8))
    )
    keys = np.linalg.lstsq(old["wk"][:, :4], new["wk"][:, :4], rcond=None)[0]
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first @ keys.T, np.eye(4), atol=1e-3)
