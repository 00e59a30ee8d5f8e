"""Law 3: an empty plan changes nothing, a plan is for one model, and what others rely on stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo as exports
from plans import Subject, distance, in_runtime, random_plan
from zoo import ZooModel

from onnxprune import rewrite
from onnxprune.errors import UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline import verbs

Build = Callable[..., ZooModel]
Variant = tuple[str, exports.Exporter, exports.Attention]

VARIANTS: tuple[Variant, ...] = (
    ("bert", "torchscript", "eager"),
    ("bert", "dynamo", "sdpa"),
    ("distilbert", "torchscript", "eager"),
    ("vit", "dynamo", "eager"),
    ("gpt2", "torchscript", "sdpa"),
    ("llama", "dynamo", "sdpa"),
    ("deberta-v2", "torchscript", "eager"),
    ("resnet", "torchscript", "eager"),
)

load = cache(Subject.load)


def interface(path: Path) -> dict[str, object]:
    """Everything about a file that is not its nodes and weights."""
    proto = onnx.load(path, load_external_data=False)
    weights = {t.name for t in proto.graph.initializer}
    return {
        "ir_version": proto.ir_version,
        "opsets": sorted((o.domain, o.version) for o in proto.opset_import),
        "metadata": {p.key: p.value for p in proto.metadata_props},
        "producer": (proto.producer_name, proto.producer_version, proto.domain, proto.model_version, proto.doc_string),
        "graph": proto.graph.name,
        "inputs": [v.SerializeToString() for v in proto.graph.input if v.name not in weights],
        "outputs": [v.SerializeToString() for v in proto.graph.output],
    }


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_an_empty_plan_changes_nothing(zoo: Build, variant: Variant, tmp_path: Path) -> None:
    model = zoo(*variant)
    subject = load(model.path)
    (file,) = models.save(subject.rewritten(Plan(subject.structure.digest)), tmp_path / "same.onnx")
    for feeds in (model.feeds, model.sample(batch=3, seed=1)):
        assert distance(in_runtime(file, feeds), in_runtime(model.path, feeds)) < 1e-5
    again = Subject.load(file)
    assert {g.kind: g.shape for g in again.structure.groups} == {g.kind: g.shape for g in subject.structure.groups}
    assert len(again.structure.branches) == len(subject.structure.branches)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_interface_stays(zoo: Build, variant: Variant, tmp_path: Path) -> None:
    model = zoo(*variant)
    annotated = onnx.load(model.path)
    annotated.doc_string, annotated.model_version = "for the test", 7
    annotated.metadata_props.add(key="author", value="someone")
    source = tmp_path / "model.onnx"
    onnx.save(annotated, source)
    subject = load(source)
    plan = subject.complete(random_plan(subject, np.random.default_rng(0)), model.feeds)
    (file,) = models.save(subject.rewritten(plan), tmp_path / "cut.onnx")
    before, after = interface(source), interface(file)
    assert {k: v for k, v in after.items() if v != before[k]} == {}
    onnx.checker.check_model(str(file), full_check=True)


def test_planning_and_applying_leave_the_model_alone(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    before = subject.dense(feeds)
    plan = subject.complete(random_plan(subject, np.random.default_rng(1)), feeds)
    subject.rewritten(plan)
    assert distance(in_runtime(subject.model.ir, feeds), before) < 1e-5
    assert analyze(subject.model) == subject.structure
    assert distance(Subject(subject.model, subject.structure).dense(feeds), before) == 0


def test_a_plan_is_for_one_model(zoo: Build, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject = Subject.load(model.path)
    plan = subject.complete(random_plan(subject, np.random.default_rng(0)), model.feeds)
    (file,) = models.save(subject.rewritten(plan), tmp_path / "cut.onnx")
    cut = Subject.load(file)
    with pytest.raises(UsageError, match="made for a model with digest"):
        rewrite.apply(cut.model, cut.structure, plan)
    with pytest.raises(UsageError, match="made for a model with digest"):
        verbs.apply(file, plan, tmp_path / "twice.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.onnx"]


def test_a_plan_is_the_same_after_a_file(zoo: Build, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    plan = subject.complete(random_plan(subject, np.random.default_rng(2)), feeds)
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert (read.keep, read.drop) == (plan.keep, plan.drop)
    assert distance(subject.written(read, feeds), subject.written(plan, feeds)) == 0
