"""Small graphs whose weights are quantised in the ways that exporters and quantisers write them.

`FORMS` says how one float matrix becomes nodes and initializers; `mlp` and the others put such matrices into graphs in
which units are free: residual MLPs, convolutions, an embedding, attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INT8, UINT8, INT4, UINT4 = TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4
FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)

Written = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]
Form = Callable[[np.ndarray, str, int], Written]


def rounded(w: np.ndarray, axes: tuple[int, ...] | None, low: int, high: int, zero: bool) -> tuple[Any, Any, Any]:
    """(codes, scale, zero point) with the reduced axes kept."""
    if zero:
        least = np.minimum(w.min(axis=axes, keepdims=True), 0)
        most = np.maximum(w.max(axis=axes, keepdims=True), 0)
        scale = ((most - least) / (high - low)).astype(np.float32)
        point = np.round(low - least / scale)
    else:
        scale = (np.abs(w).max(axis=axes, keepdims=True) / high).astype(np.float32)
        point = np.zeros_like(scale)
    steps = w / scale if high > 2**32 else np.round(w / scale)
    return np.clip(steps + point, low, high), scale, point


def tensor(array: np.ndarray, kind: int, name: str) -> onnx.TensorProto:
    """An initializer of any type, int4 too."""
    if kind in (INT4, UINT4, *FLOAT8):
        flat = array.astype(np.float32 if kind in FLOAT8 else np.int64).ravel().tolist()
        return helper.make_tensor(name, kind, array.shape, flat)
    return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT32: (-(2**20), 2**20 - 1),
    TensorProto.FLOAT8E4M3FN: (-448, 448),
    TensorProto.FLOAT8E5M2: (-57344, 57344),
}


def dequantized(
    kind: int = TensorProto.INT8, *, per: str | None = None, zero: bool = False, turned: bool = False
) -> Form:
    """DequantizeLinear: one scale for all, for every output, or for every input (`per`)."""

    def write(w: np.ndarray, name: str, out: int) -> Written:
        w, axis = (w.T, 1 - out) if turned else (w, out)
        axis = axis if per != "input" else 1 - axis if w.ndim == 2 else {0: 1, 1: 0}[axis]
        axes = None if per is None else tuple(a for a in range(w.ndim) if a != axis)
        codes, scale, point = rounded(w, axes, *RANGES[kind], zero)
        shape = () if per is None else (-1,)
        held = [tensor(codes, kind, f"{name}_q"), numpy_helper.from_array(scale.reshape(shape), f"{name}_s")]
        inputs = [f"{name}_q", f"{name}_s"]
        if zero or kind != TensorProto.UINT8:
            held.append(tensor(point.reshape(shape), kind, f"{name}_z"))
            inputs.append(f"{name}_z")
        made = f"{name}_t" if turned else name
        nodes = [helper.make_node("DequantizeLinear", inputs, [made], name=f"{name}_dq")]
        if per is not None:
            nodes[0].attribute.append(helper.make_attribute("axis", axis or -w.ndim))
        if turned:
            nodes.append(helper.make_node("Transpose", [made], [name], perm=[1, 0]))
        return held, nodes

    return write


def blocked(kind: int = TensorProto.INT8, *, block: int, axis: int, zero: bool = False) -> Form:
    """DequantizeLinear with a scale for every `block` indices along an axis."""

    def write(w: np.ndarray, name: str, out: int) -> Written:
        if w.ndim != 2 or w.shape[axis] % block:
            return dequantized()(w, name, out)
        parts = np.moveaxis(w, axis, 0).reshape(-1, block, w.shape[1 - axis])
        codes, scale, point = rounded(parts, (1,), *RANGES[kind], zero)
        back = [np.moveaxis(a.reshape(-1, w.shape[1 - axis]), 0, axis) for a in (codes, scale, point)]
        held = [tensor(back[0], kind, f"{name}_q"), numpy_helper.from_array(np.ascontiguousarray(back[1]), f"{name}_s")]
        inputs = [f"{name}_q", f"{name}_s"]
        if zero:
            held.append(tensor(back[2], kind, f"{name}_z"))
            inputs.append(f"{name}_z")
        return held, [helper.make_node("DequantizeLinear", inputs, [name], axis=axis, block_size=block)]

    return write


def cast(*, zero: bool = False, per: bool = True) -> Form:
    """Mul(Sub(Cast(codes), zero point), scale)."""

    def write(w: np.ndarray, name: str, out: int) -> Written:
        axes = tuple(a for a in range(w.ndim) if a != out) if per else None
        kind = TensorProto.UINT8 if zero else TensorProto.INT8
        codes, scale, point = rounded(w, axes, *RANGES[kind], zero)
        held = [tensor(codes, kind, f"{name}_q"), numpy_helper.from_array(scale, f"{name}_s")]
        nodes = [helper.make_node("Cast", [f"{name}_q"], [f"{name}_f"], to=TensorProto.FLOAT)]
        if zero:
            held.append(numpy_helper.from_array(point.astype(np.float32), f"{name}_z"))
            nodes.append(helper.make_node("Sub", [f"{name}_f", f"{name}_z"], [f"{name}_c"]))
        nodes.append(helper.make_node("Mul", [f"{name}_s", f"{name}_c" if zero else f"{name}_f"], [name]))
        return held, nodes

    return write


def half(kind: int = TensorProto.FLOAT16) -> Form:
    """Cast of what is stored in half precision."""

    def write(w: np.ndarray, name: str, out: int) -> Written:
        stored = helper.make_tensor(f"{name}_h", kind, w.shape, w.astype(np.float32).ravel().tolist())
        return [stored], [helper.make_node("Cast", [f"{name}_h"], [name], to=TensorProto.FLOAT)]

    return write


def trained(w: np.ndarray, name: str, out: int) -> Written:
    """QuantizeLinear and DequantizeLinear of floats, as quantisation-aware training exports it."""
    axes = tuple(a for a in range(w.ndim) if a != out)
    scale = (np.abs(w).max(axis=axes) / 127).astype(np.float32)
    held = [numpy_helper.from_array(w, f"{name}_w"), numpy_helper.from_array(scale, f"{name}_s")]
    held.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}_z"))
    rest = [f"{name}_s", f"{name}_z"]
    nodes = [helper.make_node("QuantizeLinear", [f"{name}_w", *rest], [f"{name}_q"], axis=out)]
    return held, [*nodes, helper.make_node("DequantizeLinear", [f"{name}_q", *rest], [name], axis=out)]


def plain(w: np.ndarray, name: str, out: int) -> Written:
    """Floats."""
    return [numpy_helper.from_array(w, name)], []


FORMS: dict[str, Form] = {
    "plain": plain,
    "tensor": dequantized(),
    "tensor-uint8": dequantized(UINT8, zero=True),
    "output": dequantized(per="output"),
    "output-uint8": dequantized(UINT8, per="output", zero=True),
    "output-turned": dequantized(per="output", turned=True),
    "input": dequantized(per="input"),
    "input-uint8": dequantized(UINT8, per="input", zero=True),
    "int4": dequantized(INT4, per="output"),
    "uint4": dequantized(UINT4, per="output", zero=True),
    "blocks-of-inputs": blocked(block=8, axis=0),
    "blocks-of-outputs": blocked(block=4, axis=1, zero=True),
    "large-blocks": blocked(INT4, block=16, axis=0),
    "cast": cast(),
    "cast-tensor": cast(per=False),
    "cast-uint8": cast(zero=True),
    "trained": trained,
    "float8": dequantized(FLOAT8[0], per="output"),
    "float8-tensor": dequantized(FLOAT8[0]),
    "float8-wide": dequantized(FLOAT8[1], per="input"),
    "half": half(),
    "bfloat16": half(TensorProto.BFLOAT16),
}


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    held: Sequence[onnx.TensorProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int = 21,
) -> Path:
    """A graph as a file, checked."""
    once = {t.name: t for t in held}
    graph = helper.make_graph(list(nodes), "quantised", list(inputs), list(outputs), list(once.values()))
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def add(new: Written, held: list[onnx.TensorProto], nodes: list[onnx.NodeProto]) -> None:
    """Take a weight into a graph."""
    held.extend(new[0])
    nodes.extend(new[1])


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.normal(size=shape) / np.sqrt(float(np.prod(shape[1:])) or 1.0), dtype=np.float32)


def mlp(
    path: Path,
    form: Form,
    *,
    width: int = 64,
    gemm: bool = False,
    bias: Form = plain,
    shared: bool = False,
    across: int = 16,
) -> Path:
    """Two residual blocks x + W2 gelu-like(W1 x + b1) + b2 on [batch, tokens, across]; [batch, across] for Gemm.

    Args:
        shared: what comes out is a second product of the first block's input, beside it.
    """
    rng = np.random.default_rng(0)
    held: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    stream = "x"
    for i in range(2):
        matrices = [drawn(rng, across, width) * 2, drawn(rng, width, across) * 4]
        names = [f"w{i}_up", f"w{i}_down"]
        for w, name in zip(matrices, names, strict=True):
            given = (np.ascontiguousarray(w.T), 0) if gemm else (w, 1)
            add(form(given[0], name, given[1]), held, nodes)
        for b, size in ((f"b{i}_up", width), (f"b{i}_down", across)):
            add(bias(drawn(rng, size), b, 0), held, nodes)
        if gemm:
            nodes += [
                helper.make_node("Gemm", [stream, names[0], f"b{i}_up"], [f"h{i}"], transB=1),
                helper.make_node("Sigmoid", [f"h{i}"], [f"a{i}"]),
                helper.make_node("Gemm", [f"a{i}", names[1], f"b{i}_down"], [f"d{i}"], transB=1),
            ]
        else:
            nodes += [
                helper.make_node("MatMul", [stream, names[0]], [f"m{i}"]),
                helper.make_node("Add", [f"m{i}", f"b{i}_up"], [f"h{i}"]),
                helper.make_node("Sigmoid", [f"h{i}"], [f"a{i}"]),
                helper.make_node("MatMul", [f"a{i}", names[1]], [f"n{i}"]),
                helper.make_node("Add", [f"n{i}", f"b{i}_down"], [f"d{i}"]),
            ]
        nodes.append(helper.make_node("Add", [stream, f"d{i}"], [f"x{i}"]))
        stream = f"x{i}"
    if shared:
        add(form(drawn(rng, across, across), "w_beside", 1), held, nodes)
        nodes.append(helper.make_node("MatMul", ["x", "w_beside"], ["beside"]))
        nodes.append(helper.make_node("Add", [stream, "beside"], ["whole"]))
        stream = "whole"
    shape: list[Any] = ["batch", across] if gemm else ["batch", "tokens", across]
    faces = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", stream)]
    return save(path, nodes, held, faces[:1], faces[1:])


def convolutions(path: Path, form: Form, *, bias: Form = plain) -> Path:
    """Conv, Conv, ConvTranspose on [batch, 3, 6, 6]."""
    rng = np.random.default_rng(1)
    held: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    value = "x"
    for i, (op, shape, out) in enumerate(
        (("Conv", (12, 3, 3, 3), 0), ("Conv", (8, 12, 1, 1), 0), ("ConvTranspose", (8, 4, 2, 2), 1))
    ):
        add(form(drawn(rng, *shape) * 2, f"w{i}", out), held, nodes)
        add(bias(drawn(rng, shape[out]), f"b{i}", 0), held, nodes)
        nodes.append(helper.make_node(op, [value, f"w{i}", f"b{i}"], [f"c{i}"], kernel_shape=list(shape[2:])))
        nodes.append(helper.make_node("Sigmoid", [f"c{i}"], [f"a{i}"]))
        value = f"a{i}"
    faces = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 6]),
        helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 4, 5, 5]),
    ]
    return save(path, nodes, held, faces[:1], faces[1:])


def attention(path: Path) -> Path:
    """Two blocks of com.microsoft's Attention and an MLP on [batch, tokens, 16]."""
    rng = np.random.default_rng(2)
    held: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    stream = "x"
    for i in range(2):
        shapes = {"qkv": (16, 48), "bias": (48,), "out": (16, 16), "up": (16, 32), "down": (32, 16)}
        names = {name: f"{name}{i}" for name in shapes}
        held += [numpy_helper.from_array(drawn(rng, *shape) * 2, names[name]) for name, shape in shapes.items()]
        packed = [stream, names["qkv"], names["bias"]]
        nodes += [
            helper.make_node("Attention", packed, [f"a{i}"], f"attend{i}", domain="com.microsoft", num_heads=4),
            helper.make_node("MatMul", [f"a{i}", names["out"]], [f"b{i}"], f"project{i}"),
            helper.make_node("Add", [stream, f"b{i}"], [f"c{i}"], f"add{i}"),
            helper.make_node("MatMul", [f"c{i}", names["up"]], [f"d{i}"], f"up{i}"),
            helper.make_node("Sigmoid", [f"d{i}"], [f"e{i}"], f"act{i}"),
            helper.make_node("MatMul", [f"e{i}", names["down"]], [f"f{i}"], f"down{i}"),
            helper.make_node("Add", [f"c{i}", f"f{i}"], [f"g{i}"], f"end{i}"),
        ]
        stream = f"g{i}"
    faces = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "tokens", 16]) for n in ("x", stream)]
    return save(path, nodes, held, faces[:1], faces[1:], opset=17)


