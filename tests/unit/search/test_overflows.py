"""Scores that order nothing are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper as nh
from perceptron import perceptron, write_rows

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.search import scored_model


def test_units_whose_squares_overflow_are_named(tmp_path: Path) -> None:
    """A layer of huge weights before one of tiny ones gives sound outputs, and no measure of what it loses."""
    proto = perceptron()
    for tensor in proto.graph.initializer:
        scale = {"up_0": 1e20, "down_0": 1e-20}.get(tensor.name)
        if scale is not None:
            tensor.CopyFrom(nh.from_array((nh.to_array(tensor) * scale).astype(np.float32), tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    write_rows(tmp_path / "rows.jsonl", 16)
    with pytest.raises(ModelError, match=r"neurons\.0: .* is no number"):
        onnxprune.prune(tmp_path / "m.onnx", flops=0.6, calibration=tmp_path / "rows.jsonl", measure_latency=False)


def test_scores_that_are_not_finite_are_refused() -> None:
    scored_model._require_finite("heads.0", [0.5, 2.0], None, np.ones(3))
    for odd in (np.inf, np.nan):
        with pytest.raises(ModelError, match=r"heads\.0: scores"):
            scored_model._require_finite("heads.0", [0.5, odd], None)
