"""The only mutator: a plan carried out on a clone of the graph, and what nobody reads then left out of it.

In: a graph, its structure, a plan. Out: a smaller graph that computes what the gated one did.
"""

from onnxprune.rewrite.apply import apply
from onnxprune.rewrite.unread import drop_unread

__all__ = ["apply", "drop_unread"]
