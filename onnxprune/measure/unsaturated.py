"""A quantised file whose integer products are exact on every processor.

Where a processor cannot multiply unsigned by signed bytes without saturating (it adds two such products in 16 bits),
ONNX Runtime's kernels give other numbers than the file says. Weights as unsigned codes, 128 more with a zero point that
is 128 more, mean the same and do not saturate: what is compared is the file, but for the sign of its codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.graph.model_files import size

_WEIGHTS = {
    "MatMulInteger": (1, 3),
    "ConvInteger": (1, 3),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "QGemm": (3, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
}
"""Operator -> its inputs that are a weight's codes and zero point."""
_LARGEST = 1_000_000_000
"""Bytes of a file of which a copy is made in memory."""


def unsaturated(file: Path) -> bytes | None:
    """A copy of a file that computes the same without saturating; None where there is nothing to change, or no room."""
    if size(file) > _LARGEST:
        return None
    import onnx

    model = onnx.load(file)
    held = {t.name: t for t in model.graph.initializer}
    done: dict[str, str] = {}
    for node in model.graph.node:
        places = _WEIGHTS.get(node.op_type)
        if places is None or len(node.input) <= places[0]:
            continue
        weight, zero = places
        tensor = held.get(node.input[weight])
        if _signed(node, held):
            continue
        point = node.input[zero] if len(node.input) > zero else ""
        if tensor is None or tensor.data_type != onnx.TensorProto.INT8 or (point and point not in held):
            continue
        node.input[weight] = _shifted(model.graph, held, done, tensor.name)
        if not point:
            while len(node.input) <= zero:
                node.input.append("")
            point = "onnxprune_zero_point"
            if point not in held:
                held[point] = onnx.numpy_helper.from_array(np.zeros((), np.int8), point)
        node.input[zero] = _shifted(model.graph, held, done, point)
    return bytes(model.SerializeToString()) if done else None


def _signed(node: Any, held: Any) -> bool:
    """Whether both operands are signed: such products do not saturate."""
    import onnx

    zero = held.get(node.input[2]) if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm") else None
    return zero is not None and zero.data_type == onnx.TensorProto.INT8


def _shifted(graph: Any, held: Any, done: dict[str, str], name: str) -> str:
    """The name of an initializer of signed bytes as unsigned ones, 128 more."""
    import onnx

    if name not in done:
        done[name] = f"{name}_unsigned"
        array = (onnx.numpy_helper.to_array(held[name]).astype(np.int16) + 128).astype(np.uint8)
        graph.initializer.append(onnx.numpy_helper.from_array(array, done[name]))
    return done[name]
