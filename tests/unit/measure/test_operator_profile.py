"""MACs from ONNX Runtime's profile against counts made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from onnxprune.errors import UnsupportedError
from onnxprune.measure import operator_profile

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '


def build(nodes: list[Any], inputs: Mapping[str, tuple[int, ...]], outputs: int = 1, **constants: np.ndarray) -> bytes:
    """A model of float inputs; outputs are the first ones of the last node."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output[:outputs]],
        [
            helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.ravel().tolist())
            for name, a in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def zeros(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def weight(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("x", "w", "macs"),
    [((2, 5, 8), (8, 3), 2 * 5 * 8 * 3), ((2, 4, 5, 8), (2, 4, 8, 5), 2 * 4 * 5 * 8 * 5), ((8,), (8, 3), 24)],
)
def test_matmul(x: tuple[int, ...], w: tuple[int, ...], macs: int) -> None:
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, w=weight(*w))
    assert operator_profile.profiled_macs(model, zeros(x=x)) == {"MatMul": macs}


def test_matmul_with_the_constant_first() -> None:
    model = build([helper.make_node("MatMul", ["w", "x"], ["y"])], {"x": (8, 5)}, w=weight(3, 8))
    assert operator_profile.profiled_macs(model, zeros(x=(8, 5))) == {"MatMul": 3 * 8 * 5}


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_and_fused_matmul_may_be_transposed(transposed: tuple[int, int]) -> None:
    a, b = transposed
    x, w = ((8, 5) if a else (5, 8)), ((3, 8) if b else (8, 3))
    gemm = build([helper.make_node("Gemm", ["x", "w"], ["y"], transA=a, transB=b)], {"x": x}, w=weight(*w))
    assert operator_profile.profiled_macs(gemm, zeros(x=x)) == {"Gemm": 120}
    fused = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transA=a, transB=b)
    model = build([fused], {"x": (2, *x)}, w=weight(*w))
    assert operator_profile.profiled_macs(model, zeros(x=(2, *x))) == {"FusedMatMul": 240}