def rounded_before(path: Path) -> Path:
    """A file in which what QAttention reads is rounded on a scale that is known, not by its own range."""
    model = onnx.load(path)
    read = {name for node in model.graph.node if node.op_type == "QAttention" for name in node.input}
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear" and node.output[0] in read:
            codes, scale, zero = node.output
            held = [numpy_helper.from_array(np.array(0.05, np.float32), scale)]
            held.append(numpy_helper.from_array(np.array(120, np.uint8), zero))
            model.graph.initializer.extend(held)
            made = helper.make_node("QuantizeLinear", [node.input[0], scale, zero], [codes], name=node.name)
            node.CopyFrom(made)
    known = path.with_name(f"{path.stem}.known.onnx")
    onnx.save(model, known)
    return known


def recurrent(path: Path, direction: str = "forward") -> Path:
    """An LSTM between two products, on [tokens, batch, 8]."""
    rng, ways = np.random.default_rng(3), 2 if direction == "bidirectional" else 1
    shapes = {"first": (8, 16), "w": (ways, 48, 16), "r": (ways, 48, 12), "b": (ways, 96), "last": (12 * ways, 6)}
    held = [numpy_helper.from_array(drawn(rng, *shape) * 2, name) for name, shape in shapes.items()]
    held.append(numpy_helper.from_array(np.array([0, 0, -1]), "flat"))
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "first"),
        helper.make_node("LSTM", ["a", "w", "r", "b"], ["y"], "lstm", hidden_size=12, direction=direction),
        helper.make_node("Transpose", ["y"], ["t"], "turn", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "last"], ["z"], "last"),
    ]
    faces = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["tokens", "batch", size])
        for n, size in (("x", 8), ("z", 6))
    ]
    return save(path, nodes, held, faces[:1], faces[1:], opset=17)
