"""Laws 1, 2 and 4 on recurrences: stacked layers, both directions, behind convolutions, by methods of every kind."""

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
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import find_sites
from onnxprune.measure.cost import Costs

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN, WIDE, CLASSES, LENGTH = 12, 16, 5, 10
DEAD = (1, 4, 7, 8)


def crnn(folder: Path, kind: str, *, directions: int = 2, dead: tuple[int, ...] = (), layers: int = 2) -> Path:
    """Conv, ReLU, `layers` recurrences and a classifier of every step, as PyTorch writes them: the first states of all
    layers are slices of one tensor of zeros."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return name

    states = ("h", "c") if kind == "LSTM" else ("h",)
    node, text = helper.make_node, np.array
    weights |= {"whole": text([0, 0, -1]), "batch_at": text([0]), "layers_at": text([layers * directions])}
    weights["width_at"] = text([HIDDEN])
    nodes = [
        node("Conv", ["x", weight("w0", WIDE, 3, 3)], ["a"], pads=[1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Transpose", ["b"], ["y0"], perm=[2, 0, 1]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "batch_at"], ["rows"]),
        node("Concat", ["layers_at", "rows", "width_at"], ["zeros_shape"], axis=0),
        node("ConstantOfShape", ["zeros_shape"], ["zeros"]),
    ]
    width = WIDE
    for i in range(layers):
        weights |= {f"from{i}": text([i * directions]), f"to{i}": text([(i + 1) * directions])}
        nodes.append(node("Slice", ["zeros", f"from{i}", f"to{i}", "batch_at"], [f"zero{i}"]))
        gates = GATES[kind] * HIDDEN
        inputs = [f"y{i}", weight(f"W{i}", directions, gates, width), weight(f"R{i}", directions, gates, HIDDEN)]
        inputs += [weight(f"B{i}", directions, 2 * gates), "", *[f"zero{i}"] * len(states)]
        way = "bidirectional" if directions == 2 else "forward"
        nodes += [
            node(kind, inputs, [f"r{i}"], hidden_size=HIDDEN, direction=way),
            node("Transpose", [f"r{i}"], [f"t{i}"], perm=[0, 2, 1, 3]),
            node("Reshape", [f"t{i}", "whole"], [f"y{i + 1}"]),
        ]
        width = directions * HIDDEN
    nodes += [
        node("Transpose", [f"y{layers}"], ["rows_first"], perm=[1, 0, 2]),
        node("MatMul", ["rows_first", weight("out", width, CLASSES)], ["logits"]),
    ]
    for unit in dead:
        for i in range(layers):
            weights[f"R{i}"][:, :, unit] = 0
            reader = weights[f"W{i + 1}"].swapaxes(1, 2)[0] if i + 1 < layers else weights["out"]
            for d in range(directions):
                (weights[f"W{i + 1}"][:, :, d * HIDDEN + unit] if i + 1 < layers else reader[d * HIDDEN + unit])[
                    ...
                ] = 0
    graph = helper.make_graph(
        nodes,
        "crnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, LENGTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LENGTH, CLASSES])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / "crnn.onnx"
    onnx.save(model, path)
    return path


def feeds(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 3, LENGTH)).astype(np.float32)}


def calibration(count: int = 24) -> list[dict[str, np.ndarray]]:
    return [feeds(1, 100 + i) for i in range(count)]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", list(GATES))
def test_cut_is_gated(tmp_path: Path, kind: str, directions: int) -> None:
    subject = Subject.load(crnn(tmp_path, kind, directions=directions))
    assert [(g.kind, g.size) for g in subject.structure.groups] == [
        *[("channels", WIDE), ("neurons", HIDDEN)][:: 1 if subject.structure.groups[0].kind == "channels" else -1],
        ("neurons", HIDDEN),
    ]
    agreed(subject, feeds(3))
    assert distance(subject.dense(feeds(2)), in_runtime(subject.model.path or Path(), feeds(2))) < 1e-5


@pytest.mark.parametrize("kind", list(GATES))
def test_zeroed_rows_say_the_same(tmp_path: Path, kind: str) -> None:
    """Units are read by weights alone: the file itself, its reading rows zeroed, is what is left."""
    subject = Subject.load(crnn(tmp_path, kind))
    group = next(g for g in subject.structure.groups if g.kind == "neurons")
    plan = Plan(subject.model.digest, {group.id: tuple(i for i in range(HIDDEN) if i not in DEAD)})
    zeroed = subject.zeroed(plan, feeds(2))
    assert zeroed is not None
    assert distance(subject.written(plan, feeds(2)), zeroed) < 1e-5
    assert distance(subject.dense(feeds(2)), zeroed) > 1e-3


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("LSTM", "obs"), ("GRU", "obs"), ("LSTM", "magnitude"), ("GRU", "wanda"), ("LSTM", "fisher"), ("GRU", "taylor"),
        ("RNN", "optin"), ("LSTM", "seven-weights"), ("GRU", "snip"),
    ],
)  # fmt: skip
def test_dead_units_leave_unnoticed(tmp_path: Path, kind: str, method: str) -> None:
    path = crnn(tmp_path, kind, dead=DEAD)
    subject = Subject.load(path)
    sites = find_sites(subject.model.graph, subject.structure, ("neurons",))
    costs = Costs(subject.model, subject.structure, {"batch": 1})
    alive = tuple(i for i in range(HIDDEN) if i not in DEAD)
    live = costs.macs(Plan(subject.structure.digest, {s.id: alive for s in sites})) / costs.macs()
    result = onnxprune.prune(
        path, flops=live + 0.02, calibration=calibration(), method=method, round_to=1, compensate=False,
        units=("neurons",), measure_latency=False,
    )  # fmt: skip
    assert {len(units) for units in result.plan.keep.values()} <= set(range(len(alive), HIDDEN))
    assert result.plan.keep
    assert distance(in_runtime(result.model, feeds(3)), in_runtime(path, feeds(3))) < 1e-4


def test_costs_are_those_of_what_is_written(tmp_path: Path) -> None:
    subject = Subject.load(crnn(tmp_path, "LSTM"))
    costs = Costs(subject.model, subject.structure, {"batch": 1})
    assert costs.by_op()["LSTM"] == LENGTH * 2 * 4 * HIDDEN * ((WIDE + HIDDEN) + (2 * HIDDEN + HIDDEN))
    keep = {g.id: tuple(range(7)) for g in subject.structure.groups}
    folder = tmp_path / "cut"
    folder.mkdir()
    plan = Plan(subject.model.digest, keep)
    onnx.save(as_proto(subject.rewritten(plan)), folder / "cut.onnx")
    cut = Subject.load(folder / "cut.onnx")
    assert Costs(cut.model, cut.structure, {"batch": 1}).by_op() == costs.by_op(plan)
    (hidden,) = {n.attributes["hidden_size"].as_int() for n in cut.model.graph if n.op_type == "LSTM"}
    assert hidden == 7


def as_proto(model: Any) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(model)


@pytest.mark.parametrize("kind", ["channels", "neurons"])
def test_pruned_and_mended_upstream_and_inside(tmp_path: Path, kind: str) -> None:
    path = crnn(tmp_path, "LSTM")
    result = onnxprune.prune(
        path, flops=0.8, calibration=calibration(), units=(kind,), round_to=1, measure_latency=False
    )
    assert {name.split(".")[0] for name in result.plan.keep} == {kind}
    assert result.plan.weights


@pytest.mark.parametrize("unread", ["", "y"])
@pytest.mark.parametrize("kind", GATES)
def test_the_last_state_alone_is_read(tmp_path: Path, kind: str, unread: str) -> None:
    """As classifiers of sequences do: the states of every step have no name, or one that nothing reads."""
    rng = np.random.default_rng(0)
    shapes = {"W": (1, GATES[kind] * HIDDEN, 6), "R": (1, GATES[kind] * HIDDEN, HIDDEN), "V": (HIDDEN, CLASSES)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 3, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node(kind, ["x", "W", "R"], [unread, "h"], hidden_size=HIDDEN),
        helper.make_node("MatMul", ["h", "V"], ["z"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "n", 6])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    subject = Subject.load(tmp_path / "model.onnx")
    assert [group.size for group in subject.structure.groups] == [HIDDEN]
    agreed(subject, {"x": rng.standard_normal((LENGTH, 3, 6)).astype(np.float32)})
