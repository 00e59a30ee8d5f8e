"""A Gather of codes, dequantised afterwards, as a Gather of numbers."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.ops.base import attribute, operand
from onnxprune.graph.prepare.quantised.weights import Known, constant, quantised
from onnxprune.graph.quantised import Form, Names, Note, noted
from onnxprune.graph.values import succeed


def fold(model: ir.Model) -> None:
    """Dequantise tables before rows are picked from them, in place."""
    known = Known(model)
    for node in list(model.graph):
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
