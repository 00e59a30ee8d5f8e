"""What a cut leaves lying about: nodes and weights nobody reads, numbers that can be folded."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune.graph import prepare
from onnxprune.graph.prepare import caches, shared_biases


def tidy(model: ir.Model) -> ir.Model:
    """Remove dead nodes and weights and refresh every shape."""
    prepare.infer(sweep(model))
    return model


def sweep(model: ir.Model) -> ir.Model:
    """Remove dead nodes and weights."""
    shared_biases.drop_whole_indices(model)
    if caches.join_repeats(model):
        shared_biases.drop_whole_indices(model)
    passes.RemoveUnusedNodesPass()(model)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]
    return model
