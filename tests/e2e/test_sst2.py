"""The main job on a real classifier: SST-2 at 60% of the FLOPs, from the command line, with few rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest


@pytest.mark.slow
def test_sst2_at_sixty_percent(sst2_folder: Path, assets: Path, tmp_path: Path) -> None:
    output = tmp_path / "small" / "model.onnx"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in (assets / "data/sst2/dev.jsonl").read_text().splitlines()[:300]))
    calibration = assets / "data/sst2/calibration.jsonl"
    command = [sys.executable, "-m", "onnxprune.cli.main", sst2_folder, "-o", output, "--flops", "0.6", "--rows", "96"]
    options = ["--calib", calibration, "--eval", few, "--no-latency", "--json"]
    done = subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["flops"]["pruned"] <= 0.6 * report["flops"]["dense"]
    assert report["equivalence"]["max_rel"] < 1e-4
    accuracy = report["accuracy"]
    assert accuracy["dense"] > 0.88
    # Chance is 0.5; few rows of calibration cost a few points.
    assert accuracy["pruned"] > accuracy["dense"] - 0.1
    assert report["drift"]["agreement"] > 0.85
    for name in ("tokenizer.json", "config.json", "model.report.json", "model.report.html", "model.plan.json"):
        assert (output.parent / name).exists(), name
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    ids = np.array([[101, 2307, 102]], dtype=np.int64)
    feeds = {
        i.name: ids if "ids" in i.name and "type" not in i.name else np.ones_like(ids) for i in session.get_inputs()
    }
    assert np.isfinite(session.run(None, feeds)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("extra", [["--sparsity", "2:4"], ["--method", "snip", "--flops", "0.7"]])
def test_other_ways_keep_most_of_the_accuracy(
    sst2_folder: Path, assets: Path, tmp_path: Path, extra: list[str]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in (assets / "data/sst2/dev.jsonl").read_text().splitlines()[:300]))
    calibration = assets / "data/sst2/calibration.jsonl"
    command = [sys.executable, "-m", "onnxprune.cli.main", sst2_folder, "-o", tmp_path / "model.onnx", "--rows", "128"]
    options = [*extra, "--calib", calibration, "--eval", few, "--no-latency", "--json"]
    done = subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["accuracy"]["pruned"] > report["accuracy"]["dense"] - 0.05
    if "--sparsity" in extra:
        assert abs(report["sparsity"]["zeros"] - 0.5) < 0.001
    else:
        assert report["flops"]["pruned"] <= 0.7 * report["flops"]["dense"]
        assert sum(u["kind"] == "blocks" and not u["kept"] for u in report["units"]) >= 2
