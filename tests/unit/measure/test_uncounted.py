"""What the FLOPs leave out is said, with its share of the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import written

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure import uncounted
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.measure.uncounted import Uncounted, find

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\ng (float[n, 6] x) => (float[n, 3] y) {'
FIRST = "h = MatMul(x, a)  r = Relu(h)"
IF = "m = ReduceMax <keepdims = 0> (x)  l = ReduceMin <keepdims = 0> (x)  c = Less(l, m)"
OPENED = (
    "z = If (c) <then_branch = t () => (p) { p1 = MatMul(r, w)  p2 = MatMul(p1, w)  p = Relu(p2) }, "
    "else_branch = e () => (q) { q = MatMul(r, w) }>"
)
BRANCHES = OPENED.replace(
    "p = Relu(p2)", "s = SequenceConstruct(p2)  i = Constant <value_int = 0> ()  p = SequenceAt(s, i)"
)
"""Sequences keep a body closed."""
WEIGHTS = {"a": (6, 64), "w": (64, 64), "b": (64, 3)}


def _file(folder: Path, middle: str, weights: Mapping[str, tuple[int, ...]] = WEIGHTS) -> Path:
    return written(folder, f"{HEAD} {FIRST}  {middle}  y = MatMul(z, b) }}", weights, check=False)


def _found(file: Path) -> tuple[Uncounted, ...]:
    return find(models.load(file), {"n": 64})


def test_nothing_is_left_out_of_a_plain_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _file(tmp_path, "z = Sigmoid(r)", {"a": (6, 64), "b": (64, 3)})
    monkeypatch.setattr(uncounted, "calls", None)  # and nothing is run to see it
    assert _found(file) == ()
    assert uncounted.said(()) == ()


def test_products_inside_control_flow(tmp_path: Path) -> None:
    (found,) = _found(_file(tmp_path, f"{IF}  {BRANCHES}"))
    assert (found.operator, found.holds) == ("If", {"MatMul": 3})
    assert found.macs == 2 * 64 * 64 * 64  # the branch that ran
    assert found.share is not None and 0.02 < found.share < 1
    (said,) = uncounted.said([found])
    assert said.startswith(
        f"not counted, {found.share:.0%} of the dense model's time by ONNX Runtime's profile: If node "
    )
    assert "(3 MatMul inside)" in said


def test_products_of_both_sides_count_where_they_can_be_cut(tmp_path: Path) -> None:
    file = _file(tmp_path, f"{IF}  {OPENED}")
    dense = models.load(file)
    assert find(dense, {"n": 64}) == ()
    assert Costs(dense, analyze(dense), {"n": 1}).macs() == 6 * 64 + 3 * 64 * 64 + 64 * 3


def test_control_flow_without_products_costs_none(tmp_path: Path) -> None:
    branches = "z = If (c) <then_branch = t () => (p) { p = Relu(r) }, else_branch = e () => (q) { q = Neg(r) }>"
    assert _found(_file(tmp_path, f"{IF}  {branches}", {"a": (6, 64), "b": (64, 3)})) == ()


def test_operators_of_other_domains(tmp_path: Path) -> None:
    middle = "t = Transpose <perm = [1, 0]> (r)  k = MatMul(t, r)  i = com.microsoft.Inverse(k)  z = MatMul(r, i)"
    (found,) = _found(_file(tmp_path, middle, {"a": (6, 64), "b": (64, 3)}))
    assert found.operator == "com.microsoft::Inverse"
    assert found.macs is None
    assert found.share is not None


def test_a_model_that_does_not_run_on_made_up_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncounted, "_profile", lambda *_: ())
    (found,) = _found(_file(tmp_path, f"{IF}  {BRANCHES}"))
    assert (found.share, found.macs) == (None, None)
    assert "an unknown share of the time" in uncounted.said([found])[0]


def test_a_run_and_inspect_say_it(tmp_path: Path, run: Callable[..., Any]) -> None:
    file = _file(
        tmp_path,
        f"g = MatMul(r, v)  k = Relu(g)  {IF}  {BRANCHES.replace('(r, w)', '(k, w)')}",
        {**WEIGHTS, "v": (64, 64)},
    )
    rows = [{"x": np.random.default_rng(i).normal(size=(1, 6)).astype(np.float32)} for i in range(24)]
    result = onnxprune.prune(file, flops=0.9, calibration=rows, units=("neurons",), measure_latency=False)
    assert [u.operator for u in result.report.uncounted] == ["If"]
    assert any(w.startswith("not counted") for w in result.report.warnings)
    assert type(result.report).from_json(result.report.to_json()).uncounted == result.report.uncounted
    code, out, _ = run("inspect", file, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["uncounted"][0]["holds"] == {"MatMul": 3}
    code, out, _ = run("inspect", file)
    assert "not counted" in " ".join(out.split())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrences_are_counted_here_and_by_the_profile(tmp_path: Path, kind: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    node = f'y = {kind} <hidden_size = 8, direction = "bidirectional"> (x, w, r)'
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[s, n, 6] x) => (float[s, 2, n, 8] y) {{ {node} }}'
    file = written(tmp_path, text, {"w": (2, gates * 8, 6), "r": (2, gates * 8, 8)})
    dense = models.load(file)
    own = Costs(dense, analyze(dense), {"s": 5, "n": 3}).by_op()
    assert own == {kind: 2 * 5 * 3 * gates * 8 * (6 + 8)}
    assert profiled_macs(file, {"x": np.zeros((5, 3, 6), np.float32)}) == own
    assert find(dense, {"s": 5, "n": 3}) == ()
