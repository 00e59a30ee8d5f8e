"""Control flow is opened, cut and closed: what is gated is what is written, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import flow_graphs
import numpy as np
import onnx
import pytest
from plans import Subject, distance, in_runtime, random_plan

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.structure.linear_layers import Linear, find_linears
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.probe.engine import NodeByNode
from onnxprune.probe.interpreter import Interpreter

SEEDS = range(8)


def _feeds(seed: int) -> dict[str, np.ndarray]:
    """Rows for which conditions hold, and rows for which they do not."""
    x = np.random.default_rng(seed).standard_normal((2, 5, flow_graphs.WIDTH)).astype(np.float32)
    return {"x": np.abs(x) if seed % 2 else -np.abs(x)}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_gated_is_written(tmp_path: Path, seed: int) -> None:
    path, hidden = flow_graphs.graph(tmp_path, seed)
    subject = Subject.load(path)
    free = [g.size for g in subject.structure.groups if g.size != flow_graphs.WIDTH]
    assert sorted(free) == sorted(hidden)
    for side in range(2):
        feeds = _feeds(side)
        whole = in_runtime(path, feeds)
        assert distance(subject.dense(feeds), whole) < 1e-5
        assert distance(in_runtime(subject.model.ir, feeds), whole) < 1e-5
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed), drop=0.3), feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4


@pytest.mark.parametrize("kind", ["choice", "loop", "scan"])
def test_a_file_has_the_control_flow_that_it_had(tmp_path: Path, kind: str) -> None:
    path, _ = flow_graphs.graph(tmp_path, 1, (kind,))
    subject = Subject.load(path)
    feeds = _feeds(0)
    in_runtime(subject.model.ir, feeds)
    models.save(subject.model.ir, tmp_path / "again.onnx")
    operator = {"choice": "If", "loop": "Loop", "scan": "Scan"}[kind]
    again = onnx.load(tmp_path / "again.onnx")
    onnx.checker.check_model(again, full_check=True)
    assert [n.op_type for n in again.graph.node].count(operator) == 1
    assert {i.domain for i in again.opset_import} == {""}


@pytest.mark.parametrize("kind", ["loop", "scan"])
def test_every_turn_is_counted(tmp_path: Path, kind: str) -> None:
    path, _ = flow_graphs.graph(tmp_path, 3, (kind,))
    subject = Subject.load(path)
    own = Costs(subject.model, subject.structure, {"n": 2, "s": 5}).by_op()
    assert own == profiled_macs(path, _feeds(0))


@pytest.mark.parametrize("kinds", [("choice", "loop"), ("scan",)])
def test_without_torch_it_runs_node_by_node(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    path, _ = flow_graphs.graph(tmp_path, 2, kinds)
    machine = Interpreter(models.load(path).graph)
    machine.engine = NodeByNode()
    for side in range(2):
        feeds = _feeds(side)
        assert distance(machine.run(feeds), in_runtime(path, feeds)) < 1e-5


def test_what_one_side_of_a_choice_does_is_mended(tmp_path: Path) -> None:
    """Refits behind an If learn from the rows that take their side."""
    path, _ = flow_graphs.graph(tmp_path, 5, ("choice",))
    rng = np.random.default_rng(0)

    def rows(count: int) -> list[dict[str, np.ndarray]]:
        drawn = rng.standard_normal((count, 5, flow_graphs.WIDTH)).astype(np.float32)
        return [{"x": np.abs(x) if i % 2 else -np.abs(x)} for i, x in enumerate(drawn)]

    learn, judge = rows(64), rows(32)
    apart = {}
    for mended in (False, True):
        small = tmp_path / f"{mended}.onnx"
        result = onnxprune.prune(
            path, small, flops=0.6, calibration=learn, compensate=mended, round_to=1, measure_latency=False
        )  # fmt: skip
        inside = {x.weight for x in _linears(path, conditional=True)} - {x.weight for x in _linears(path)}
        assert inside and bool(inside & set(result.plan.weights)) == mended
        feeds = [{"x": row["x"][None]} for row in judge]
        pairs = [(in_runtime(path, f)["y"], in_runtime(small, f)["y"]) for f in feeds]
        apart[mended] = sum(float(np.square(a - b).sum()) for a, b in pairs)
    assert apart[True] < apart[False]


def _linears(path: Path, *, conditional: bool = False) -> list[Linear]:
    subject = Subject.load(path)
    return find_linears(subject.model.graph, subject.structure, conditional=conditional)
