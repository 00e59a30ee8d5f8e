"""What no row reaches is not judged by rows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import written

import onnxprune
from onnxprune.errors import NothingToPruneError
from onnxprune.graph import model as models
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs

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
    with pytest.raises(NothingToPruneError, match="none of them takes the else side of If"):
        onnxprune.prune(file, flops=0.8, calibration=_rows(16), measure_latency=False, include=("neurons.1",))


def test_sides_that_rows_take_are_both_cut(tmp_path: Path) -> None:
    file = written(tmp_path, TEXT, WEIGHTS, check=False)
    result = onnxprune.prune(file, flops=0.5, calibration=_rows(16, 8), measure_latency=False)
    assert {u.total for u in result.report.units if u.kept < u.total} == {32, 40}


def test_a_graph_that_runs_at_one_rate_alone_is_counted_at_that(tmp_path: Path) -> None:
    """Sizes that only a run shows are seen with an input that the graph compares its own with, where zero fails."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 6] x, int64 rate) => (float[k, 6] y) <int64 high = {16}, int64[2] sevens = {-1, 7}> {
        c = Equal(rate, high)
        y = If (c) <
            then_branch = t () => (float[k, 6] p) { o = Exp(x)  i = NonZero(o)  f = Cast <to = 1> (i)  r = Transpose(f)
                p1 = MatMul(r, a)  p2 = Relu(p1)  p = MatMul(p2, b) },
            else_branch = e () => (float[k, 6] q) { q1 = Reshape(x, sevens)  q = MatMul(q1, u) }
        >
    }"""
    file = written(tmp_path, text, {"a": (2, 32), "b": (32, 6), "u": (7, 6)}, check=False)
    dense = models.load(file)
    assert Costs(dense, analyze(dense), {"n": 4}).macs() == 4 * 6 * 32 * (2 + 6) + 3 * 7 * 6


def test_rows_that_conditions_look_at_run_one_by_one(tmp_path: Path) -> None:
    """Of two rows together a condition may say something else than of each."""
    text = TEXT.replace(
        "c = Equal(rate, high)", "s = ReduceSum <keepdims = 0> (x)  z = CastLike(high, s)  c = Less(s, z)"
    )
    file = written(tmp_path, text.replace("high = {16}", "high = {0}"), WEIGHTS, check=False)
    result = onnxprune.prune(file, flops=0.5, calibration=_rows(1), evaluation=_rows(1), measure_latency=False)
    assert {u.total for u in result.report.units} == {32, 40}
    assert result.report.drift is not None


def test_what_steps_rewrite_is_a_graph_that_anyone_can_save(tmp_path: Path) -> None:
    file = written(tmp_path, TEXT, WEIGHTS, check=False)
    steps = onnxprune.Steps.open(file, flops=0.5, calibration=_rows(16, 8), evaluation=_rows(16, 8))
    pruned = steps.rewrite(steps.compensate(steps.search()))
    ir.save(pruned, tmp_path / "own.onnx")
    assert {n.domain for n in pruned.graph.all_nodes()} == {""}
    assert steps.validate(pruned) is not None


LABELLED = """<ir_version: 9, opset_import: ["" : 17]>
g (float[n, 8] x) => (int64[n] label, float[n, 3] y) {
    g0 = MatMul(x, own)  g1 = Relu(g0)  z = MatMul(g1, kinds)
    k = MatMul(x, both)  a = Relu(k)  t = MatMul(a, more)  s = Add(z, t)
    label = ArgMax <axis = 1, keepdims = 0> (s)
    y = MatMul(a, down)
}"""
LABEL_WEIGHTS = {"own": (8, 24), "kinds": (24, 5), "both": (8, 32), "more": (32, 5), "down": (32, 3)}


def test_what_only_a_label_is_made_of_stays_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its units would cost nothing by what is measured; their first reader may lead to nothing that is."""
    file = written(tmp_path, LABELLED, LABEL_WEIGHTS)
    rng = np.random.default_rng(0)
    rows = [{"x": rng.standard_normal((1, 8), dtype=np.float32)} for _ in range(40)]
    with caplog.at_level(logging.WARNING):
        result = onnxprune.prune(file, flops=0.8, calibration=rows, measure_latency=False)
    assert [(u.total, u.kept < u.total) for u in result.report.units] == [(32, True)]
    assert "only a label or a cache follows from them" in caplog.text
    with pytest.raises(NothingToPruneError, match="is not measured, only y"):
        onnxprune.prune(file, flops=0.8, calibration=rows, measure_latency=False, exclude=("*1",))
