"""The only mutator: a plan carried out on a clone of the graph."""

from onnxprune.rewrite.apply import apply

__all__ = ["apply"]
