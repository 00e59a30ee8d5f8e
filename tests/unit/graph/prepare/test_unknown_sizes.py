"""Sizes that a file leaves open in one way or another are unknown, and stay open in what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import sympy
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.values import dims


def convolutions(path: Path, shape: list[Any]) -> Path:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    weights = [("w1", (16, 3, 3, 3)), ("w2", (4, 16, 3, 3))]
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 4, 1, 1])],
        [numpy_helper.from_array(0.1 * rng.standard_normal(s).astype(np.float32), n) for n, s in weights],
        value_info=[helper.make_tensor_value_info("r", TensorProto.FLOAT, [-1, 16, -1, 0])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "shape", [[-1, 3, -1, -1], [0, 3, 0, 0], [None, 3, None, None], ["?", 3, "?", "?"], ["", 3, "None", "-1"]]
)
def test_open_sizes_have_names_of_their_own(tmp_path: Path, shape: list[Any]) -> None:
    model = models.load(convolutions(tmp_path / "model.onnx", shape))
    assert model.inputs[0].shape == ("batch", 3, "x_dim_2", "x_dim_3")
    structure = analyze(model)
    assert [(g.kind, g.size) for g in structure.groups] == [("channels", 16)]
    assert structure.batch is not None
    between = next(n.outputs[0] for n in model.graph if n.op_type == "Relu")
    assert dims(between) == ("batch", 16, "x_dim_2", "x_dim_3")


@pytest.mark.parametrize("batch", [-1, "?", None])
def test_what_is_open_stays_open(tmp_path: Path, batch: Any) -> None:
    path = convolutions(tmp_path / "model.onnx", [batch, 3, "height", -1])
    rows = [{"x": np.random.default_rng(i).standard_normal((1, 3, 8, 8)).astype(np.float32)} for i in range(8)]
    result = onnxprune.prune(path, flops=0.7, calibration=rows, units=("channels",), measure_latency=False)
    models.save(result.model, tmp_path / "pruned.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["?" if batch == "?" else None, 3, "height", None]
    (found,) = session.run(None, {"x": np.zeros((2, 3, 5, 6), np.float32)})
    assert found.shape == (2, 4, 1, 1)


def test_named_rows_are_those_of_all_inputs(tmp_path: Path) -> None:
    named: list[tuple[str, list[Any]]] = [("a", ["N", 4]), ("b", [None, 4]), ("c.1", [-1]), ("1d", [2, -1])]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in named]
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Relu", ["c.1"], ["z"])]
    nodes.append(helper.make_node("Relu", ["1d"], ["u"]))
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yzu"]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(proto, tmp_path / "model.onnx")
    found = [spec.shape for spec in models.load(tmp_path / "model.onnx").inputs]
    assert found == [("N", 4), ("N", 4), ("c_1_dim_0",), (2, "d1d_dim_1")]


def test_sizes_behind_a_resize_are_not_simplified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simplifying each product of a pyramid's sizes took most of the time a detector took to load."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": 0.1 * rng.standard_normal((4, 4, 3, 3)).astype(np.float32) for i in range(4)}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        helper.make_node("Conv", [f"p{i}", f"w{i}"], [f"p{i + 1}"], pads=[1] * 4, strides=[2, 2]) for i in range(4)
    ]
    for i in range(4, 1, -1):
        source = f"p{i}" if i == 4 else f"u{i}"
        nodes.append(helper.make_node("Resize", [source, "", "scales"], [f"s{i}"], mode="nearest"))
        nodes.append(helper.make_node("Add", [f"s{i}", f"p{i - 1}"], [f"u{i - 1}"]))
    graph = helper.make_graph(
        nodes,
        "pyramid",
        [helper.make_tensor_value_info("p0", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("u1", TensorProto.FLOAT, ["n", 4, "oh", "ow"])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )

    def simplify(*args: Any, **options: Any) -> None:
        raise AssertionError("a size was simplified")

    monkeypatch.setattr(sympy, "simplify", simplify)
    model = models.load(tmp_path / "model.onnx")
    resized = next(n.outputs[0] for n in model.graph if n.op_type == "Resize")
    assert dims(resized) is not None
    assert None not in (dims(resized) or (None,))


def test_the_rows_of_a_state_are_on_its_second_axis(tmp_path: Path) -> None:
    """A streaming model whose file leaves all sizes open: [layers, rows, width] beside [rows, samples]."""
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 0, 8]) for name in ("state", "rate_table")]
    graph = helper.make_graph(
        [helper.make_node("Identity", [n], [o]) for n, o in (("input", "y"), ("state", "next"), ("rate_table", "z"))],
        "open",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [0, 0]), *state],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "next", "z")],
    )
    path = tmp_path / "open.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), path)
    shapes = {spec.name: spec.shape for spec in models.load(path).inputs}
    assert shapes == {
        "input": ("batch", "input_dim_1"),
        "state": (2, "batch", 8),
        "rate_table": (2, "rate_table_dim_1", 8),
    }
