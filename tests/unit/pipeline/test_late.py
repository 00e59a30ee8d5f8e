"""What fails behind the check costs a figure, never the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import written

import onnxprune
from onnxprune.errors import CheckError, UsageError
from onnxprune.graph import model as models
from onnxprune.measure import latency
from onnxprune.pipeline import job
from onnxprune.report import Report, html

ONE_END = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[batch, tokens] input_ids) => (float[batch, 3] y)
<int64 end = {2}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] width = {8}>
{ e = Gather(table, input_ids)
  last = Equal(input_ids, end)  where = NonZero(last)  at = Transpose <perm = [1, 0]> (where)  picked = GatherND(e, at)
  s = Shape(input_ids)  n = Slice(s, zero, one)  to = Concat <axis = 0> (n, width)  r = Reshape(picked, to)
  h = MatMul(r, a)  g = Relu(h)  y = MatMul(g, b) }
"""
"""As some encoder-decoders classify: what stands at the end token, of which every row must have exactly one."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path, ONE_END, {"table": (40, 8), "a": (8, 16), "b": (16, 3)})


def _prune(model: Path, **more: Any) -> Report:
    rng = np.random.default_rng(0)
    rows = [{"input_ids": np.append(rng.integers(3, 40, n), 2)[None]} for n in rng.integers(3, 9, 30)]
    out = model.with_name("small.onnx")
    result = onnxprune.prune(model, out, flops=0.7, calibration=rows, units=("neurons",), round_to=1, **more)
    assert out.exists()
    assert result.report.to_json() == Report.load(model.with_name("small.report.json")).to_json()
    return result.report


def test_real_rows_are_timed_on_a_graph_that_takes_no_others(model: Path) -> None:
    report = _prune(model)
    assert report.latency
    assert not [w for w in report.warnings if "latency" in w]


def _fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the clock\nstood still")


def test_a_run_whose_timing_fails_is_written_and_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "bench", _fails)
    report = _prune(model)
    assert report.latency == ()
    assert "no latency: RuntimeError: the clock stood still" in report.warnings


def test_a_run_without_evidence_or_page_is_written_and_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "compare", _fails)
    monkeypatch.setattr(html, "render", _fails)
    monkeypatch.setattr(job, "measure_steps", _fails)
    report = _prune(model, quantize="int8", measure_latency=False)
    said = [w.partition(":")[0] for w in report.warnings]
    assert {"accuracy and drift are not known", "no page", "no file in fewer bits"} <= set(said)
    assert not model.with_name("small.report.html").exists()


def test_a_check_that_fails_writes_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any, **__: Any) -> Any:
        raise CheckError("the pruned model gives NaN alone in output y")

    monkeypatch.setattr(job, "compare", wrong)
    with pytest.raises(CheckError):
        _prune(model, measure_latency=False)
    assert not model.with_name("small.onnx").exists()


@pytest.mark.parametrize(
    ("asked", "named"), [({"metric": "acuracy"}, "metric 'acuracy'"), ({"quantize": "int3"}, "int3")]
)
def test_a_name_that_is_none_is_refused_before_any_work(
    model: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], named: str
) -> None:
    monkeypatch.setattr(models, "load", _fails)
    with pytest.raises(UsageError, match=named):
        _prune(model, **asked)


def test_a_metric_that_the_rows_cannot_serve_costs_the_figure_alone(model: Path) -> None:
    report = _prune(model, metric="accuracy", measure_latency=False)  # these rows have no labels
    assert report.accuracy is None
    assert [w for w in report.warnings if w.startswith("accuracy and drift are not known: ")]
