"""A workflow of Olive with pruning as one of its steps, in a process of its own: Olive configures logging for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import perceptron
import pytest

PROGRAM = """
import json, sys
import olive
from onnxprune.olive import package_config
olive.run(json.loads(sys.argv[1]), package_config=package_config())
"""


@pytest.mark.skipif(find_spec("olive") is None, reason="olive-ai is not installed")
def test_a_workflow_prunes(tmp_path: Path) -> None:
    perceptron.write(tmp_path / "model.onnx")
    rows = perceptron.write_rows(tmp_path / "rows.jsonl", 60)
    told = {
        "input_model": {"type": "OnnxModel", "model_path": str(tmp_path / "model.onnx")},
        "passes": {
            "small": {
                "type": "OnnxPrune",
                "flops": 0.6,
                "calibration": str(rows),
                "options": {"threads": 1, "flips": 0},
            }
        },
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(told)],
        cwd=tmp_path, env={**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "model.report.json", "model.report.html", "model.plan.json"} <= names, done.stdout
    report = json.loads((tmp_path / "out/model.report.json").read_text())
    assert report["flops"]["ratio"] <= 0.6 and report["flips"]["shown"] == []
    assert (tmp_path / "out/model.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
