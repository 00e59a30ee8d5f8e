"""Rows picked from codes as a Gather of numbers: a Gather that is dequantised afterwards, and GatherBlockQuantized."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.prepare.quantised.packed import KINDS, unpacked
from onnxprune.graph.prepare.quantised.weights import Known, constant, quantised
from onnxprune.graph.quantised import Form, Names, Parts, Quantised
from onnxprune.graph.quantised_operators import Note, noted
from onnxprune.graph.values import succeed


def fold(model: ir.Model) -> None:
    """Dequantise tables before rows are picked from them, in place."""
    known = Known(model)
    for node in list(model.graph):
        if node.domain == "com.microsoft" and node.op_type == "GatherBlockQuantized":
            _look_up(known, node)
            continue
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or not constant(node.inputs[0]):
            continue
        uses = list(node.outputs[0].uses())
        stated = node.outputs[0].is_graph_output()
        if uses and not stated and all(user.op_type == "DequantizeLinear" and not i for user, i in uses):
            for reader, _ in uses:
                _turn(known, node, reader)


def _turn(known: Known, node: ir.Node, reader: ir.Node) -> None:
    codes = node.inputs[0]
    scale, zero = (operand(reader, i) for i in (1, 2))
    if codes is None or codes.const_value is None or not constant(scale) or not (zero is None or constant(zero)):
        return
    assert scale is not None and scale.const_value is not None
    result = reader.outputs[0]
    if scale.const_value.size > 1 or attribute(reader, "output_dtype", 0) or result.is_graph_output():
        return
    form = Form("DequantizeLinear", Names(codes.name or "", scale.name or "", (zero.name or "") if zero else ""))
    tensor = quantised(codes.const_value, scale.const_value, None if zero is None else zero.const_value, form)
    if tensor is None:
        return
    made = ir.Node(
        "",
        "Gather",
        [known.value(tensor, f"{codes.name}_numbers"), node.inputs[1]],
        list(node.attributes.values()),
        name=f"{node.name or result.name}_numbers",
    )
    noted(made, Note("Gather", "", node.name or "", {"codes": node.outputs[0].name or "", "reader": reader.name or ""}))
    succeed(reader, [made])
    if not node.outputs[0].uses():
        known.model.graph.remove(node, safe=True)


def _look_up(known: Known, node: ir.Node) -> None:
    """Write a GatherBlockQuantized whose table is a constant as a Gather."""
    tensor = _table(node)
    codes, index = node.inputs[0], node.inputs[1]
    if tensor is None or codes is None or index is None:
        return
    told = {name: attribute(node, name) for name in node.attributes}
    axis = ir.AttrInt64("axis", int(told.get("gather_axis", 0)))
    table = known.value(tensor, f"{codes.name}_numbers")
    made = ir.Node("", "Gather", [table, index], [axis], name=node.name or f"{node.outputs[0].name}_gather")
    noted(made, Note("GatherBlockQuantized", node.domain, node.name or "", {}, told))
    succeed(node, [made])


def _table(node: ir.Node) -> Quantised | None:
    """The table of a GatherBlockQuantized; None where it is not told what its numbers are.

    Codes are 4-bit integers, or bytes that hold `bits` each along the last axis, which then is that of the blocks.
    """
    codes, scale, zero = (operand(node, i) for i in (0, 2, 3))
    if not constant(codes) or not constant(scale) or (zero is not None and not constant(zero)):
        return None
    assert codes is not None and codes.const_value is not None and scale is not None and scale.const_value is not None
    held, bits, block = codes.const_value, int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 128))
    rank, scales = len(held.shape), scale.const_value.numpy()
    axis = int(attribute(node, "quantize_axis", 1))
    along, packed = axis + rank if axis < 0 else axis, held.dtype == ir.DataType.UINT8
    kind = KINDS.get(bits) if packed else held.dtype
    if kind is None or not rank or along >= rank or scales.ndim != rank or (packed and along != rank - 1):
        return None
    whole = _spread(held.numpy(), bits) if packed else held.numpy()
    count = -(-whole.shape[along] // block)
    if scales.shape != tuple(count if a == along else n for a, n in enumerate(whole.shape)):
        return None
    points = np.full(scales.shape, 2 ** (bits - 1), kind.numpy()) if packed else None
    if zero is not None and zero.const_value is not None:
        points = zero.const_value.numpy()
        points = _spread(points, bits)[..., :count].astype(kind.numpy()) if packed else points
    names = Names(codes.name or "", scale.name or "", "" if zero is None else zero.name or "")
    unwritten = () if zero is not None else ("zero",)
    kept = {"bits": bits, "packed": packed}
    form = Form("GatherBlockQuantized", names, (rank, rank), None, kept, fixed_block=True, unwritten=unwritten)
    tensor = ir.Tensor(whole.astype(kind.numpy(), copy=False), dtype=kind, name=codes.name)
    parts = Parts(tensor, scales, points, *((block, along) if count > 1 else (0, 0)))
    return Quantised(parts, form, scale.const_value.dtype, None)


def _spread(held: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., bytes] -> [..., codes]."""
    return unpacked(held.reshape(-1, held.shape[-1]), bits).reshape(*held.shape[:-1], -1)
