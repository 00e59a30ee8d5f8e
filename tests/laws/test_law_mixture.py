"""Laws 1, 2 and 4 on mixtures of experts in one operator, as builders of decoders write them."""

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
from onnxprune.measure.cost import Costs

STREAM, NEURONS, EXPERTS, BEST, CLASSES, LAYERS, LENGTH = 8, 16, 4, 2, 5, 2, 6
DEAD = (1, 4, 5, 7, 8, 11, 14)
_node = helper.make_node


def decoder(folder: Path, activation: str = "swiglu", dead: tuple[int, ...] = ()) -> Path:
    """Two layers of experts beside a stream of their own, and a classifier of every token."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return name

    weights["flat"], columns = np.array([-1, EXPERTS]), 2 if activation == "swiglu" else 1
    options: dict[str, Any] = {
        "activation_type": activation,
        "k": BEST,
        "normalize_routing_weights": 1,
        "swiglu_fusion": columns - 1,
    }
    nodes = []
    for i in range(LAYERS):
        first = [weight(f"fc1.{i}", EXPERTS, NEURONS * columns, STREAM), weight(f"b1.{i}", EXPERTS, NEURONS * columns)]
        second = [weight(f"fc2.{i}", EXPERTS, STREAM, NEURONS), weight(f"b2.{i}", EXPERTS, STREAM)]
        weights[f"fc2.{i}"][..., list(dead)] = 0
        nodes += [
            _node("MatMul", [f"x{i}", weight(f"router.{i}", STREAM, EXPERTS)], [f"r{i}"]),
            _node("Reshape", [f"r{i}", "flat"], [f"s{i}"]),
            _node("MoE", [f"x{i}", f"s{i}", *first, *second], [f"m{i}"], domain="com.microsoft", **options),
            _node("Add", [f"x{i}", f"m{i}"], [f"x{i + 1}"]),
        ]
    nodes.append(_node("MatMul", [f"x{LAYERS}", weight("head", STREAM, CLASSES)], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "experts",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", "length", STREAM])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", CLASSES])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "experts.onnx")
    return folder / "experts.onnx"


def feeds(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x0": np.random.default_rng(seed).standard_normal((rows, LENGTH, STREAM)).astype(np.float32)}


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_cut_is_gated(tmp_path: Path, activation: str) -> None:
    subject = Subject.load(decoder(tmp_path, activation))
    assert [(g.kind, g.size) for g in subject.structure.groups] == [("neurons", NEURONS)] * LAYERS
    assert any("chosen by their number" in why for pin in subject.structure.pins for why in pin.reasons)
    agreed(subject, feeds(3))


@pytest.mark.parametrize("method", ["obs", "magnitude", "wanda", "fisher", "taylor", "optin"])
def test_dead_neurons_leave_unnoticed(tmp_path: Path, method: str) -> None:
    path = decoder(tmp_path, dead=DEAD)
    subject = Subject.load(path)
    costs = Costs(subject.model, subject.structure, {"batch": 1, "length": LENGTH})
    alive = tuple(i for i in range(NEURONS) if i not in DEAD)
    live = costs.macs(Plan(subject.structure.digest, {g.id: alive for g in subject.structure.groups})) / costs.macs()
    result = onnxprune.prune(
        path, flops=live + 0.01, calibration=[feeds(1, 100 + i) for i in range(24)], method=method, round_to=1,
        compensate=False, measure_latency=False, shape={"length": LENGTH},
    )  # fmt: skip
    assert {len(units) for units in result.plan.keep.values()} == {len(alive)}
    assert distance(in_runtime(result.model, feeds(3)), in_runtime(path, feeds(3))) < 1e-5


def test_what_stays_is_mended(tmp_path: Path) -> None:
    """With the defaults: units of all kinds that are there, weights refit around the experts, the file checked."""
    result = onnxprune.prune(
        decoder(tmp_path), flops=0.8, calibration=[feeds(1, 100 + i) for i in range(24)], measure_latency=False,
    )  # fmt: skip
    assert result.report.flops.ratio <= 0.8
