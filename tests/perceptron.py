"""The smallest model that can be pruned, and rows for it: what tests about files, not about pruning, work on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN, CLASSES = 8, 16, 3


def perceptron(layers: int = 2) -> onnx.ModelProto:
    """A stream of 8 values, residual blocks with 16 hidden units each, and a classifier of 3."""
    rng = np.random.default_rng(0)
    tensors = []

    def weight(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape) / np.sqrt(shape[0])
        tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    nodes, stream = [], "x"
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [stream, weight(f"up_{i}", WIDTH, HIDDEN)], [f"wide_{i}"]),
            helper.make_node("Add", [f"wide_{i}", weight(f"bias_{i}", HIDDEN)], [f"moved_{i}"]),
            helper.make_node("Relu", [f"moved_{i}"], [f"active_{i}"]),
            helper.make_node("MatMul", [f"active_{i}", weight(f"down_{i}", HIDDEN, WIDTH)], [f"back_{i}"]),
            helper.make_node("Add", [stream, f"back_{i}"], [f"stream_{i}"]),
        ]
        stream = f"stream_{i}"
    nodes.append(
        helper.make_node("Gemm", [stream, weight("head", WIDTH, CLASSES), weight("last", CLASSES)], ["logits"])
    )
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(path: Path, model: onnx.ModelProto | bytes | None = None) -> Path:
    """A model's file."""
    model = perceptron() if model is None else model
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def write_rows(path: Path, count: int = 30) -> Path:
    """Rows as JSON lines, with labels."""
    rng = np.random.default_rng(1)
    rows = ({"x": rng.standard_normal(WIDTH).round(3).tolist(), "label": i % CLASSES} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
