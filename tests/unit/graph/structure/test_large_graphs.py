"""What graphs of thousands of nodes take grows with them, not with their square: work is counted, not timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h

from onnxprune.graph import model as models
from onnxprune.graph import prepare
from onnxprune.graph.axes import Solver
from onnxprune.graph.flow import closing
from onnxprune.graph.prepare import shared_biases
from onnxprune.graph.structure import twins
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.branches import find_branches


def _written(file: Path, nodes: list[onnx.NodeProto], width: int = 4) -> Path:
    """x -> nodes -> last @ w -> y."""
    weights = [onnx.numpy_helper.from_array(np.ones((width, 4), np.float32), "w")]
    weights.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"))
    nodes = [*nodes, h.make_node("MatMul", ["last", "w"], ["y"])]
    ends = h.make_tensor_value_info("x", 1, ["n", 4]), h.make_tensor_value_info("y", 1, ["n", 4])
    graph = h.make_graph(nodes, "g", [ends[0]], [ends[1]], weights)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), file)
    return file


def _concat(count: int) -> list[onnx.NodeProto]:
    parts = [f"p{i}" for i in range(count)]
    return [*(h.make_node("Relu", ["x"], [p]) for p in parts), h.make_node("Concat", parts, ["last"], axis=1)]


def _residuals(count: int) -> list[onnx.NodeProto]:
    names = ["x", *(f"z{i}" for i in range(1, count)), "last"]
    return [
        node
        for i, (before, after) in enumerate(itertools.pairwise(names))
        for node in (h.make_node("Tanh", [before], [f"t{i}"]), h.make_node("Add", [before, f"t{i}"], [after]))
    ]


def _sum(count: int) -> list[onnx.NodeProto]:
    parts = [f"p{i}" for i in range(count)]
    nodes = [h.make_node("Tanh", ["x"], [p]) for p in parts]
    return [*nodes, h.make_node("Concat", parts, ["wide"], axis=0), h.make_node("Identity", ["wide"], ["last"])]


def _choices(count: int) -> list[onnx.NodeProto]:
    names = ["x", *(f"z{i}" for i in range(1, count)), "last"]
    nodes = [h.make_node("ReduceSum", ["x"], ["all"], keepdims=0), h.make_node("Greater", ["all", "zero"], ["c"])]
    for before, after in itertools.pairwise(names):
        sides = [
            h.make_graph([h.make_node(op, [before], ["b"])], op, [], [h.make_tensor_value_info("b", 1, None)])
            for op in ("Abs", "Neg")
        ]
        nodes.append(h.make_node("If", ["c"], [after], then_branch=sides[0], else_branch=sides[1]))
    return nodes


class Counted(list[Any]):
    """A list that counts the elements that are taken from it."""

    taken = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        Counted.taken += len(found) if isinstance(at, slice) else 1
        return found


def _counting(monkeypatch: pytest.MonkeyPatch, home: Any, name: str) -> Callable[[], int]:
    calls = [0]
    real = getattr(home, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return real(*arguments, **options)

    monkeypatch.setattr(home, name, counted)

    def since() -> int:
        calls[0], done = 0, calls[0]
        return done

    return since


def test_the_parts_of_a_wide_concat_are_tied_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = []
    calls = _counting(monkeypatch, Solver, "_resolve_factor")
    for count in (100, 200):
        model = models.load(_written(tmp_path / "m.onnx", _concat(count), 4 * count))
        calls()
        analyze(model)
        work.append(calls())
    assert work[1] < 3 * work[0]


def test_a_branch_is_looked_for_between_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = []
    monkeypatch.setattr(twins, "find_branches", lambda nodes, *more: find_branches(Counted(nodes), *more))
    for count in (50, 100):
        model = models.load(_written(tmp_path / "m.onnx", _residuals(count)))
        Counted.taken = 0
        analyze(model)
        work.append(Counted.taken)
    assert 0 < work[1] < 3 * work[0]


def test_a_node_of_many_inputs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counting(monkeypatch, shared_biases, "_mixes")
    graph = models.load(_written(tmp_path / "m.onnx", _sum(50))).graph
    assert 0 < calls() <= len(graph)


def test_control_flow_is_put_back_in_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load(_written(tmp_path / "m.onnx", _choices(30)))
    calls = _counting(monkeypatch, closing, "Flow")
    written = prepare.written(model.normal)
    assert sum(n.op_type == "If" for n in written.graph) == 30
    assert calls() == 1 + 2 * 30  # of the graph, and of each body
