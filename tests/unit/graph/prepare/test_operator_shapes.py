"""Shapes of operators that the libraries' inference gets wrong, or does not know, against ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.values import dims
from onnxprune.measure.cost import Costs

H = onnx.helper


def _model(file: Path, nodes: list[Any], weights: dict[str, np.ndarray], x: list[Any], y: list[Any] | None) -> Path:
    held = [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()]
    ends = [H.make_tensor_value_info("y", 1, y)]
    graph = H.make_graph(nodes, "g", [H.make_tensor_value_info("x", 1, x)], ends, held)
    sets = [H.make_opsetid("", 17), H.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(H.make_model(graph, opset_imports=sets, ir_version=9), file)
    return file


def _drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("equation", "weight"),
    [("...d,df->...f", (8, 12)), ("...d,...df->...f", (1, 8, 12)), ("btd,dz", (8, 12)), ("btd,da->bta", (8, 12))],
)
def test_an_einsum_has_the_shape_that_it_gives(tmp_path: Path, equation: str, weight: tuple[int, ...]) -> None:
    """The library takes an ellipsis of the last operand, and what it then meets for equal."""
    nodes = [
        H.make_node("Einsum", ["x", "w"], ["h"], equation=equation),
        H.make_node("Relu", ["h"], ["r"]),
        H.make_node("Einsum", ["r", "v"], ["o"], equation="...f,fd->...d"),
        H.make_node("Add", ["x", "o"], ["y"]),
    ]
    path = _model(tmp_path / "m.onnx", nodes, {"w": _drawn(*weight), "v": _drawn(12, 8)}, ["b", "t", 8], ["b", "t", 8])
    model = models.load(path)
    shapes = {v.name: dims(v) for node in model.graph for v in node.outputs}
    assert shapes == {"h": ("b", "t", 12), "r": ("b", "t", 12), "o": ("b", "t", 8), "y": ("b", "t", 8)}
    assert Costs(model, analyze(model), {"b": 2, "t": 5}).macs() == 2 * 2 * 5 * 8 * 12


def test_letters_that_no_arrow_orders_come_by_the_alphabet(tmp_path: Path) -> None:
    nodes = [H.make_node("Einsum", ["x", "w"], ["y"], equation="zc,ca")]
    path = _model(tmp_path / "m.onnx", nodes, {"w": _drawn(8, 12)}, ["b", 8], None)
    (node,) = models.load(path).graph
    assert dims(node.outputs[0]) == (12, "b")
    assert runtime.run(runtime.session(path), {"x": _drawn(3, 8)})["y"].shape == (12, 3)


@pytest.mark.parametrize("onesided", [None, 0, 1])
def test_a_spectrum_has_half_the_bins_by_default(tmp_path: Path, onesided: int | None) -> None:
    told: dict[str, Any] = {} if onesided is None else {"onesided": onesided}
    nodes = [H.make_node("STFT", ["x", "step", "", "length"], ["y"], **told)]
    sizes = {"step": np.array(4), "length": np.array(8)}
    path = _model(tmp_path / "m.onnx", nodes, sizes, ["b", 40, 1], None)
    (node,) = models.load(path).graph
    found = runtime.run(runtime.session(path), {"x": _drawn(3, 40, 1)})["y"].shape
    assert dims(node.outputs[0]) == ("b", *found[1:])


def test_a_perceptron_behind_scikit_learns_scaler_can_be_cut(tmp_path: Path) -> None:
    """No library tells the shape of what the machine learning domain computes: the node is run."""
    nodes = [
        H.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.1] * 8, scale=[0.5] * 8),
        H.make_node("MatMul", ["s", "w"], ["h"]),
        H.make_node("Relu", ["h"], ["r"]),
        H.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    path = _model(tmp_path / "m.onnx", nodes, {"w": _drawn(8, 24), "v": _drawn(24, 3)}, ["n", 8], ["n", 3])
    model = models.load(path)
    assert dims(model.graph[0].outputs[0]) == ("n", 8)
    assert [group.size for group in analyze(model).groups] == [24]
