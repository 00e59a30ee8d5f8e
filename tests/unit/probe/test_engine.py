"""The interpreter without torch computes what it computes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from zoo import ZooModel

from onnxprune.graph.model import load
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.probe import interpreter as interpreters
from onnxprune.probe.engine import NodeByNode, Torch, engine_for, to_numpy
from onnxprune.probe.forward import forward
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter

Build = Callable[..., ZooModel]


@pytest.mark.parametrize(
    ("family", "hidden"), [("bert", False), ("resnet", False), ("llama", False), ("swin", False), ("vit", True)]
)
def test_gated_graphs_are_the_same(zoo: Build, family: str, hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = zoo(family, "torchscript", "sdpa")
    dense = load(made.path)
    structure = analyze(dense, hidden=hidden)
    groups = [g for g in structure.groups if (g.kind == "hidden") == hidden]
    keep = {g.id: tuple(range(0, g.size, 2)) for g in groups}
    drop = () if hidden else tuple(b.id for b in structure.branches[-1:])
    feeds = made.feeds
    assert keep
    found: list[dict[str, Any]] = []
    for engine in (Torch, lambda device: NodeByNode()):
        monkeypatch.setattr(interpreters, "engine_for", engine)
        run = Interpreter(dense.graph)
        gates = Gates(structure, run)
        plan = gates.complete(Plan(dense.digest, keep=keep, drop=drop), feeds)
        plan = replace(plan, intercepts={})
        found.append({k: to_numpy(v) for k, v in forward(run, feeds, state=gates.gated(plan)).items()})
    for name, value in found[0].items():
        assert isinstance(found[1][name], np.ndarray)
        np.testing.assert_allclose(found[1][name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max())


def test_torch_computes_where_it_is() -> None:
    assert isinstance(engine_for("cpu"), Torch)
