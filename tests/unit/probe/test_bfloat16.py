"""Graphs in bfloat16, most kernels of which ONNX Runtime's CPU provider lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from graphs import written
from plans import Subject, random_plan

import onnxprune
from onnxprune.graph import model as models
from onnxprune.probe.interpreter import Interpreter

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
block (float[N, T, 8] x, float[8, 24] qkv, float[24] bias, float[8, 8] o, float[8] s, float[8] b, float[8, 16] up,
       float[16, 8] down) => (float[N, T, 8] y) {
    three = Constant<value_ints = [0, 0, 2, 4]>()
    flat = Constant<value_ints = [0, 0, 8]>()
    packed = MatMul(x, qkv)
    biased = Add(packed, bias)
    q, k, v = Split<axis = 2>(biased, sizes)
    qs = Reshape(q, three)
    ks = Reshape(k, three)
    vs = Reshape(v, three)
    qt = Transpose<perm = [0, 2, 1, 3]>(qs)
    kt = Transpose<perm = [0, 2, 3, 1]>(ks)
    vt = Transpose<perm = [0, 2, 1, 3]>(vs)
    scores = MatMul(qt, kt)
    p = Softmax(scores)
    m = MatMul(p, vt)
    mt = Transpose<perm = [0, 2, 1, 3]>(m)
    joined = Reshape(mt, flat)
    out = MatMul(joined, o)
    z = Add(x, out)
    n = LayerNormalization(z, s, b)
    h = MatMul(n, up)
    a = Relu(h)
    w = MatMul(a, down)
    y = Add(z, w)
}
""".replace("    three =", "    sizes = Constant<value_ints = [8, 8, 8]>()\n    three =")
SHAPES = {"qkv": (8, 24), "bias": (24,), "o": (8, 8), "s": (8,), "b": (8,), "up": (8, 16), "down": (16, 8)}


def narrowed(path: Path) -> Path:
    """The same file with every float32 tensor in bfloat16."""
    proto = onnx.load(path)
    kind = onnx.TensorProto.BFLOAT16
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).to(torch.bfloat16)
            raw = values.view(torch.int16).numpy().tobytes()
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=kind, dims=tensor.dims, raw_data=raw))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = kind
    onnx.save(proto, path)
    return path


def test_a_graph_in_bfloat16_is_cut_as_any_other(tmp_path: Path) -> None:
    subject = Subject.load(narrowed(written(tmp_path, TEXT, SHAPES)))
    assert {g.kind: g.shape for g in subject.structure.groups} == {
        "head_dims": (2, 4), "heads": (2,), "neurons": (16,),
    }  # fmt: skip
    feeds = {"x": torch.randn((2, 5, 8), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)}
    for seed in range(4):
        plan = random_plan(subject, np.random.default_rng(seed))
        with torch.inference_mode():
            plan = subject.gates.complete(plan, feeds)
            gated = subject.gates.gated(plan)
            expected = subject.interpreter.run(feeds, weights=gated.weights, edit=gated.edit)["y"].float()
            # What is written reads as what it is.
            (file, *_) = models.save(subject.rewritten(plan), tmp_path / "cut.onnx")
            cut = models.load(file)
            found = Interpreter(cut.graph).run(feeds)["y"].float()
        kinds = {
            v.dtype for v in cut.graph.initializers.values() if v.dtype is not None and v.dtype.is_floating_point()
        }
        assert kinds == {ir.DataType.BFLOAT16}
        assert float((found - expected).abs().max() / expected.abs().max()) < 4e-2


def test_a_file_in_bfloat16_is_pruned_and_checked_in_single_precision(tmp_path: Path) -> None:
    file = narrowed(written(tmp_path, TEXT, SHAPES))
    rng = np.random.default_rng(0)
    rows = [{"x": rng.normal(size=(5, 8)).astype(np.float32)} for _ in range(24)]
    small = tmp_path / "small.onnx"
    result = onnxprune.prune(file, small, flops=0.7, calibration=rows, round_to=1, measure_latency=False)
    assert result.report.flops.ratio <= 0.7
    assert any("bfloat16" in said for said in result.report.warnings)
    kinds = {t.data_type for t in onnx.load(small).graph.initializer} - {onnx.TensorProto.INT64}
    assert kinds == {onnx.TensorProto.BFLOAT16}
