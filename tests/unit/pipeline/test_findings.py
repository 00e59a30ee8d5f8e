"""A model of whose answers nothing is left is no result: it is refused, unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import perceptron
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.cli.main import cli
from onnxprune.errors import BudgetError, explained

WIDTH, LIVE, SILENT = 6, 4, 12


def deceiving(folder: Path) -> Path:
    """Few neurons tell everything through small weights; most are read by large ones, and never speak."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((WIDTH, LIVE + SILENT)).astype(np.float32)
    last = rng.standard_normal((LIVE + SILENT, 5)).astype(np.float32)
    last[:LIVE] *= 1e-2
    bias = np.where(np.arange(LIVE + SILENT) < LIVE, 1, -100).astype(np.float32)
    weights = {"first": first, "bias": bias, "last": last}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["wide"]),
            helper.make_node("Add", ["wide", "bias"], ["moved"]),
            helper.make_node("Relu", ["moved"], ["active"]),
            helper.make_node("MatMul", ["active", "last"], ["y"]),
        ],
        "deceiving",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    rows = ({"x": row.tolist()} for row in rng.standard_normal((40, WIDTH)).round(3))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return perceptron.write(folder / "model.onnx", model)


def test_nothing_left_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    model, out = deceiving(tmp_path), tmp_path / "small.onnx"
    asked = ["prune", str(model), "-o", str(out), "--flops", "0.6", "--calib", str(tmp_path / "rows.jsonl")]
    asked += ["--method", "magnitude", "--search", "rank", "--no-compensate", "--no-latency", "--round-to", "1", "-q"]
    with pytest.raises(BudgetError, match=r"nothing is left .* rows that decided nothing \(.*--keep-broken") as found:
        cli.main(asked, standalone_mode=False)
    assert explained(found.value).exit_code == 5
    assert not [f for f in tmp_path.iterdir() if f.name.startswith("small")]
    cli.main([*asked, "--keep-broken"], standalone_mode=False)
    assert out.exists() and json.loads((tmp_path / "small.report.json").read_text())["broken"]


def test_a_curve_shows_where_nothing_is_left_and_better_methods_leave_all(tmp_path: Path) -> None:
    model, rows = deceiving(tmp_path), tmp_path / "rows.jsonl"
    common: dict[str, Any] = {
        "methods": ["magnitude", "obs"],
        "measure": False,
        "options": {"round_to": 1, "search": "rank"},
    }
    by_weight, measured = onnxprune.sweep(model, [0.5], calibration=rows, **common)
    assert by_weight.report.broken and not measured.report.broken
