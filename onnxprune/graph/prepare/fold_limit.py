"""Which constants are worth computing: those that stay small. What a few bytes can unfold into is told beforehand."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

MOST_VALUES = 1 << 24
"""Of a node's outputs: 64 MB of floats."""
_READ = 1024
"""Values of an operand up to which it may say the size of a result."""
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_GROWING = (
    "ConstantOfShape", "Expand", "Tile", "Pad", "OneHot", "Resize", "Upsample", "Range", "Einsum", "MatMul", "EyeLike",
    "CenterCropPad", "Col2Im", "MaxUnpool", "ConvTranspose", "Reshape", "Split", "Gather", "GatherND", "GatherElements",
)  # fmt: skip
"""Operators whose result may be larger than what they read."""


def small(node: ir.Node, version: int) -> bool | None:
    """False where a node's result would be large, as `should_fold` of onnxscript's optimizer; None: as it sees fit."""
    given = [v for v in node.inputs if v is not None]
    if any(v.const_value is None for v in given) or any(a.type in _GRAPHS for a in node.attributes.values()):
        return None
    if not node.inputs and node.op_type == "Constant":
        return None
    sizes = _sizes(node, version)
    return False if sizes is None or any(size > MOST_VALUES for size in sizes) else None


def _sizes(node: ir.Node, version: int) -> list[int] | None:
    """Values of each output by onnx's own inference; of an operator that it does not size, none: it does not grow."""
    import onnx

    held = {v.name or "": v.const_value for v in node.inputs if v is not None and v.const_value is not None}
    if node.op_type == "Range":
        return [_steps(*(t.numpy().item() for t in held.values() if t.size == 1))]
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        types = {n: onnx.helper.make_tensor_type_proto(int(t.dtype), t.shape.numpy()) for n, t in held.items()}
        data = {n: ir.to_proto(t) for n, t in held.items() if t.size <= _READ}
        found: dict[str, Any] = onnx.shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, data, opset_imports=[onnx.helper.make_opsetid(node.domain, version)]
        )
    except Exception:  # what is wrong with the node is said where it is evaluated
        found = {}
    shapes = [t.tensor_type.shape for t in found.values() if t.tensor_type.HasField("shape")]
    if len(shapes) < sum(bool(o.name) for o in node.outputs) or any(not _stated(s) for s in shapes):
        return None if node.op_type in _GROWING else []
    return [math.prod(d.dim_value for d in shape.dim) for shape in shapes]


def _stated(shape: Any) -> bool:
    return all(d.HasField("dim_value") for d in shape.dim)


def _steps(*bounds: float) -> int:
    """Values of a Range; none where it is not well formed."""
    if len(bounds) != 3 or not all(map(math.isfinite, bounds)) or bounds[2] == 0:
        return 0
    first, last, step = bounds
    return max(math.ceil((last - first) / step), 0)
