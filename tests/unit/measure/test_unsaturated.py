"""Copies of quantised files that no processor saturates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantised_by_runtime import by_runtime
from quantised_graphs import FORMS, convolutions, mlp

from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.measure.unsaturated import unsaturated
from onnxprune.probe.interpreter import Interpreter


@pytest.mark.parametrize("how", ["dynamic", "integers-unsigned"])
def test_it_computes_what_the_file_says(how: str, tmp_path: Path) -> None:
    rows = [{"x": np.random.default_rng(i).normal(size=(2, 3, 16)).astype(np.float32)} for i in range(3)]
    file = by_runtime(how, mlp(tmp_path / "float.onnx", FORMS["plain"]), rows)
    copy = unsaturated(file)
    assert copy is not None
    (found,) = runtime.run(runtime.session(copy, optimization="basic"), rows[0]).values()
    (told,) = Interpreter(models.load(file).graph).run(rows[0]).values()
    assert np.abs(found - told.numpy()).max() < 1e-2 * np.abs(found).max()
    kinds = {t.name: t.data_type for t in onnx.load_from_string(copy).graph.initializer}
    products = [n for n in onnx.load_from_string(copy).graph.node if n.op_type in ("MatMulInteger", "QLinearMatMul")]
    assert products and all(kinds[n.input[1 if n.op_type == "MatMulInteger" else 3]] == 2 for n in products)


def test_there_is_none_of_a_file_without_integer_products(tmp_path: Path) -> None:
    assert unsaturated(convolutions(tmp_path / "float.onnx", FORMS["output"])) is None
