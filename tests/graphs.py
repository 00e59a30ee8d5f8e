"""Graphs written as ONNX text, and law 1 on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from plans import Subject, distance, random_plan

ATTENDED = """
    g = Reshape(f, split)
    v = Transpose<perm = [0, 2, 1, 3]>(g)
    raw = MatMul(q, k)
    s = Mul(raw, root)
    p = Softmax(s)
    m = MatMul(p, v)
    n = Transpose<perm = [0, 2, 1, 3]>(m)
    o = Reshape(n, flat)
    z = MatMul(o, wo)
    y = Add(x, z)
"""
"""Attention with a residual: of queries q, keys k that are turned, and values f [N, T, width] behind their product."""


def written(folder: Path, text: str, weights: Mapping[str, tuple[int, ...]], *, check: bool = True) -> Path:
    """A graph from its ONNX text, with random weights of these shapes."""
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(text)
    for name, shape in weights.items():
        tensor = ir.Tensor(rng.standard_normal(shape, dtype=np.float32), name=name)
        value = next((v for n in model.graph.all_nodes() for v in n.inputs if v is not None and v.name == name), None)
        assert value is not None
        value.const_value, value.shape, value.type = tensor, ir.Shape(shape), ir.TensorType(tensor.dtype)
        model.graph.register_initializer(value)
    path = folder / "model.onnx"
    ir.save(model, path)
    proto = onnx.load(path)  # weights were stand-in inputs of the text
    kept = [v for v in proto.graph.input if v.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    if check:
        onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


def agreed(subject: Subject, feeds: dict[str, np.ndarray], seeds: int = 4) -> None:
    for seed in range(seeds):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
