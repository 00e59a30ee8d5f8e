"""Activations that ONNX Runtime put into convolutions and products, taken out again.

FusedConv and FusedGemm hide the product that compensation refits behind an activation. ONNX Runtime makes them anew
whenever it opens a model, and other runtimes do not know them.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.ops.base import attribute
from onnxprune.graph.values import constant, hand_over

_NAMES = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
"""Attributes of the standard activations, in the order of `activation_params`."""


def unfuse(model: ir.Model) -> None:
    """Write every FusedConv and FusedGemm as the standard operators it stands for."""
    for node in list(model.graph):
        if node.domain != "com.microsoft" or node.op_type not in ("FusedConv", "FusedGemm"):
            continue
        activation, parameters = _activation(node)
        added = node.inputs[3] if node.op_type == "FusedConv" and len(node.inputs) > 3 else None
        kept = {k: a for k, a in node.attributes.items() if not k.startswith("activation")}
        value = _append(node, node.op_type.removeprefix("Fused"), list(node.inputs[:3]), kept)
        if added is not None:
            value = _append(node, "Add", [value, added], {})
        if activation == "Clip":
            kind = node.inputs[1].dtype if node.inputs[1] is not None else None
            assert kind is not None
            limits = [ir.tensor([p], dtype=kind).numpy().reshape(()) for p in parameters]
            names = (f"{node.name}_low", f"{node.name}_high")
            value = _append(
                node, "Clip", [value, *(constant(model, x, n) for x, n in zip(limits, names, strict=True))], {}
            )
        elif activation:
            named = dict(zip(_NAMES.get(activation, ()), parameters, strict=False))
            value = _append(node, activation, [value], {k: ir.AttrFloat32(k, v) for k, v in named.items()})
        result = node.outputs[0]
        value.shape, value.type = result.shape, result.type
        hand_over(result, value)
        model.graph.remove(node, safe=True)


def _activation(node: ir.Node) -> tuple[str | None, list[float]]:
    if node.op_type == "FusedConv":
        return attribute(node, "activation"), [float(p) for p in attribute(node, "activation_params", ())]
    found = (attribute(node, f"activation_{name}") for name in ("alpha", "beta", "gamma"))
    return attribute(node, "activation"), [float(p) for p in found if p is not None]


def _append(node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, ir.Attr]) -> ir.Value:
    made = ir.Node("", op_type, inputs, list(attributes.values()), name=f"{node.name}_{op_type.lower()}")
    made.outputs[0].name = f"{made.name}_output"
    node.prepend(made)
    return made.outputs[0]
