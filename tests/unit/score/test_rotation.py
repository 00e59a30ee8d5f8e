"""Heads of low rank: what a run rotates, what it finds free of charge, and what keeps its basis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import ATTENDED, written
from plans import Subject, distance, in_runtime

import onnxprune
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.bases import Held, basis_of, rotatable
from onnxprune.measure.cost import Costs

RNG = np.random.default_rng(7)
TEXT = (
    """
<ir_version: 9, opset_import: ["" : 17]>
attention (float[N, T, 16] x, float[16, 16] wq, {other}float[16, 16] wv, float[16, 16] wo,
    float[16] bq, float[16] bk, float[16] bv{gain}) => (float[N, T, 16] y) {{
    split = Constant<value_ints = [0, 0, 2, 8]>()
    flat = Constant<value_ints = [0, 0, 16]>()
    root = Constant<value_float = 0.35355338>()
    a0 = MatMul(x, wq)
    a = Add(a0, bq)
    b = Reshape(a, split)
    q0 = Transpose<perm = [0, 2, 1, 3]>(b)
    q = {scaled}
    d0 = MatMul(x, {wk})
    d = Add(d0, bk)
    e = Reshape(d, split)
    k = Transpose<perm = [0, 2, 3, 1]>(e)
    f0 = MatMul(x, wv)
    f = Add(f0, bv)
"""
    + ATTENDED
    + "}}"
)
QK, VO = 3, 5
"""Ranks of every head's products."""


def model(folder: Path, scaled: str = "Identity(q0)", wk: str = "wk") -> Path:
    text = TEXT.format(
        scaled=scaled,
        wk=wk,
        other="float[16, 16] wk, " if wk == "wk" else "",
        gain=", float[8] gain" if "gain" in scaled else "",
    )
    shapes = dict.fromkeys({"wq", wk, "wv", "wo"}, (16, 16)) | dict.fromkeys(("bq", "bk", "bv"), (16,))
    file = written(folder, text, shapes | ({"gain": (8,)} if "gain" in scaled else {}))
    proto = onnx.load(file)
    rng = np.random.default_rng(3)
    low = {name: rng.standard_normal((2, 16, rank)) for name, rank in (("wq", QK), ("wv", VO))}
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in low:  # the head's columns span a space of few dimensions, in no basis of theirs
            for head in (0, 1):
                mixed = 0.3 * rng.standard_normal((low[tensor.name].shape[-1], 8))
                array[:, 8 * head : 8 * head + 8] = low[tensor.name][head] @ mixed
        if tensor.name in ("bq", "bv"):
            array[:] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(proto, file)
    return file


def rows(count: int = 40) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((1, 5, 16), dtype=np.float32)} for _ in range(count)]


def scaled_by_the_runtime(path: Path, turned: bool) -> None:
    """The product of queries and keys with its scale in it, as ONNX Runtime's optimiser writes it."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        if node.output[0] == "raw":
            node.op_type, node.domain = "FusedMatMul", "com.microsoft"
            told = {"alpha": 0.35355338, "transA": 0, "transB": int(turned), "transBatchA": 0, "transBatchB": 0}
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in told.items())
        elif node.output[0] == "s":
            node.op_type = "Identity"
            del node.input[1]
        elif node.output[0] == "k" and turned:
            node.attribute[0].ints[:] = [0, 2, 1, 3]
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)


@pytest.mark.parametrize("form", ["as exported", "scaled", "scaled and turned"])
def test_heads_of_low_rank_lose_the_rest_unnoticed(tmp_path: Path, form: str) -> None:
    path = model(tmp_path)
    if form != "as exported":
        scaled_by_the_runtime(path, form.endswith("turned"))
    subject = Subject.load(path)
    pairs, values = (g for g in subject.structure.groups if g.kind == "head_dims")
    assert pairs.readers[0].weight is None and values.readers[0].weight == "wo"
    low = {g.id: tuple(8 * h + d for h in (0, 1) for d in range(r)) for g, r in ((pairs, QK), (values, VO))}
    costs = Costs(subject.model, subject.structure, {"N": 1, "T": 5})
    share = costs.macs(Plan(subject.structure.digest, low)) / costs.macs()
    result = onnxprune.prune(
        path, flops=share + 1e-6, calibration=rows(), units=("head_ranks",), round_to=1, compensate=False,
        shape={"N": 1, "T": 5}, measure_latency=False,
    )  # fmt: skip
    assert {k: tuple(v) for k, v in result.plan.keep.items()} == low
    feeds = {"x": RNG.standard_normal((2, 7, 16), dtype=np.float32)}
    assert distance(in_runtime(result.model, feeds), in_runtime(path, feeds)) < 1e-4


def test_a_plan_of_rotated_heads_is_repeated_without_data(tmp_path: Path) -> None:
    path = model(tmp_path)
    result = onnxprune.prune(
        path, tmp_path / "small.onnx", flops=0.7, calibration=rows(), units=("heads", "head_ranks", "blocks"),
        measure_latency=False,
    )  # fmt: skip
    onnxprune.apply(path, Plan.load(tmp_path / "small.plan.json"), tmp_path / "again.onnx")
    feeds = {"x": RNG.standard_normal((2, 7, 16), dtype=np.float32)}
    assert {"wq", "wk", "wv", "wo", "bq", "bk", "bv"} <= set(result.plan.weights)
    assert distance(in_runtime(tmp_path / "again.onnx", feeds), in_runtime(tmp_path / "small.onnx", feeds)) < 1e-6


@pytest.mark.parametrize(
    ("scaled", "wk", "why"),
    [
        ("Mul(q0, gain)", "wk", "tells them apart"),  # a norm's gain, or an angle of rotary positions
        ("Softmax(q0)", "wk", None),  # pinned: no group at all
        ("Relu(q0)", "wk", "tells them apart"),
        ("Add(q0, root)", "wk", "tells them apart"),  # the same number on all, in whatever basis
    ],
)
def test_what_holds_a_basis(tmp_path: Path, scaled: str, wk: str, why: str | None) -> None:
    subject = Subject.load(model(tmp_path, scaled, wk))
    found = [g for g in subject.structure.groups if g.kind == "head_dims" and g.readers[0].weight is None]
    values = next(g for g in subject.structure.groups if g.kind == "head_dims" and g.readers[0].weight == "wo")
    assert rotatable(subject.model.graph, subject.structure, values)
    assert bool(found) == (why is not None)
    for group in found:
        with pytest.raises(Held, match=why):
            basis_of(subject.model.graph, subject.structure, group)


def test_queries_that_are_their_own_keys_keep_their_basis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One weight for both sides (Reformer): a basis and its inverse transpose cannot both be in it."""
    path = model(tmp_path, wk="wq")
    with caplog.at_level("INFO"):
        result = onnxprune.prune(
            path, flops=0.8, calibration=rows(), units=("head_dims",), compensate=False, measure_latency=False
        )
    assert "makes queries and keys with the same numbers" in caplog.text
    feeds = {"x": RNG.standard_normal((2, 7, 16), dtype=np.float32)}
    assert distance(in_runtime(result.model, feeds), in_runtime(path, feeds)) < 1
