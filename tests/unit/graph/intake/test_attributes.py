"""Attributes that would end the libraries are refused with their node, before a library counts with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import perceptron
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import model as models


@pytest.mark.parametrize("equation", ["......i->i", "....i->i", "i...j...->i", "......", "bi,->b", "bi->->b", "b1->b"])
def test_equations_that_libraries_do_not_come_back_from_are_refused(tmp_path: Path, equation: str) -> None:
    model = perceptron.perceptron()
    model.graph.node.append(helper.make_node("Einsum", ["x"], ["spare"], equation=equation))
    perceptron.write(tmp_path / "model.onnx", model)
    with pytest.raises(ModelError, match="is no equation of its 1 inputs"):
        models.load(tmp_path / "model.onnx")
    model.graph.node[-1].attribute[0].s = b"...i -> ..."
    perceptron.write(tmp_path / "model.onnx", model)
    models.load(tmp_path / "model.onnx")


def test_bodies_take_and_give_what_is_handed_on(tmp_path: Path) -> None:
    abs_ = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["b"])], "body", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    for operator, inputs, stated, told in (
        ("If", ["c"], {"then_branch": abs_}, "it has no else_branch"),
        ("If", ["c"], {"then_branch": abs_, "else_branch": helper.make_graph([], "none", [], [])}, "gives 0 values"),
        ("Loop", ["n", "c", "x"], {"body": abs_}, "its body takes 0 values, where it hands it 3"),
        ("Scan", ["x"], {"body": abs_, "num_scan_inputs": 9}, "num_scan_inputs 9, where it has 1 inputs"),
    ):
        model = perceptron.perceptron()
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(3), "n"))
        model.graph.node.append(helper.make_node(operator, inputs, ["spare"], **stated))
        perceptron.write(tmp_path / "model.onnx", model)
        with pytest.raises(ModelError, match=told):
            models.load(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("operator", "inputs", "stated", "told"),
    [
        ("LayerNormalization", ["x", "scale"], {"axis": 2**31}, "axis 2147483648 is no dimension"),
        ("GatherND", ["x", "index"], {"batch_dims": -2}, "batch_dims -2 is below zero"),
        ("Split", ["x"], {"num_outputs": 1}, "num_outputs 1, where it has 2"),
        ("Transpose", ["x"], {"perm": [0, -(2**63)]}, "perm -9223372036854775808 is no dimension"),
    ],
)
def test_attributes_that_end_libraries_are_refused(
    tmp_path: Path, operator: str, inputs: list[str], stated: dict[str, Any], told: str
) -> None:
    """onnx's inference dies of the first three with SIGSEGV or SIGABRT."""
    model = perceptron.perceptron()
    model.opset_import[0].version = 18
    model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int64), "index"))
    outputs = ["spare", "more"] if operator == "Split" else ["spare"]
    model.graph.node.append(helper.make_node(operator, inputs, outputs, **stated))
    perceptron.write(tmp_path / "model.onnx", model)
    with pytest.raises(ModelError, match=told):
        models.load(tmp_path / "model.onnx")
