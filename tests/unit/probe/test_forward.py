"""What runs over rows tell: how much each token matters to the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import written
from plans import Subject
from zoo import ZooModel

import onnxprune
from onnxprune import data
from onnxprune.data import read
from onnxprune.graph.structure.reading_matrices import matrices
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe.forward import Rows
from onnxprune.probe.gate_gradients import sensitivities


def test_the_token_that_is_read_is_the_one_that_matters(zoo: Callable[..., ZooModel]) -> None:
    """A classifier that reads one token: in its last layer no other counts; weights have mean one over all tokens."""
    model = zoo("bert", "torchscript", "eager")
    subject = Subject.load(model.path)
    rows = data.read(
        [model.sample(1, tokens=4 + i % 2, seed=i) for i in range(6)],
        subject.model.inputs, outputs=subject.model.outputs,
    )  # fmt: skip
    sites = [s for s in find_sites(subject.model.graph, subject.structure) if s.group.kind == "neurons"]
    matrices = [m for s in sites for m in s.matrices]
    found = sensitivities(Rows(subject.interpreter, rows), matrices, subject.gates.usages)
    first, last = (found[sites[i].matrices[0].reader.node] for i in (0, -2))
    assert len(found) == len(matrices)
    for parts in found.values():
        assert float(torch.cat(parts).mean()) == pytest.approx(1.0, rel=1e-4)
    assert all((part > 0).all() for part in first)
    for part, tokens in zip(last, (4, 5), strict=True):
        read = part.reshape(3, tokens)
        assert (read[:, 0] > 0).all() and not read[:, 1:].any()


def test_what_leads_to_outputs_that_do_not_count_weighs_nothing(tmp_path: Path) -> None:
    """A matrix whose result only a label is made of: no gradient gets there, and none is asked for."""
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    net (float[N, 4] x, float[4, 16] up, float[16, 3] down, float[16, 5] other) => (float[N, 3] y, int64[N, 1] label) {
        h = MatMul(x, up)
        a = Relu(h)
        y = MatMul(a, down)
        z = MatMul(a, other)
        label = ArgMax <axis = 1> (z)
    }
    """
    subject = Subject.load(written(tmp_path, text, {"up": (4, 16), "down": (16, 3), "other": (16, 5)}))
    rng = np.random.default_rng(0)
    rows = Rows(subject.interpreter, read([{"x": rng.standard_normal(4)} for _ in range(9)], subject.model.inputs))
    (group,) = subject.structure.groups
    found = matrices(subject.model.graph, subject.structure, group)
    assert found is not None
    weights = sensitivities(rows, found, subject.gates.usages)
    assert list(weights) == [m.reader.node for m in found if m.output == "y"]


@pytest.mark.parametrize("every", [False, True])
def test_tokens_whose_gradient_is_not_finite_count_as_any_other(tmp_path: Path, every: bool) -> None:
    """A root of zero has no slope: that of a row of zeros, or of a unit that is zero in every row."""
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    rooted (float[N, 4] x, float[4, 16] up, float[16, 8] mid, float[8, 3] down) => (float[N, 3] y) {
        h = MatMul(x, up)
        a = Relu(h)
        m = MatMul(a, mid)
        q = Mul(m, m)
        s = Sqrt(q)
        y = MatMul(s, down)
    }
    """
    path = written(tmp_path, text, {"up": (4, 16), "mid": (16, 8), "down": (8, 3)})
    if every:
        proto = onnx.load(path)
        weight = next(w for w in proto.graph.initializer if w.name == "mid")
        array = onnx.numpy_helper.to_array(weight).copy()
        array[:, 3] = 0
        weight.CopyFrom(onnx.numpy_helper.from_array(array, "mid"))
        onnx.save(proto, path)
    subject = Subject.load(path)
    rng = np.random.default_rng(0)
    examples = [{"x": rng.standard_normal(4).astype(np.float32) * (every or i % 8 > 0)} for i in range(24)]
    rows = Rows(subject.interpreter, read(examples, subject.model.inputs))
    found = [m for s in find_sites(subject.model.graph, subject.structure) for m in s.matrices]
    weights = sensitivities(rows, found, subject.gates.usages)
    assert all(bool(part.isfinite().all()) for parts in weights.values() for part in parts)
    assert weights.keys() == {m.reader.node for m in found if m.output == "y" or not every}
    result = onnxprune.prune(path, flops=0.7, calibration=examples, round_to=1, measure_latency=False)
    assert result.report.flops.ratio <= 0.7


def test_small_gradients_in_half_precision_weigh_as_in_single(tmp_path: Path) -> None:
    """The square of a slope of 1e-4 is nothing in half precision; over nothing, weights were no numbers."""
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    net (float[N, 4] x, float[4, 16] up, float[16, 3] down) => (float[N, 3] y) {
        h = MatMul(x, up)
        a = Relu(h)
        z = MatMul(a, down)
        y = Softmax(z)
    }
    """
    path = written(tmp_path, text, {"up": (4, 16), "down": (16, 3)})
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for weight in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(weight) * (1e-4 if weight.name == "down" else 1)
        weight.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), weight.name))
    onnx.save(proto, path)
    subject = Subject.load(path)
    rng = np.random.default_rng(0)
    examples = read([{"x": rng.standard_normal(4).astype(np.float16)} for _ in range(20)], subject.model.inputs)
    (linear,) = [m for s in find_sites(subject.model.graph, subject.structure) for m in s.matrices]
    up = replace(linear, output="h")
    weights = sensitivities(Rows(subject.interpreter, examples), [up], subject.gates.usages)
    found = torch.cat([part for parts in weights.values() for part in parts])
    assert found.isfinite().all() and float(found.mean()) == pytest.approx(1.0, rel=1e-3)
