"""Tables that several layers read: each layer keeps what it likes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plans import Subject, distance
from zoo import ZooModel

from onnxprune.graph.plan import Plan


@pytest.mark.parametrize(
    ("family", "exporter"), [("llama", "torchscript"), ("llama", "dynamo"), ("gpt-neox", "torchscript")]
)
def test_each_layer_keeps_rotary_pairs_of_its_own(zoo: Callable[..., ZooModel], family: str, exporter: str) -> None:
    model = zoo(family, exporter, "eager")
    subject, feeds = Subject.load(model.path), model.sample(seed=3)
    pairs = [g for g in subject.structure.groups if g.kind == "head_dims" and len(g.shape) == 1 and g.size > 1]
    assert len(pairs) == 2  # one a layer
    keep = {g.id: tuple(u for u in range(g.size) if u != i) for i, g in enumerate(pairs)}
    plan = Plan(subject.model.digest, keep)
    cut, whole = subject.rewritten(plan), subject.rewritten(Plan(subject.model.digest))
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    indices = [n for n in cut.graph if "_side_" in (n.name or "")]
    assert 0 < len(indices) <= 4  # a cosine and a sine for each layer
    assert not any("_side_" in (n.name or "") for n in whole.graph)
