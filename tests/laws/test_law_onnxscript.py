"""Law 1 on graphs that no exporter of ours wrote: the models that onnxscript's rewriter is tested with."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from plans import Subject, distance, in_runtime, random_plan

# (module, function that gives one, what is found in it: units by kind and sizes)
MODELS = [
    ("_bart_encoder", "bart_encoder_test", {"heads": 2, "neurons": 2}),
    ("_whisper_encoder", "whisper_encoder_test", {"heads": 1, "neurons": 1}),
]

CLOSE = 1e-3
"""Their weights are drawn large: attention is so sharp that single precision shows in the fourth digit."""


@pytest.mark.parametrize(("module", "maker", "units"), MODELS)
def test_random_cuts_equal_gated(module: str, maker: str, units: dict[str, int], tmp_path: Path) -> None:
    made = getattr(importlib.import_module(f"onnxscript.rewriter.models.{module}"), maker)()
    file = tmp_path / "model.onnx"
    ir.save(made.get_onnx_model(), file)
    subject = Subject.load(file)
    random = np.random.default_rng(0)
    feeds = {name: _like(random, drawn) for name, drawn in made.get_ort_inputs().items()}
    found = Counter(group.kind for group in subject.structure.groups)
    assert {kind: found[kind] for kind in units} == units
    assert len(subject.structure.branches) == sum(units.values())
    assert distance(subject.dense(feeds), in_runtime(file, feeds)) < CLOSE
    for seed in range(4):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < CLOSE


def _like(random: np.random.Generator, drawn: np.ndarray) -> np.ndarray:
    """Values in the range of an example's, which is drawn anew each time."""
    made = random.integers(0, drawn.max(), drawn.shape) if drawn.dtype.kind == "i" else random.normal(size=drawn.shape)
    return np.asarray(made, drawn.dtype)
