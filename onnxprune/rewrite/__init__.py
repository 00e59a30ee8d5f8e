"""The only mutator: a plan carried out on a clone of the graph, and what nobody reads then left out of it."""

from onnxprune.rewrite.apply import apply
from onnxprune.rewrite.unread import drop_unread

__all__ = ["apply", "drop_unread"]
