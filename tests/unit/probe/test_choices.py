"""Control flow in a row: what hundreds of choices ask for is looked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from onnxprune.errors import UnsupportedError
from onnxprune.graph import model as models
from onnxprune.graph.flow import opening
from onnxprune.probe import interpreter, turns
from onnxprune.probe.interpreter import Interpreter

COUNT = 40


def choices(file: Path, condition: list[onnx.NodeProto]) -> models.Model:
    """x [n, 4], changed by one side or the other of `COUNT` Ifs, one behind the other, that ask one condition."""
    result = h.make_tensor_value_info("b", T.FLOAT, None)

    def side(op: str, stream: str) -> onnx.GraphProto:
        return h.make_graph([h.make_node(op, [stream], ["b"])], "side", [], [result])

    nodes = [*condition]
    for i in range(COUNT):
        sides = {"then_branch": side("Abs", f"x{i}"), "else_branch": side("Neg", f"x{i}")}
        nodes.append(h.make_node("If", ["asked"], [f"x{i + 1}"], **sides))
    ends = [h.make_tensor_value_info(name, T.FLOAT, ["n", 4]) for name in ("x0", f"x{COUNT}")]
    held = [nh.from_array(np.array(0, np.float32), "zero"), nh.from_array(np.array([], np.int64), "none")]
    graph = h.make_graph(nodes, "choices", ends[:1], ends[1:], held)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), file)
    return models.load(file)


SUM = [h.make_node("ReduceSum", ["x0"], ["sum"], keepdims=0), h.make_node("Greater", ["sum", "zero"], ["asked"])]


def test_choices_in_a_row_are_opened_and_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    asked: list[Any] = []
    opens = opening._opens

    def counted(node: Any, model: Any) -> bool:
        looked.append(node)
        return opens(node, model)

    def holds(value: Any) -> bool:
        asked.append(value)
        return turns.holds(value)

    monkeypatch.setattr(opening, "_opens", counted)
    monkeypatch.setattr(interpreter, "holds", holds)
    dense = choices(tmp_path / "m.onnx", SUM)
    assert len(looked) <= 3 * COUNT + len(SUM)  # each node, and those of its sides
    x = np.array([[1, -2, 3, 4]], np.float32)
    for stream, expected in ((x, np.abs(x)), (-x, -x)):
        asked.clear()
        (found,) = Interpreter(dense.graph).run({"x0": stream}).values()
        np.testing.assert_array_equal(found, expected)
        assert len(asked) == 1


def test_a_condition_without_a_value_is_said(tmp_path: Path) -> None:
    empty = [
        *SUM[:1],
        h.make_node("Greater", ["x0", "zero"], ["all"]),
        h.make_node("Gather", ["all", "none"], ["asked"]),
    ]
    dense = choices(tmp_path / "m.onnx", empty)
    with pytest.raises(UnsupportedError, match=r"the condition .* cannot be told"):
        Interpreter(dense.graph).run({"x0": np.ones((1, 4), np.float32)})
