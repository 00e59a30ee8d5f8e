"""The one home of an operator: what it computes, ties, costs, and how it follows a cut. One file per family."""

from importlib import import_module

from onnxprune.graph.ops.base import Change, Constraints, Operator, Sizes, attribute, lookup, registered, states_of

__all__ = ["Change", "Constraints", "Operator", "Sizes", "attribute", "lookup", "registered", "states_of"]

# Imported for their tables.
for _family in (
    "along",
    "attention",
    "conv",
    "deform",
    "elementwise",
    "flow",
    "fused",
    "fused_attention",
    "generate",
    "grouped_attention",
    "index",
    "layout",
    "linear",
    "mixture",
    "normalize",
    "pool",
    "quantize",
    "rearrange",
    "recurrent",
    "reduce",
    "resample",
    "signal",
):
    import_module(f"{__name__}.{_family}")
