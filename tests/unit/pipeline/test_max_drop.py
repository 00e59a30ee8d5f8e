"""The smallest size within a drop: enough rows or none, and a report that says who chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import written
from onnx import numpy_helper

import onnxprune
from onnxprune.cli.main import cli
from onnxprune.errors import BudgetError, UsageError
from onnxprune.pipeline import max_drop
from onnxprune.report import Report, html, terminal
from onnxprune.search.planner import Planner

MLP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 8] x) => (float[batch, 3] logits)
{ h = MatMul(x, a)  r = Relu(h)  logits = MatMul(r, b) }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 32 hidden neurons, 16 are read by nobody."""
    path = written(tmp_path_factory.mktemp("mlp"), MLP, {"a": (8, 32), "b": (32, 3)})
    made = onnx.load(path)
    held = next(t for t in made.graph.initializer if t.name == "b")
    values = numpy_helper.to_array(held) * (np.arange(32) < 16)[:, None]
    held.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "b"))
    onnx.save(made, path)
    return path


def rows(count: int, seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 8)).astype(np.float32)} for _ in range(count)]


def pruned(model: Path, limit: str, judge: list[dict[str, Any]], **more: Any) -> onnxprune.Result:
    return onnxprune.prune(
        model, max_drop=limit, calibration=rows(60), evaluation=judge, units=("neurons",), round_to=1,
        measure_latency=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize(("limit", "count", "needed"), [("1pt", 10, 546), ("0.1pt", 3, 5478), ("5%", 60, 107)])
def test_rows_that_cannot_show_it_are_refused_before_anything_is_scored(
    model: Path, monkeypatch: pytest.MonkeyPatch, limit: str, count: int, needed: int
) -> None:
    monkeypatch.setattr(Planner, "plan", None)
    with pytest.raises(BudgetError, match=rf"on {count} evaluation rows: .*at least {needed} different rows"):
        pruned(model, limit, rows(count, 2))
    with pytest.raises(BudgetError, match=rf"\({count} different ones\): .*at least {needed} different"):
        pruned(model, limit, rows(count, 2) * 9)


@pytest.mark.parametrize("limit", ["0pt", "1", "1points", "-1%", "100%"])
def test_what_is_no_limit(model: Path, limit: str) -> None:
    with pytest.raises(UsageError, match="--max-drop"):
        pruned(model, limit, rows(30))


def test_the_size_is_shown_to_hold_and_the_report_says_who_chose(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    report = pruned(model, "2pt", rows(400, 2), output=out).report
    assert 0.4 < report.flops.ratio < 0.65  # half of it is dead, and little more can go
    found, accuracy = report.drop_search, report.accuracy
    assert found is not None and accuracy is not None
    assert (report.budget.kind, report.budget.unit, report.budget.target) == ("max_drop", "points", 2)
    assert report.budget.achieved == pytest.approx(100 * found.chosen.bound) and report.budget.achieved <= 2
    assert (found.rows, found.limit, len(found.tries)) == (400, "2pt", max_drop.STEPS)
    assert any(not t.passed for t in found.tries)
    assert accuracy.level == found.level == pytest.approx(1 - 0.05 / max_drop.STEPS)
    assert accuracy.confidence_interval is not None and accuracy.confidence_interval[1] == found.chosen.bound
    assert any("chose the size, in 6 tries" in w for w in report.warnings)
    page, shown = html.render(report), terminal.to_text(report)
    assert "decided nothing" not in page and "decided the size among 6" in page
    for text in (page, shown):
        assert "limit 2.00 points" in text and "chose among" in text
    assert "99.2% interval" in shown
    assert Report.load(tmp_path / "small.report.json").drop_search == found
    assert report.recipe["sources"]["max_drop"] == "2pt"


def test_a_drop_that_a_light_cut_makes_is_refused_with_the_rows_it_takes(tmp_path: Path) -> None:
    model = written(tmp_path, MLP, {"a": (8, 6), "b": (6, 3)})
    with pytest.raises(BudgetError, match=r"even at 95% of the FLOPs .*(allow more|rows would show it)"):
        pruned(model, "4pt", rows(150, 2), compensate=False)


def test_the_command_line_ends_with_5_and_the_number(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"x": r["x"][0].tolist()}) + "\n" for r in rows(40)))
    asked = [str(model), "-o", str(tmp_path / "o.onnx"), "--max-drop", "1pt", "--calib", str(file), "--eval", str(file)]
    result = CliRunner().invoke(cli, asked)
    assert isinstance(result.exception, BudgetError) and "at least 546" in str(result.exception)
    assert not (tmp_path / "o.onnx").exists()
