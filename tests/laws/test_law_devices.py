"""Scores, searches and solves are the same wherever they are computed: on the CPU, on a device, on CUDA.

A device without a GPU is a pretended one (`pretended`), which fails as a GPU does where tensors of two devices meet.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pretended
import pytest
import random_graphs

import onnxprune
from onnxprune.graph import large_products
from onnxprune.score import METHODS
from onnxprune.search import problem

torch = pytest.importorskip("torch")
UNITS = ("heads", "head_ranks", "neurons", "channels", "blocks")


@pytest.fixture(params=["pretended", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return str(request.param)


def planned(device: str, monkeypatch: pytest.MonkeyPatch, dense: Path, **asked: Any) -> onnxprune.Plan:
    family = dense.stem
    rows = [{"x": row[None]} for row in random_graphs.sample(family, 24)]
    name = pretended.NAME if device == "pretended" else device
    monkeypatch.setattr(problem, "device_of", lambda wanted: name)
    # No device has oneDNN's products: without one they are not taken either, so that the arithmetic is the same.
    with large_products.by_torch(), pretended.device() if device == "pretended" else nullcontext():
        return onnxprune.prune(dense, calibration=rows, round_to=1, measure_latency=False, **asked).plan


def agree(found: onnxprune.Plan, expected: onnxprune.Plan, device: str) -> None:
    """Bit for bit where it is the same arithmetic, to the last digits where it is another."""
    assert found.keep == expected.keep
    assert found.drop == expected.drop
    assert found.sparsity == expected.sparsity
    for name, weight in expected.weights.items():
        most = 0.0 if device == "pretended" else 2e-3 * np.abs(weight).max()
        np.testing.assert_allclose(found.weights[name], weight, rtol=0, atol=most, err_msg=name)
    assert found.weights.keys() == expected.weights.keys()


def check(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, **asked: Any) -> None:
    dense = random_graphs.saved(random_graphs.build(family, 3), tmp_path / f"{family}.onnx")
    expected = planned("cpu", monkeypatch, dense, **asked)
    agree(planned(device, monkeypatch, dense, **asked), expected, device)
    assert expected.keep or expected.drop or expected.sparsity


@pytest.mark.parametrize("family", random_graphs.FAMILIES)
def test_the_default_is_the_same_on_every_device(
    device: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(device, tmp_path, monkeypatch, family, flops=0.6, units=UNITS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_score_is_the_same_on_every_device(
    device: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(device, tmp_path, monkeypatch, "transformer", flops=0.6, units=UNITS, method=method)


@pytest.mark.parametrize(
    "asked",
    [
        {"sparsity": "2:4"},
        {"sparsity": "unstructured:0.5", "solver": "sparsegpt"},
        {"sparsity": "unstructured:0.5", "solver": "seven"},
        {"sparsity": "unstructured:0.5", "solver": "platon"},
        {"sparsity": "unstructured:0.5", "finetune": 3},
        {"flops": 0.5, "staged": True},
        {"flops": 0.6, "search": "rank", "snip_threshold": 0.3},
    ],
    ids=str,
)
def test_every_solver_is_the_same_on_every_device(
    device: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(device, tmp_path, monkeypatch, "transformer", **asked)
