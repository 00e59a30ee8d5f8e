"""The one home of an operator: what it computes, ties, costs, and how it follows a cut. One file per family."""

from onnxprune.ops import conv, elementwise, generate, index, layout, linear, normalize, reduce
from onnxprune.ops.base import Change, Constraints, Operator, Sizes, attribute, lookup, registered

__all__ = ["Change", "Constraints", "Operator", "Sizes", "attribute", "lookup", "registered"]

del conv, elementwise, generate, index, layout, linear, normalize, reduce  # imported for their tables
