"""Residual branches: found where f is nobody else's, left out to what remains of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from plans import Subject, distance
from zoo import ZooModel

from onnxprune import rewrite
from onnxprune.errors import UsageError
from onnxprune.graph.plan import Plan

Build = Callable[..., ZooModel]

EXPECTED = {
    "bert": ["attention", "ffn"] * 2,
    "gpt2": ["attention", "ffn"] * 2,
    "llama": ["attention", "ffn"] * 2,
    "vit": ["attention", "ffn"] * 2,
    "convnext": ["ffn"] * 4,
    "resnet": ["block"] * 2,
    "bart": ["attention", "ffn"] * 2 + ["attention", "attention", "ffn"] * 2,
}


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_branches_are_found_in_order(zoo: Build, family: str, exporter: str) -> None:
    structure = Subject.load(zoo(family, exporter, "sdpa").path).structure
    assert [b.kind for b in structure.branches] == EXPECTED[family]
    for branch in structure.branches:
        assert all(structure.group(g).branch == branch.id for g in branch.groups)


@pytest.mark.parametrize("family", EXPECTED)
def test_each_branch_can_go_alone_and_all_together(zoo: Build, family: str) -> None:
    model = zoo(family, "torchscript", "sdpa")
    subject, feeds = Subject.load(model.path), model.feeds
    names = [b.id for b in subject.structure.branches]
    dense = subject.dense(feeds)
    for drop in [*((name,) for name in names), tuple(names)]:
        plan = subject.complete(Plan(subject.structure.digest, drop=drop), feeds)
        gated = subject.gated(plan, feeds)
        assert distance(subject.written(plan, feeds), gated) < 1e-4
        assert distance(gated, dense) > 1e-4
    nodes = subject.rewritten(plan).graph.num_nodes()
    assert nodes < 0.8 * len(subject.model.graph)


def test_what_a_branch_leaves_behind_is_its_bias(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    plan = subject.complete(Plan(subject.structure.digest, drop=("ffn.0",)), model.feeds)
    name = next(n for n in subject.model.graph.initializers if n.endswith("layer.0.output.dense.bias"))
    np.testing.assert_allclose(plan.rests["ffn.0"].reshape(-1), subject.interpreter.weight(name).numpy(), rtol=1e-6)


def test_a_stated_rest_takes_the_place_of_the_branch(zoo: Build) -> None:
    """Compensation leaves the mean of what went, one number per channel, and channels may be cut too."""
    model = zoo("resnet", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.feeds
    branch = subject.structure.branches[0]
    width = next(s for s in (64, 32) if s in subject.interpreter.run(feeds, outputs=[branch.value])[branch.value].shape)
    rest = np.random.default_rng(0).standard_normal((1, width, 1, 1)).astype(np.float32)
    plan = Plan(subject.structure.digest, drop=(branch.id,), rests={branch.id: rest})
    zero = Plan(subject.structure.digest, drop=(branch.id,), rests={branch.id: rest * 0})
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
    assert distance(subject.gated(plan, feeds), subject.gated(zero, feeds)) > 1e-3


def test_a_plan_without_rests_is_not_carried_out(zoo: Build) -> None:
    subject = Subject.load(zoo("bert", "torchscript", "sdpa").path)
    with pytest.raises(UsageError, match="what the branch leaves behind"):
        rewrite.apply(subject.model, subject.structure, Plan(subject.structure.digest, drop=("ffn.0",)))
