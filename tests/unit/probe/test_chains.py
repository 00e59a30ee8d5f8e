"""Chains of nodes that are one call give what their nodes give, and are their nodes where somebody looks inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxprune.graph.prepare import normalise
from onnxprune.probe.interpreter import Interpreter

GELUS = {
    "as exporters write it": "d = Div(p, two)\n e = Erf(d)\n a = Add(e, one)\n m = Mul(p, a)\n y = Mul(m, half)",
    "the half first": "d = Mul(root, p)\n e = Erf(d)\n a = Add(one, e)\n m = Mul(half, a)\n y = Mul(m, p)",
    "x halved": "h = Mul(p, half)\n d = Div(p, two)\n e = Erf(d)\n a = Add(e, one)\n y = Mul(h, a)",
}
OTHERS = {
    "divided by two": "d = Div(p, off)\n e = Erf(d)\n a = Add(e, one)\n m = Mul(p, a)\n y = Mul(m, half)",
    "of another value": "d = Div(p, two)\n e = Erf(d)\n a = Add(e, one)\n m = Mul(x, a)\n y = Mul(m, half)",
    "read elsewhere": (
        "d = Div(p, two)\n e = Erf(d)\n a = Add(e, one)\n m = Mul(p, a)\n k = Mul(m, half)\n y = Add(k, e)"
    ),
}


def _graph(text: str) -> ir.Graph:
    weight = ", ".join(f"{x:.4f}" for x in np.random.default_rng(0).standard_normal(36))
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[n, 6] x) => (float[n, 6] y)'
        "<float two = {1.4142135}, float root = {0.70710677}, float one = {1}, float half = {0.5}, float off = {2},"
        " float[6] b = {1, 2, 3, 4, 5, 6},"
        f" float[6, 6] w = {{{weight}}}> {{ q = MatMul(x, w)\n p = Add(b, q)\n {text} }}"
    )
    return normalise(model).graph


def _apart(graph: ir.Graph) -> Interpreter:
    found = Interpreter(graph)
    found.schedule._chains = []
    return found


def _feeds() -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)}


def _steps(interpreter: Interpreter, *outputs: str) -> int:
    return len(interpreter.schedule.between(frozenset(["x"]), outputs or ("y",)))


@pytest.mark.parametrize("text", GELUS.values(), ids=GELUS)
def test_a_gelu_and_a_product_with_a_bias_are_two_calls(text: str) -> None:
    graph = _graph(text)
    found, apart = Interpreter(graph), _apart(graph)
    assert (_steps(found), _steps(apart)) == (2, 7)
    own, should = found.run(_feeds())["y"], apart.run(_feeds())["y"]
    assert torch.allclose(own, should, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_what_only_looks_like_a_gelu_is_done_node_by_node(text: str) -> None:
    graph = _graph(text)
    found, apart = Interpreter(graph), _apart(graph)
    assert _steps(found) == _steps(apart) - 1
    assert torch.allclose(found.run(_feeds())["y"], apart.run(_feeds())["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", GELUS.values(), ids=GELUS)
def test_who_looks_inside_finds_the_nodes(text: str) -> None:
    graph = _graph(text)
    found, apart = Interpreter(graph), _apart(graph)
    names = [v.name or "" for node in graph for v in node.outputs]
    for name in names:
        own, should = (i.run(_feeds(), outputs=[name, "y"]) for i in (found, apart))
        assert all(torch.allclose(own[k], should[k], rtol=1e-5, atol=1e-6) for k in own)
        onward = {name: own[name], **_feeds()}
        again, other = (i.run(onward, outputs=["y"])["y"] for i in (found, apart))
        assert torch.allclose(again, other, rtol=1e-5, atol=1e-6)
    before = found.run(_feeds())["y"]
    for node in graph:
        for place in range(len(node.inputs)):
            edit = {(node.name or "", place): lambda x: x * 1.5}
            own, should = (i.run(_feeds(), edit=edit)["y"] for i in (found, apart))
            assert torch.allclose(own, should, rtol=1e-5, atol=1e-6)
            assert not torch.allclose(own, before, rtol=1e-3)


def test_other_weights_and_numbers_count() -> None:
    graph = _graph(GELUS["as exporters write it"])
    found, apart = Interpreter(graph), _apart(graph)
    before = found.run(_feeds())["y"]
    for name in graph.initializers:
        weights = {name: found.weight(name) * 1.5}
        own, should = (i.run(_feeds(), weights=weights)["y"] for i in (found, apart))
        assert torch.allclose(own, should, rtol=1e-5, atol=1e-6) and not torch.allclose(own, before, rtol=1e-3)


def test_gradients_go_through() -> None:
    graph = _graph(GELUS["as exporters write it"])
    slopes = []
    for interpreter in (Interpreter(graph), _apart(graph)):
        x = torch.from_numpy(_feeds()["x"]).requires_grad_()
        slopes.append(torch.autograd.grad(interpreter.run({"x": x})["y"].sum(), x)[0])
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)
