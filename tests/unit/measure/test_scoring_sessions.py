"""Models whose outputs are answers alone: the scores behind them are compared, and the answers are given as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import written

import onnxprune

HEAD = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>\n'
BODY = "h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)"
WEIGHTS = {"a": (6, 48), "b": (48, 4)}
ANSWERS = {
    "argmax": f"g (float[n, 6] x) => (int64[n] y) {{ {BODY}  y = ArgMax <axis = 1, keepdims = 0> (z) }}",
    "above": f"""g (float[n, 6] x) => (int32[n, 4] y)
        {{ {BODY}  s = Sigmoid(z)  k = Constant <value_float = 0.5> ()  c = Greater(s, k)  y = Cast <to = 6> (c) }}""",
}


def _rows(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 6), dtype=np.float32)} for _ in range(count)]


@pytest.mark.parametrize("kind", ANSWERS)
def test_scores_behind_answers_are_compared(tmp_path: Path, kind: str) -> None:
    file = written(tmp_path, HEAD + ANSWERS[kind], WEIGHTS, check=False)
    result = onnxprune.prune(file, flops=0.5, calibration=_rows(48), evaluation=_rows(24), measure_latency=False)
    assert result.report.drift is not None
    assert "scores of y" in result.report.drift.measure
    assert [o.name for o in _outputs(result, tmp_path)] == ["y"]


def test_a_map_beside_a_label_is_kept(tmp_path: Path) -> None:
    ends = "p = Softmax <axis = 1> (z)  label = ArgMax <axis = 1, keepdims = 0> (p)"
    text = f"g (float[n, 6] x) => (int64[n] label, float[n, 4] p) {{ {BODY}  {ends} }}"
    file = written(tmp_path, HEAD + text, WEIGHTS, check=False)
    model = onnx.load(file)
    h = onnx.helper
    model.graph.node.append(h.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=range(4)))
    kind = h.make_map_type_proto(onnx.TensorProto.INT64, h.make_tensor_type_proto(1, []))
    model.graph.output[1].CopyFrom(h.make_value_info("maps", h.make_sequence_type_proto(kind)))
    onnx.save(model, file)
    result = onnxprune.prune(file, flops=0.5, calibration=_rows(48), evaluation=_rows(24), measure_latency=False)
    assert result.report.drift is not None
    result.save(tmp_path / "small.onnx")
    found = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, _rows(1)[0])
    assert set(found[1][0]) == set(range(4))
    assert sum(found[1][0].values()) == pytest.approx(1, abs=1e-5)


def _outputs(result: onnxprune.Result, folder: Path) -> list[onnx.ValueInfoProto]:
    result.save(folder / "small.onnx")
    return list(onnx.load(folder / "small.onnx").graph.output)
