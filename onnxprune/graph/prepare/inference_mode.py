"""Graphs that were exported as they train: what draws numbers or looks at the batch is folded or refused.

A row's outputs must be its own. A normalisation by the batch's own mean gives one row alone a constant, and a drawn
number makes two runs differ: nothing measured on such a graph means anything, and no check of it can fail.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.errors import UnsupportedError
from onnxprune.graph.ops.base import attribute, operand

_DRAWN = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_DROPOUTS = {
    ("", "Dropout"): (1, 2),
    ("com.microsoft", "BitmaskDropout"): (1, 2),
    ("com.microsoft", "BiasDropout"): (3, 4),
    ("com.microsoft", "BitmaskBiasDropout"): (3, 4),
}
"""(domain, operator) -> where its ratio and its training switch are read."""
_RATIO = 0.5
"""Dropout's own, where none is given."""


def settle(model: ir.Model) -> None:
    """Fold what training left behind where it does nothing, in place, and refuse the rest.

    A Dropout that is switched on but drops nothing loses its switch; every other node that draws, or that normalises
    by the batch, is an error.

    Raises:
        UnsupportedError: names the node and how to export without it.
    """
    for node in model.graph.all_nodes():
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and node.op_type in _DRAWN:
            raise _refused(node, model, "draws random numbers, so that no two runs give the same outputs")
        if domain == "" and node.op_type == "BatchNormalization" and _by_batch(node):
            raise _refused(
                node, model, "is in training mode: it normalises by the batch, so that a row's outputs depend on the "
                "rows beside it"
            )  # fmt: skip
        if (domain, node.op_type) in _DROPOUTS:
            _dropout(node, model, *_DROPOUTS[domain, node.op_type])


def _by_batch(node: ir.Node) -> bool:
    """Whether a BatchNormalization uses the batch's own statistics: an attribute says so, before opset 14 outputs."""
    return bool(attribute(node, "training_mode", 0)) or any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def _dropout(node: ir.Node, model: ir.Model, at_ratio: int, at_switch: int) -> None:
    switch, ratio = operand(node, at_switch), operand(node, at_ratio)
    if switch is None:
        return
    if switch.const_value is not None and not switch.const_value.numpy().any():
        return
    share = _RATIO if ratio is None else None if ratio.const_value is None else float(ratio.const_value.numpy().item())
    if share == 0:
        node.replace_input_with(at_switch, None)
    elif switch.const_value is None:
        raise _refused(node, model, f"drops at random where {switch.name} says so at run time")
    else:
        raise _refused(
            node, model, "is in training mode: it drops at random, so that no two runs give the same outputs"
        )


def _refused(node: ir.Node, model: ir.Model, why: str) -> UnsupportedError:
    version = model.opset_imports.get(node.domain, 1)
    return UnsupportedError(
        f"node {node.name} ({node.op_type}, opset {version}) {why}. Export the model for inference: in torch, "
        "model.eval() before the export, and training=TrainingMode.EVAL."
    )
