"""Sizes at which costs are counted come from the rows, whatever these hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from graphs import written

import onnxprune

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 6] x, float[k] unused) => (float[n, 3] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }
"""


def test_an_input_that_nothing_reads_may_be_empty(tmp_path: Path) -> None:
    model = written(tmp_path, TEXT, {"a": (6, 32), "b": (32, 3)})
    rng = np.random.default_rng(0)
    rows = [{"x": rng.normal(size=(1, 6)).astype(np.float32), "unused": np.zeros(0, np.float32)} for _ in range(12)]
    asked = {"flops": 0.6, "units": ("neurons",), "round_to": 1, "compensate": False, "measure_latency": False}
    result = onnxprune.prune(model, tmp_path / "small.onnx", calibration=rows, **asked)  # type: ignore[arg-type]
    assert result.report.flops.ratio <= 0.6


def test_what_is_thrown_away_has_no_place(tmp_path: Path) -> None:
    model = written(tmp_path, TEXT, {"a": (6, 32), "b": (32, 3)})
    result = onnxprune.prune(model, params=0.7, method="magnitude", units=("neurons",), shape={"n": 1, "k": 1})
    assert result.files == ()
    assert not result.report.model.pruned_path
