"""Which constants are worth computing: those that stay small. What a few bytes can unfold into is told beforehand."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from onnxprune.errors import LimitError
from onnxprune.graph.quantised import Quantised
from onnxprune.graph.values import dims

MOST_VALUES = 1 << 24
"""Of a node's outputs: 64 MB of floats."""
MOST_BYTES = 1 << 30
"""Of a constant that stays a node's."""
_READ = 1024
"""Values of an operand up to which it may say the size of a result."""
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_GROWING = (
    "ConstantOfShape", "Expand", "Tile", "Pad", "OneHot", "Resize", "Upsample", "Range", "Einsum", "MatMul", "EyeLike",
    "CenterCropPad", "Col2Im", "MaxUnpool", "ConvTranspose", "Reshape", "Split", "Gather", "GatherND", "GatherElements",
)  # fmt: skip
"""Operators whose result may be larger than what they read."""


def small(node: ir.Node, version: int) -> bool | None:
    """Whether to fold a node, as `should_fold` of onnxscript's optimizer; None: as it sees fit.

    False where the result would be large.

    What is made of a quantised weight stays a node, too.
    """
    given = [v for v in node.inputs if v is not None]
    if any(v.const_value is None for v in given) or any(a.type in _GRAPHS for a in node.attributes.values()):
        return None
    if not node.inputs and node.op_type == "Constant":
        return None
    if any(isinstance(v.const_value, Quantised) for v in given):
        return False
    sizes = _sizes(node, version)
    if sizes is None or any(size > MOST_VALUES for size in sizes):
        return False
    # Integers that count are shapes, or pads as PyTorch writes them: zeros, and what is stated behind them.
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        return True if filled is not None and filled.as_tensor().dtype == ir.DataType.INT64 else None
    # A bias in half precision is a bias, however wide it is; matrices stay as they are stored.
    held = given[0].const_value if node.op_type == "Cast" else None
    return True if held is not None and len(held.shape) <= 1 else None


def refuse_large(model: ir.Model) -> None:
    """Refuse constants that nodes make out of little: they would be made anew in every run, large as they are.

    Raises:
        LimitError: one takes more than `MOST_BYTES`.
    """
    constants: set[ir.Value] = set(model.graph.initializers.values())
    constants -= set(model.graph.inputs)
    for node in model.graph:
        given = [v for v in node.inputs if v is not None]
        if (
            not given
            or any(v not in constants for v in given)
            or any(a.type in _GRAPHS for a in node.attributes.values())
        ):
            continue
        constants.update(node.outputs)
        for value in node.outputs:
            found = dims(value) or ()
            size = math.prod(d for d in found if isinstance(d, int)) * (value.dtype.itemsize if value.dtype else 1)
            if all(isinstance(d, int) for d in found) and size > MOST_BYTES:
                raise LimitError(
                    f"node {node.name} ({node.op_type}) makes a constant of {size / 1e9:.1f} GB; "
                    f"{MOST_BYTES / 1e9:.1f} GB are the most"
                )


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