@pytest.mark.parametrize("group", [1, 2, 4])
def test_convolutions(group: int) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], group=group, strides=[2, 1])
    model = build([conv], {"x": (2, 4, 9, 7)}, w=weight(8, 4 // group, 3, 3))
    assert operator_profile.profiled_macs(model, zeros(x=(2, 4, 9, 7))) == {"Conv": 2 * 8 * 4 * 5 * (4 // group) * 9}
    back = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=group)
    model = build([back], {"x": (2, 4, 9, 7)}, w=weight(4, 8 // group, 3, 3))
    assert operator_profile.profiled_macs(model, zeros(x=(2, 4, 9, 7))) == {
        "ConvTranspose": 2 * 4 * 63 * (8 // group) * 9
    }


def test_einsum_needs_its_equation() -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="e", equation="...ij,kj->...ik")
    model = build([node], {"x": (2, 3, 5, 8)}, w=weight(7, 8))
    feeds = zeros(x=(2, 3, 5, 8))
    assert operator_profile.profiled_macs(model, feeds, equations={"e": "...ij,kj->...ik"}) == {
        "Einsum": 2 * 3 * 5 * 7 * 8
    }
    with pytest.raises(UnsupportedError, match="'e'"):
        operator_profile.profiled_macs(model, feeds)


def attention(op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [f"y{i}" for i in range(outputs)], domain="com.microsoft", **attributes)


def test_attention_with_packed_weights() -> None:
    x = {"x": (2, 5, 16)}
    weights, bias = weight(16, 8 + 8 + 4), weight(20)
    node = attention("Attention", ["x", "w", "b"], num_heads=2, qkv_hidden_sizes=[8, 8, 4])
    expected = 2 * 5 * 16 * 20 + 2 * 5 * 5 * (8 + 4)
    assert operator_profile.profiled_macs(build([node], x, w=weights, b=bias), zeros(**x)) == {"Attention": expected}


def test_multi_head_attention_over_other_keys() -> None:
    q, k = (2, 5, 16), (2, 7, 16)
    apart = build([attention("MultiHeadAttention", ["q", "k", "v"], num_heads=4)], {"q": q, "k": k, "v": k})
    expected = 2 * (2 * 5 * 7 * 16)
    assert operator_profile.profiled_macs(apart, zeros(q=q, k=k, v=k)) == {"MultiHeadAttention": expected}
    cached = (2, 4, 7, 4)
    apart = build([attention("MultiHeadAttention", ["q", "k", "v"], num_heads=4)], {"q": q, "k": cached, "v": cached})
    assert operator_profile.profiled_macs(apart, zeros(q=q, k=cached, v=cached)) == {"MultiHeadAttention": expected}


def test_keys_of_the_past_count() -> None:
    q, past = (1, 2, 16), (1, 4, 6, 4)
    node = attention("MultiHeadAttention", ["q", "k", "v", "", "", "", "p", "r"], outputs=3, num_heads=4)
    model = build([node], {"q": q, "k": q, "v": q, "p": past, "r": past}, outputs=3)
    assert operator_profile.profiled_macs(model, zeros(q=q, k=q, v=q, p=past, r=past)) == {
        "MultiHeadAttention": 2 * (2 * (6 + 2) * 16)
    }


def test_grouped_queries() -> None:
    q, kv, past = (1, 5, 32), (1, 5, 16), (1, 2, 0, 8)
    node = attention("GroupQueryAttention", ["q", "k", "v", "p", "r", "s", "t"], outputs=3, num_heads=4, kv_num_heads=2)
    model = build(
        [node],
        {"q": q, "k": kv, "v": kv, "p": past, "r": past},
        outputs=3,
        s=np.array([4], np.int32),
        t=np.array([5], np.int32),
    )
    assert operator_profile.profiled_macs(model, zeros(q=q, k=kv, v=kv, p=past, r=past)) == {
        "GroupQueryAttention": 2 * 5 * 5 * 32
    }


def test_the_standard_attention_operator() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[2, 4, 5, 8] q, float[2, 2, 7, 8] k, float[2, 2, 7, 6] v) => (float[2, 4, 5, 6] y)
    { y = Attention(q, k, v) }"""
    feeds = zeros(q=(2, 4, 5, 8), k=(2, 2, 7, 8), v=(2, 2, 7, 6))
    found = operator_profile.profiled_macs(parser.parse_model(text).SerializeToString(), feeds)
    # A build without the kernel runs the operator's definition instead: the same two products as MatMul nodes.
    assert sum(found.values()) == 2 * 4 * 5 * 7 * (8 + 6)


def test_dynamic_quantization() -> None:
    x = (5, 8)
    quantize = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    product = helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"])
    model = build([quantize, product], {"x": x}, w=np.zeros((8, 3), np.int8))
    assert operator_profile.profiled_macs(model, zeros(x=x)) == {"MatMulInteger": 120}


def test_loops_count_every_turn() -> None:
    text = (
        HEADER
        + """
    g (float[5, 8] x) => (float[5, 8] y) <int64 turns = {3}, bool go = {1}, float[8, 8] w>
    { y = Loop <body = body (int64 i, bool c, float[5, 8] h) => (bool d, float[5, 8] o)
        { d = Identity(c) o = MatMul(h, w) }> (turns, go, x) }"""
    )
    model = parser.parse_model(text)
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, (8, 8), [0.0] * 64))
    assert operator_profile.profiled_macs(model.SerializeToString(), zeros(x=(5, 8))) == {"MatMul": 3 * 5 * 8 * 8}


def test_calls_tell_names_shapes_and_fusions() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "b"], ["y"], name="bias"),
    ]
    model = build(nodes, {"x": (5, 8)}, w=weight(8, 3), b=weight(3))
    plain = operator_profile.calls(model, zeros(x=(5, 8)))
    assert [(c.op, c.node, c.inputs, c.outputs) for c in plain] == [
        ("MatMul", "product", ((5, 8), (8, 3)), ((5, 3),)),
        ("Add", "bias", ((5, 3), (3,)), ((5, 3),)),
    ]
    assert all(c.provider == "CPUExecutionProvider" and c.microseconds >= 0 for c in plain)
    assert "Add" not in {c.op for c in operator_profile.calls(model, zeros(x=(5, 8)), optimization="all")}
