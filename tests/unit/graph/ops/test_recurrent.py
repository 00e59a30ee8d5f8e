"""LSTM, GRU and RNN: as ONNX Runtime computes them, cut by their hidden units, counted and differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from ops_tools import Case, Node, assert_agrees, assert_cut_is_gated, feeds, proto

from onnxprune.graph.prepare import stamp
from onnxprune.probe.interpreter import Interpreter

STEPS, ROWS, WIDE, HIDDEN = 5, 3, 4, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return (0.5 * _RNG.standard_normal(shape)).astype(np.float32)


def recurrence(
    kind: str,
    *,
    directions: int = 1,
    given: tuple[str, ...] = ("bias",),
    outputs: tuple[int, ...] = (1, 1),
    label: str = "",
    **attributes: Any,
) -> Case:
    """One recurrence; `given` names the optional inputs that are there."""
    gates, batch_first = GATES[kind], attributes.get("layout", 0)
    x = normal(ROWS, STEPS, WIDE) if batch_first else normal(STEPS, ROWS, WIDE)
    state = (ROWS, directions, HIDDEN) if batch_first else (directions, ROWS, HIDDEN)
    inputs: list[np.ndarray | None] = [x, normal(directions, gates * HIDDEN, WIDE)]
    inputs += [normal(directions, gates * HIDDEN, HIDDEN)]
    inputs += [normal(directions, 2 * gates * HIDDEN) if "bias" in given else None]
    inputs += [np.array([5, 2, 3], dtype=np.int32) if "lengths" in given else None]
    inputs += [normal(*state) if "states" in given else None]
    if kind == "LSTM":
        inputs += [normal(*state) if "states" in given else None]
        inputs += [normal(directions, 3 * HIDDEN) if "peepholes" in given else None]
    while inputs[-1] is None:
        inputs.pop()
    way = attributes.pop("direction", "bidirectional" if directions == 2 else None)
    named = {"hidden_size": HIDDEN, "direction": way, **attributes}
    return Case(
        kind, inputs, named, opset=14, outputs=outputs, fixed=frozenset({1, 2}), free=(3, 4, 6), label=f"{kind}-{label}"
    )


def cases() -> Iterator[Case]:
    everything = ("bias", "lengths", "states")
    for kind in GATES:
        outputs = (1, 1, 1) if kind == "LSTM" else (1, 1)
        yield recurrence(kind, outputs=outputs, label="plain")
        yield recurrence(kind, given=(), outputs=(0, 1), label="last")
        yield recurrence(kind, direction="reverse", given=everything, outputs=outputs, label="reverse")
        yield recurrence(kind, directions=2, given=everything, outputs=outputs, label="both")
        yield recurrence(kind, clip=0.3, given=("bias", "states"), label="clip")
    yield recurrence("GRU", linear_before_reset=1, label="linear before reset")
    yield recurrence("GRU", linear_before_reset=1, directions=2, given=everything, label="linear before reset, both")
    yield recurrence("LSTM", given=("bias", "states", "peepholes"), outputs=(1, 1, 1), label="peepholes")
    yield recurrence("LSTM", input_forget=1, label="coupled")
    yield recurrence("LSTM", activations=["HardSigmoid", "Relu", "Softsign"], label="activations")
    yield recurrence(
        "RNN",
        directions=2,
        activations=["LeakyRelu", "ScaledTanh"],
        activation_alpha=[0.2, 0.9],
        activation_beta=[0.7],
        label="parameters",
    )


CASES = [c for c in cases() if not (onnxruntime.__version__.startswith("1.24.") and c.label.endswith("parameters"))]
"""Where activations have fewer betas than there are of them, ONNX Runtime 1.24 ends the process."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_runtime(case: Case) -> None:
    assert_agrees(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cut_is_gated(case: Case) -> None:
    assert_cut_is_gated(case)


@pytest.mark.parametrize("kind", list(GATES))
def test_layout_with_the_batch_first_is_the_other_one_transposed(kind: str) -> None:
    """ONNX Runtime has no kernel for it: the standard's own words are the reference."""
    given = ("bias", "states")
    case = recurrence(kind, directions=2, given=given, layout=1, outputs=(1, 1))
    other = recurrence(kind, directions=2, given=given, outputs=(1, 1))
    found = run(case)
    turned = [x if i in (1, 2, 3) or x is None else x.swapaxes(0, 1) for i, x in enumerate(case.inputs)]
    y, last = run(Case(kind, turned, other.attributes, opset=14, outputs=(1, 1), fixed=case.fixed))
    np.testing.assert_allclose(found[0], y.transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], last.swapaxes(0, 1), rtol=1e-5, atol=1e-6)


def run(case: Case) -> list[np.ndarray]:
    model = stamp(ir.from_proto(proto(case)))
    found = Interpreter(model.graph).run(feeds(case))
    return [found[str(v.name)].numpy() for v in model.graph.outputs]


@pytest.mark.parametrize("kind", list(GATES))
def test_counts_both_matrices_at_every_step(kind: str) -> None:
    node = Node(recurrence(kind, directions=2))
    assert node.operator.macs is not None
    expected = STEPS * ROWS * 2 * GATES[kind] * HIDDEN * (WIDE + HIDDEN)
    assert node.operator.macs(node.node, node) == expected


@pytest.mark.parametrize("kind", list(GATES))
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    case = recurrence(kind, directions=2, given=("bias", "lengths", "states"))
    graph = stamp(ir.from_proto(proto(case))).graph
    machine, fed = Interpreter(graph), feeds(case)
    weight = machine.weight("i2").double()

    def loss(r: Any) -> Any:
        doubled = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in fed.items()}
        return machine.run(doubled, weights={"i1": machine.weight("i1").double(), "i2": r})["o0"].sin().sum()

    r = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(r), r)
    step = torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(weight.shape)))
    difference = (loss(weight + 1e-5 * step) - loss(weight - 1e-5 * step)) / 2e-5
    assert float((gradient * step).sum()) == pytest.approx(float(difference), rel=1e-6)
