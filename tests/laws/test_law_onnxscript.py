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


@pytest.mark.parametrize(("module", "maker", "units"), MODELS)
def test_random_cuts_equal_gated(module: str, maker: str, units: dict[str, int], tmp_path: Path) -> None:
    made = getattr(importlib.import_module(f"onnxscript.rewriter.models.{module}"), maker)()
    np.random.seed(0)  # the inputs are drawn from the global state
    file, feeds = tmp_path / "model.onnx", made.get_ort_inputs()
    ir.save(made.get_onnx_model(), file)
    subject = Subject.load(file)
    found = Counter(group.kind for group in subject.structure.groups)
    assert {kind: found[kind] for kind in units} == units
    assert len(subject.structure.branches) == sum(units.values())
    assert distance(subject.dense(feeds), in_runtime(file, feeds)) < 1e-4
    for seed in range(4):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
