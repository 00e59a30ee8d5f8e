"""Law 4: what a plan is said to cost is what the graph that was written costs, by ONNX Runtime's own account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo as exports
from plans import Subject, random_plan
from zoo import ZooModel
from zoo_families import OPSETS

import onnxprune
from onnxprune.graph import model as models
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs

Build = Callable[..., ZooModel]
Variant = tuple[str, exports.Exporter, exports.Attention]

FAMILIES = ("bert", "distilbert", "vit", "gpt2", "llama", "bart", "segformer", "resnet", "mobilenet-v2", "convnext")

load = cache(Subject.load)


def bindings(subject: Subject, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes that an example gives to the graph's dimensions."""
    return {
        dim: size
        for spec in subject.model.inputs
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }


@pytest.mark.parametrize("exporter", list(OPSETS))
@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_what_is_written(zoo: Build, family: str, exporter: exports.Exporter, tmp_path: Path) -> None:
    model = zoo(family, exporter, "sdpa")
    subject, feeds = load(model.path), model.feeds
    costs = Costs(subject.model, subject.structure, bindings(subject, feeds))
    dense = {op: macs for op, macs in costs.by_op().items() if macs}
    assert dense == profiled_macs(model.path, feeds)
    for seed in range(3):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed), refit=0), feeds)
        (file,) = models.save(subject.rewritten(plan), tmp_path / f"{seed}.onnx")
        assert {op: macs for op, macs in costs.by_op(plan).items() if macs} == profiled_macs(file, feeds)
        assert costs.macs(plan) == sum(profiled_macs(file, feeds).values())
        # The two roots of an attention's scale are written as one number.
        united = sum((n.name or "").endswith("_scaled_scores") for n in onnx.load(file).graph.node)
        assert 0 <= costs.params(plan) - floats(file) <= united


def floats(file: Path) -> int:
    """Numbers in the floating-point weights of a file; what dropped branches leave behind is not counted."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    tensors = [t for t in onnx.load(file).graph.initializer if t.data_type in kinds and not t.name.endswith("_rest")]
    return sum(int(np.prod(t.dims)) for t in tensors)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("search", ["table", "rank"])
def test_a_budget_is_never_exceeded(zoo: Build, search: str, share: float, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    feeds = model.sample(1, 8)
    calibration = [model.sample(1, 8, seed=s) for s in range(16)]
    output = tmp_path / "cut.onnx"
    onnxprune.prune(
        model.path, output, flops=share, calibration=calibration, search=search, round_to=1, compensate=False,
        measure_latency=False, keep_unread=True,
    )  # fmt: skip
    before, after = (sum(profiled_macs(path, feeds).values()) for path in (model.path, output))
    assert after <= share * before
    assert after > 0.8 * share * before, "far less is left than was allowed"
