"""Sizes that weights tell: of channels and features, whatever the exporter called them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import perceptron
import pytest
from graphs import written

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.sizes_told import sizes_told
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import default_bindings
from onnxprune.measure.runnable_sizes import MOST, runnable

HEAD = '<ir_version: 9, opset_import: ["" : 17]> net '


@pytest.mark.parametrize(
    ("text", "weights", "sizes"),
    [
        (
            "(float[N, C, H, W] x, float[8, 3, 2, 2] w) => (float[N, 8, P, Q] y) { y = Conv(x, w) }",
            {"w": (8, 3, 2, 2)},
            {"C": 3},
        ),
        (
            "(float[N, C, L] x, float[8, 2, 2] w) => (float[N, 8, P] y) { y = Conv <group = 4> (x, w) }",
            {"w": (8, 2, 2)},
            {"C": 8},
        ),
        (
            "(float[N, H, W, C] x, float[1] s, float[8, 3, 2, 2] w) => (float[N, 8, P, Q] y) "
            "{ d = Div(x, s) t = Transpose <perm = [0, 3, 1, 2]> (d) y = Conv(t, w) }",
            {"s": (1,), "w": (8, 3, 2, 2)},
            {"C": 3},
        ),
        ("(float[N, T, D] x, float[6, 4] w) => (float[N, T, 4] y) { y = MatMul(x, w) }", {"w": (6, 4)}, {"D": 6}),
        ("(float[N, D] x, float[4, 6] w) => (float[N, 4] y) { y = Gemm <transB = 1> (x, w) }", {"w": (4, 6)}, {"D": 6}),
        ("(float[N, T, D] x) => (float[N, T, D] y) { y = Relu(x) }", {}, {}),
    ],
)  # fmt: skip
def test_the_weights_tell(
    tmp_path: Path, text: str, weights: dict[str, tuple[int, ...]], sizes: dict[str, int]
) -> None:
    dense = models.load(written(tmp_path, HEAD + text, weights))
    assert sizes_told(dense.graph) == sizes
    assert default_bindings(dense, {}) == {"N": 1, **sizes}
    assert default_bindings(dense, {"N": 2, **dict.fromkeys(sizes, 5)}) == {"N": 2, **dict.fromkeys(sizes, 5)}


def test_no_more_is_made_up_than_there_is_time_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that no size fits is not run on cubes of 16,000."""
    text = "(float[N, A, B, D] x, float[7, 7, 7] w) => (float[N, 7, 7, 7] y) { y = Add(x, w) }"
    dense = models.load(written(tmp_path, HEAD + text, {"w": (7, 7, 7)}))
    tried: list[int] = []

    def recorded(inputs: Any, *, dims: dict[str, int]) -> Any:
        tried.append(dims["A"] * dims["B"] * dims["D"])
        return {"x": np.zeros((1, 1, 1, 2), np.float32)}

    monkeypatch.setattr("onnxprune.measure.runnable_sizes.synthesize", recorded)
    assert runnable(dense, {}, 128)["A"] == 128
    assert tried and max(tried) <= MOST


@pytest.mark.parametrize("method", ["obs", "magnitude"])
def test_a_width_that_the_exporter_left_open_is_the_weights(tmp_path: Path, method: str) -> None:
    """Residual blocks on an input whose features have a name, as an export with all axes dynamic writes them."""
    model = perceptron.perceptron()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    file, rows = perceptron.write(tmp_path / "m.onnx", model), perceptron.write_rows(tmp_path / "rows.jsonl")
    kept = {g.kind: g.shape for g in analyze(models.load(file)).groups}
    assert kept == {"neurons": (16,)}
    made = onnxprune.prune(file, tmp_path / "o.onnx", flops=0.6, method=method, calibration=rows, measure_latency=False)
    assert made.report.flops.ratio <= 0.6
    (given,) = onnx.load(tmp_path / "o.onnx").graph.input
    assert given.type.tensor_type.shape.dim[1].dim_param == "features"
