"""Quantised graphs as graphs of numbers, and back.

`fold` writes operators that take integers (QLinearConv, MatMulInteger, MatMulNBits, a Gather of codes) as the standard
ones they stand for, and weights as initializers of their numbers; what an operator was is noted at the one in its
place. `written` puts everything back.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.prepare.quantised import dynamic, embeddings, fused, linear, packed, weights
from onnxprune.graph.prepare.quantised.writing import written

__all__ = ["fold", "written"]


def fold(model: ir.Model) -> None:
    """Write a quantised graph in standard operators on numbers, in place."""
    embeddings.fold(model)
    linear.fold(model)
    packed.fold(model)
    fused.fold(model)
    weights.fold(model)
    dynamic.fold(model)
