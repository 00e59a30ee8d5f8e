"""What needs no gradients needs no torch: commands in a process that cannot import it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import perceptron
import pytest

PROGRAM = """
import json, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from onnxprune.cli.boundary import guarded
from onnxprune.cli.main import cli

for arguments in json.loads(sys.argv[1]):
    if code := guarded(lambda: cli.main(arguments, standalone_mode=False)):
        sys.exit(code)
assert "torch" not in sys.modules
"""


def without_torch(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    perceptron.write(tmp_path / "model.onnx")
    perceptron.write_rows(tmp_path / "rows.jsonl")
    return tmp_path


def test_files_are_looked_at_cut_by_weights_checked_timed_and_shipped(folder: Path) -> None:
    done = without_torch(
        folder,
        ["inspect", "model.onnx"],
        ["prune", "model.onnx", "-o", "small.onnx", "--flops", "0.6", "--eval", "rows.jsonl", "--threads", "1"],
        ["model.onnx", "zeros.onnx", "--sparsity", "2:4", "--no-latency", "-q"],
        ["plan", "model.onnx", "--params", "0.7", "--method", "magnitude", "-o", "plan.json"],
        ["apply", "model.onnx", "plan.json", "-o", "applied.onnx"],
        ["validate", "model.onnx", "small.onnx", "--eval", "rows.jsonl"],
        ["bench", "model.onnx", "small.onnx"],
        ["export", "small.onnx", "--target", "server", "-o", "shipped", "--calib", "rows.jsonl", "--quantize", "int8"],
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "small.report.json").read_text(encoding="utf-8"))
    assert report["recipe"]["versions"]["torch"] == "not installed" or report["equivalence"]["max_rel"] < 1e-4
    assert (folder / "applied.onnx").exists() and (folder / "shipped" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (["--flops", "0.6", "--calib", "rows.jsonl"], "learning from rows (--calib)"),
        (["--sparsity", "tiles:0.5"], "--sparsity tiles"),
        (["--flops", "0.6", "--device", "cuda"], "--device cuda"),
    ],
)
def test_what_does_need_it_names_the_extra(folder: Path, asked: list[str], what: str) -> None:
    done = without_torch(folder, ["model.onnx", *asked])
    assert done.returncode == 2
    assert done.stderr.startswith(f"onnxprune: {what} computes with PyTorch, which is not installed: ")
    assert "pip install 'onnxprune[torch]'" in done.stderr and done.stderr.count("\n") == 1
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "rows.jsonl"}
