"""`--tune`: what is left learns from the dense model once it is mended, and the file that is written is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.cli.test_main import Outcome, folder, refused  # noqa: F401 -- fixtures

from onnxprune.graph.plan import Plan
from onnxprune.probe.forward import Evaluator
from onnxprune.refit.tune import Tuned, tune
from onnxprune.search import units_then_zeros

Run = Callable[..., Outcome]


def test_a_tuned_model_is_checked_and_can_be_applied_again(
    run: Run,
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_heart(*given: Any, **options: Any) -> Tuned:
        """Judged by the rows that teach: some seconds are enough for these."""
        model, structure, gates, rows, _, _, plan, seconds = given
        return tune(model, structure, gates, rows, rows, Evaluator(rows), plan, seconds, rate=3e-3, **options)

    monkeypatch.setattr(units_then_zeros, "tune", by_heart)
    common = ["--flops", 0.6, "--calib", folder / "rows.jsonl", "--no-latency", "--json"]
    plans = []
    for name, minutes in (("mended", 0), ("tuned", 0.05)):
        code, out, err = run(folder / "model.onnx", folder / f"{name}.onnx", *common, "--tune", minutes)
        assert code == 0, err
        report = json.loads(out)
        assert report["equivalence"]["max_rel"] < 1e-4
        assert report["recipe"]["options"]["tune"] == minutes
        assert ("tune" in report["seconds"]) == bool(minutes)
        plans.append(Plan.load(folder / f"{name}.plan.json"))
    mended, tuned = plans
    assert (mended.keep, mended.drop) == (tuned.keep, tuned.drop)
    moved = [n for n, a in tuned.weights.items() if n not in mended.weights or not np.array_equal(a, mended.weights[n])]
    assert any("LayerNorm" in name for name in moved) and any("intermediate" in name for name in moved)
    code, _, err = run("apply", folder / "model.onnx", folder / "tuned.plan.json", "-o", folder / "again.onnx")
    assert code == 0, err


def test_tuning_without_rows_is_refused(run: Run, folder: Path) -> None:  # noqa: F811
    shape = "batch_size=1,sequence_length=8"
    asked = ["--flops", 0.6, "--method", "magnitude", "--shape", shape, "--tune", 1]
    refused(run, folder, 2, "give some with --calib", folder / "model.onnx", *asked)
