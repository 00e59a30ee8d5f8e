"""Validation and latency by ONNX Runtime's CUDA provider, where there is a GPU and onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import random_graphs

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.graph import runtime
from onnxprune.graph.providers import CPU

CUDA = "CUDAExecutionProvider"
pytestmark = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA provider"
)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    file = random_graphs.saved(random_graphs.build("transformer", 3), tmp_path / "dense.onnx")
    try:
        runtime.session(file, ["cuda"])
    except UsageError as error:
        pytest.skip(str(error))
    return file


def test_a_run_is_validated_and_timed_on_cuda(dense: Path, tmp_path: Path) -> None:
    rows = [{"x": row[None]} for row in random_graphs.sample("transformer", 24)]
    out = tmp_path / "small.onnx"
    result = onnxprune.prune(dense, out, calibration=rows, flops=0.6, round_to=1, providers=("cuda", "cpu"))
    assert [row.provider for row in result.report.latency] == [CUDA, CPU]
    assert result.report.latency[0].coverage.complete
    assert all(row.clock == "wall" for row in result.report.latency[:1])
    assert result.report.drift is not None
    on_cpu, on_cuda = (runtime.run(runtime.session(out, [name]), rows[0]) for name in ("cpu", "cuda"))
    for name, value in on_cpu.items():
        np.testing.assert_allclose(on_cuda[name], value, rtol=0, atol=5e-3 * np.abs(value).max())


def test_a_latency_budget_on_cuda_is_about_cuda(dense: Path) -> None:
    rows = [{"x": row[None]} for row in random_graphs.sample("transformer", 24)]
    result = onnxprune.prune(dense, calibration=rows, latency=0.99, round_to=1, providers=("cuda",))
    assert result.report.landing is not None
    assert {row.provider for row in result.report.latency} == {CUDA}


def test_half_precision_for_cuda_runs_there(dense: Path, tmp_path: Path) -> None:
    rows = [{"x": row[None]} for row in random_graphs.sample("transformer", 24)]
    out = tmp_path / "small.onnx"
    result = onnxprune.prune(
        dense, out, calibration=rows, flops=0.8, round_to=1, providers=("cuda",), quantize="fp16-compute"
    )
    assert result.report.steps
    whole, half = (
        runtime.run(runtime.session(f, ["cuda"]), rows[0]) for f in (out, out.with_suffix(".fp16-compute.onnx"))
    )
    for name, value in whole.items():
        np.testing.assert_allclose(half[name], value, rtol=0, atol=3e-2 * np.abs(value).max())
