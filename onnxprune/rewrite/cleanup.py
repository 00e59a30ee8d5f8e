"""What a cut leaves lying about: nodes and weights nobody reads, numbers that can be folded."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune import shapes, sides


def tidy(model: ir.Model) -> ir.Model:
    """Remove dead nodes and weights and refresh every shape."""
    shapes.infer(sweep(model))
    return model


def sweep(model: ir.Model) -> ir.Model:
    """Remove dead nodes and weights."""
    sides.drop_whole_indices(model)
    passes.RemoveUnusedNodesPass()(model)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]
    return model
