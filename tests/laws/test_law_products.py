"""Laws 1 and 4 on units that are read both by weights and by products of two activations, or by sums of squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import agreed
from onnx import TensorProto, helper, numpy_helper
from plans import Subject, distance, in_runtime

import onnxprune
from onnxprune.graph.structure.sites import find_sites

node = helper.make_node
STATES, CLASSES = 12, 5


def _saved(folder: Path, nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], ends: list[str]) -> Path:
    rng = np.random.default_rng(0)
    held = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    held.append(numpy_helper.from_array(np.array([1]), "one"))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["steps", "batch", 6]) for n in ("source", "target")]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ends]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    return folder / "model.onnx"


def attending(folder: Path) -> Path:
    """An LSTM whose every state attends to those of another (Luong): the states are one width throughout."""
    nodes = [
        node("LSTM", ["source", "W0", "R0"], ["e", "h", "c"], hidden_size=STATES),
        node("LSTM", ["target", "W1", "R1", "", "", "h", "c"], ["d"], hidden_size=STATES),
        *(node("Squeeze", [x, "one"], [f"{x}s"]) for x in "ed"),
        *(node("Transpose", [f"{x}s"], [f"{x}r"], perm=[1, 0, 2]) for x in "ed"),
        node("MatMul", ["er", "Wa"], ["keys"]),
        node("Transpose", ["keys"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["dr", "turned"], ["fit"]),
        node("Softmax", ["fit"], ["share"], axis=-1),
        node("MatMul", ["share", "er"], ["seen"]),
        node("Concat", ["seen", "dr"], ["both"], axis=-1),
        node("MatMul", ["both", "Wo"], ["y"]),
    ]
    gates = {f"{k}{i}": (1, 4 * STATES, w) for i in (0, 1) for k, w in (("W", 6), ("R", STATES))}
    return _saved(folder, nodes, {**gates, "Wa": (STATES, STATES), "Wo": (2 * STATES, CLASSES)}, ["y"])


def normed(folder: Path) -> Path:
    """Neurons whose length is an output beside what a matrix makes of them."""
    nodes = [
        node("MatMul", ["source", "Wu"], ["u"]),
        node("Relu", ["u"], ["r"]),
        node("ReduceL2", ["r"], ["length"], axes=[2]),
        node("MatMul", ["r", "Wo"], ["z"]),
        node("Add", ["z", "target"], ["y"]),
    ]
    return _saved(folder, nodes, {"Wu": (6, 16), "Wo": (16, 6)}, ["y", "length"])


BUILD = {"attending": (attending, STATES), "normed": (normed, 16)}


def _feeds(count: int) -> dict[str, np.ndarray]:
    return {n: np.random.default_rng(1).standard_normal((7, count, 6)).astype(np.float32) for n in ("source", "target")}


@pytest.mark.parametrize("name", BUILD)
def test_they_are_neurons_and_a_cut_is_gated(tmp_path: Path, name: str) -> None:
    build, width = BUILD[name]
    subject = Subject.load(build(tmp_path))
    (group,) = subject.structure.groups
    assert (group.kind, group.size) == ("neurons", width)
    (site,) = find_sites(subject.model.graph, subject.structure, ("neurons",))
    assert 0 < len(site.matrices) < len(group.readers)
    agreed(subject, _feeds(3))


def test_dead_states_leave_unnoticed(tmp_path: Path) -> None:
    """By rows that stand on the second axis, as steps stand on the first."""
    path = attending(tmp_path)
    model = onnx.load(path)
    weights = {w.name: w for w in model.graph.initializer}
    for i in (0, 1):  # a state whose gates read nothing stays at zero
        for name in (f"W{i}", f"R{i}"):
            array = numpy_helper.to_array(weights[name]).copy()
            array.reshape(4, STATES, -1)[:, ::2] = 0
            weights[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    rows = [{k: v[:, i : i + 1] for k, v in _feeds(24).items()} for i in range(24)]
    options: dict[str, Any] = {
        "units": ("neurons",),
        "flops": 0.55,
        "compensate": False,
        "round_to": 1,
        "measure_latency": False,
    }
    result = onnxprune.prune(path, tmp_path / "small.onnx", calibration=rows, **options)
    assert result.report.flops.ratio <= 0.55
    assert result.report.drift is not None and result.report.drift.max_abs < 1e-5


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceL2", "ReduceL1"])
def test_what_sums_alone_read_goes_by_what_it_adds(tmp_path: Path, kind: str) -> None:
    """Two towers that meet in a product of sums: dead where either is zero, and no weight reads them."""
    nodes = [
        node("MatMul", ["source", "Wu"], ["u"]),
        node("MatMul", ["target", "Wv"], ["v"]),
        node("Mul", ["u", "v"], ["m"]),
        node(kind, ["m", "two"], ["y"], keepdims=0),
    ]
    path = _saved(tmp_path, nodes, {"Wu": (6, 16), "Wv": (6, 16)}, ["y"])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    model.opset_import[0].version = 18
    weights = {w.name: w for w in model.graph.initializer}
    for name, dead in (("Wu", [1, 4, 9, 15]), ("Wv", [0, 4, 7, 12, 13])):
        array = numpy_helper.to_array(weights[name]).copy()
        array[:, dead] = 0
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    subject = Subject.load(path)
    (group,) = subject.structure.groups
    assert (group.kind, group.shape) == ("neurons", (16,))
    agreed(subject, _feeds(3))
    rows = [{k: v[:, i : i + 1] for k, v in _feeds(24).items()} for i in range(24)]
    small = tmp_path / "small.onnx"
    result = onnxprune.prune(
        path, small, calibration=rows, units=("neurons",), flops=0.5, round_to=1, compensate=False,
        measure_latency=False,
    )  # fmt: skip
    assert result.plan.keep[group.id] == (2, 3, 5, 6, 8, 10, 11, 14)
    assert distance(in_runtime(small, _feeds(5)), in_runtime(path, _feeds(5))) < 1e-5
