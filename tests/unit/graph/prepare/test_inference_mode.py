"""What training leaves in a graph: folded where it does nothing, refused where it draws or looks at the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from graphs import written

from onnxprune.errors import UnsupportedError
from onnxprune.graph import model as models

TEXT = """
<ir_version: 8, opset_import: ["" : %s]>
g (float[n, 6, 4, 4] x) => (float[n, 3, 4, 4] y)
<float half = {0.5}, float none = {0}, bool on = {1}, bool off = {0}, float[6] ones = {1, 1, 1, 1, 1, 1},
 float[6] zeros = {0, 0, 0, 0, 0, 0}>
{ %s  y = Conv(h, w) }
"""
NORM = "BatchNormalization <training_mode = %s> (x, ones, zeros, zeros, ones)"


def _load(folder: Path, nodes: str, opset: int = 17) -> models.Model:
    return models.load(written(folder, TEXT % (opset, nodes), {"w": (3, 6, 1, 1)}))


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        (f"h, mean, variance = {NORM % 1}", r"BatchNormalization, opset 17\) is in training mode.*rows beside it"),
        ("h = Dropout(x, half, on)", r"Dropout, opset 17\) is in training mode.*no two runs"),
        ("h = Dropout(x, , on)", r"Dropout, opset 17\) is in training mode"),
        ("e = RandomNormalLike(x)  h = Add(x, e)", r"RandomNormalLike, opset 17\) draws random numbers"),
        ("e = RandomUniform <shape = [4]> ()  h = Add(x, e)", r"RandomUniform, opset 17\) draws"),
        ("s = Sigmoid(x)  e = Bernoulli(s)  h = Mul(x, e)", r"Bernoulli, opset 17\) draws"),
        (
            "m = ReduceMax <keepdims = 0> (x)  c = Greater(m, none)  "
            "h = If (c) <then_branch = a () => (p) { e = RandomNormalLike(x)  p = Add(x, e) }, "
            "else_branch = b () => (q) { q = Identity(x) }>",
            r"RandomNormalLike, opset 17\) draws",
        ),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, nodes: str, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        _load(tmp_path, nodes)


@pytest.mark.parametrize(
    "nodes",
    [
        f"h = {NORM % 0}",
        "h = Dropout(x, half)",
        "h = Dropout(x, half, off)",
        "h, mask = Dropout(x, none, on)",
        "e = RandomNormalLike(x)  h = Neg(x)",  # nobody reads it
    ],
)
def test_what_does_nothing_is_no_obstacle(tmp_path: Path, nodes: str) -> None:
    dense = _load(tmp_path, nodes)
    models.save(dense.ir, tmp_path / "again.onnx")
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 4)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("model.onnx", "again.onnx")
    )
    np.testing.assert_allclose(before, after, rtol=1e-5)
