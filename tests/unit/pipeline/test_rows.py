"""Sizes at which costs are counted come from the rows, whatever these hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.graph import model as models
from onnxprune.pipeline.rows import shape_of

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


def test_sizes_to_state_leave_out_sums_of_others(tmp_path: Path) -> None:
    """past and new are each 128: their sum follows, and is not 128, too."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
cached (float[batch, past, 4] cache, float[batch, new, 4] x) => (float[batch, all, 4] y) {
    y = Concat<axis = 1>(cache, x)
}"""
    path = written(tmp_path, text, {})
    proto = onnx.load(path)
    mask = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch", "past + new"])
    proto.graph.input.append(mask)
    onnx.save(proto, path)
    with pytest.raises(UsageError, match=r"--shape new=128,past=128$"):
        shape_of(models.load(path), {}, None)
    assert shape_of(models.load(path), {"new": 3, "past": 4}, None)["past + new"] == 7
