"""Lists that loops append to are tensors that loops stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from plans import Subject, distance, in_runtime, random_plan

WEIGHTS = {"u": (6, 20), "h": (20, 20), "o": (20, 5)}


def _file(folder: Path, axis: int, new: int) -> Path:
    """x [n, s, 6] -> s steps of a recurrence of 20, whose results of 5 a torch script would append to a list."""
    rng = np.random.default_rng(0)
    weights = [nh.from_array((rng.standard_normal(s) / 4).astype(np.float32), n) for n, s in WEIGHTS.items()]
    weights += [nh.from_array(np.array(v), n) for n, v in (("one", 1), ("yes", True), ("last", [-1]))]
    turn = [
        h.make_node("Gather", ["x", "t"], ["xt"], axis=1),
        h.make_node("MatMul", ["xt", "u"], ["a"]),
        h.make_node("MatMul", ["s0", "h"], ["b"]),
        h.make_node("Add", ["a", "b"], ["ab"]),
        h.make_node("Tanh", ["ab"], ["s1"]),
        h.make_node("MatMul", ["s1", "o"], ["y0"]),
        h.make_node("Unsqueeze", ["y0", "last"], ["y1"]),
        h.make_node("SequenceInsert", ["l0", "y1"], ["l1"]),
        h.make_node("Identity", ["k0"], ["k1"]),
    ]
    listed = [h.make_tensor_sequence_value_info(name, T.FLOAT, None) for name in ("l0", "l1")]
    state = [h.make_tensor_value_info(name, T.FLOAT, ["n", 20]) for name in ("s0", "s1")]
    going = [h.make_tensor_value_info(name, T.BOOL, []) for name in ("k0", "k1")]
    count = h.make_tensor_value_info("t", T.INT64, [])
    body = h.make_graph(turn, "turn", [count, going[0], listed[0], state[0]], [going[1], listed[1], state[1]])
    nodes = [
        h.make_node("Shape", ["x"], ["sizes"]),
        h.make_node("Gather", ["sizes", "one"], ["turns"], axis=0),
        h.make_node("ReduceSum", ["x", "first"], ["mean"], keepdims=0),
        h.make_node("MatMul", ["mean", "u"], ["start"]),
        h.make_node("SequenceEmpty", [], ["empty"], dtype=T.FLOAT),
        h.make_node("Loop", ["turns", "yes", "empty", "start"], ["list", "end"], name="loop", body=body),
        h.make_node("ConcatFromSequence", ["list"], ["y"], axis=axis, new_axis=new),
    ]
    weights.append(nh.from_array(np.array([1]), "first"))
    shape: list[str | int | None] = ["n", "s", 6]
    out = h.make_tensor_value_info("y", T.FLOAT, [None] * (3 + new))
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, shape)], [out], weights)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), folder / "list.onnx")
    return folder / "list.onnx"


@pytest.mark.parametrize(("axis", "new"), [(0, 1), (1, 1), (-1, 1), (0, 0), (1, 0), (-1, 0)])
def test_what_is_joined_of_a_list_is_stacked(tmp_path: Path, axis: int, new: int) -> None:
    path = _file(tmp_path, axis, new)
    subject = Subject.load(path)
    assert [g.shape for g in subject.structure.groups] == [(20,)]
    for rows, steps in ((2, 4), (1, 1), (3, 7)):
        feeds = {"x": np.random.default_rng(steps).standard_normal((rows, steps, 6)).astype(np.float32)}
        whole = in_runtime(path, feeds)
        assert distance(in_runtime(subject.model.ir, feeds), whole) < 1e-5
        assert distance(subject.dense(feeds), whole) < 1e-5
        plan = subject.complete(random_plan(subject, np.random.default_rng(0)), feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
