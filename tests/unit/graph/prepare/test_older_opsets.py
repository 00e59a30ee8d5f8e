"""Files from before operator set 11 are brought up to date, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from plans import Subject, distance, in_runtime

import onnxprune
from onnxprune.errors import UnsupportedError
from onnxprune.graph import model as models


def older(path: Path, opset: int, *extra: Any, ir_version: int = 3) -> Path:
    """A convolutional net as frameworks wrote them: weights among the inputs, attributes where inputs are now."""
    rng = np.random.default_rng(0)
    weights = {"w1": (8, 3, 3, 3), "w2": (4, 8, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Clip", ["a"], ["b"], min=0.0, max=6.0),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Squeeze", ["p"], ["y"], axes=[2, 3]),
        *extra,
    ]
    held = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 5, n) for n, s in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in weights.items()]
    graph = helper.make_graph(
        nodes, "older", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])], held
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_is_brought_up_to_date(tmp_path: Path, opset: int) -> None:
    path = older(tmp_path / "model.onnx", opset)
    subject = Subject.load(path)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    assert distance(subject.dense(feeds), in_runtime(path, feeds)) < 1e-5
    assert [(g.kind, g.size) for g in subject.structure.groups] == [("channels", 8)]
    assert subject.model.opset == 13
    assert str(opset) in subject.model.said[0]


def test_is_pruned_and_said(tmp_path: Path) -> None:
    path = older(tmp_path / "model.onnx", 9)
    rows = [{"x": np.random.default_rng(i).standard_normal((1, 3, 6, 6)).astype(np.float32)} for i in range(8)]
    result = onnxprune.prune(path, flops=0.7, calibration=rows, round_to=1, measure_latency=False)
    assert list(result.plan.keep) == ["channels.0"]
    assert "opset 9 was brought to 13" in " ".join(result.report.warnings)


def test_what_cannot_be_converted_is_refused_in_words(tmp_path: Path) -> None:
    path = older(tmp_path / "model.onnx", 9, helper.make_node("Mystery", ["y"], ["z"]))
    with pytest.raises(UnsupportedError, match=r"model\.onnx: opset 9 .* export the model anew"):
        models.load(path)


def test_what_is_older_still_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="opset 6 of the default domain; 7 to"):
        models.load(older(tmp_path / "model.onnx", 6))
