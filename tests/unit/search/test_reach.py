"""What no row reaches is not judged by rows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from graphs import written

import onnxprune
from onnxprune.errors import NothingToPruneError

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 6] x, int64 rate) => (float[n, 6] y) <int64 high = {16}> {
    c = Equal(rate, high)
    y = If (c) <
        then_branch = t () => (float[n, 6] p) { p1 = MatMul(x, a)  p2 = Relu(p1)  p = MatMul(p2, b) },
        else_branch = e () => (float[n, 6] q) { q1 = MatMul(x, u)  q2 = Relu(q1)  q = MatMul(q2, v) }
    >
}"""
WEIGHTS = {"a": (6, 32), "b": (32, 6), "u": (6, 40), "v": (40, 6)}


def _rows(*rates: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.standard_normal((1, 6), dtype=np.float32), "rate": np.array(rates[i % len(rates)])} for i in range(24)
    ]


def test_a_side_that_no_row_takes_stays_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, TEXT, WEIGHTS, check=False)
    with caplog.at_level(logging.WARNING):
        result = onnxprune.prune(file, flops=0.8, calibration=_rows(16), measure_latency=False)
    assert {(u.total, u.kept == u.total) for u in result.report.units} == {(32, False)}
    assert "no row takes the else side" in caplog.text
    with pytest.raises(NothingToPruneError):
        onnxprune.prune(file, flops=0.8, calibration=_rows(16), measure_latency=False, include=("neurons.1",))


def test_sides_that_rows_take_are_both_cut(tmp_path: Path) -> None:
    file = written(tmp_path, TEXT, WEIGHTS, check=False)
    result = onnxprune.prune(file, flops=0.5, calibration=_rows(16, 8), measure_latency=False)
    assert {u.total for u in result.report.units if u.kept < u.total} == {32, 40}
