"""How many tokens run at once, and how many say what a level of the damage table costs."""

from __future__ import annotations

import contextlib
import math

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.measure.cost import Costs

ACTIVATIONS = 0.75e9
"""Bytes that the activations of one batch may take when all are kept, as for gradients."""

LEVEL_TOKENS = (512, 2048)
"""Fewest and most tokens that a level of the damage table is measured on."""
LEVEL_MACS = 9e10
"""Multiply-accumulates of the dense model that a level may cost: there are some hundred of them."""


def tokens_at_once(costs: Costs, most: int = 4096, memory: int | None = None) -> int:
    """How many tokens (`data.Example.tokens`) a batch may have for all its activations to fit in memory.

    Args:
        most: tokens, however much memory there is.
        memory: bytes that may be used in all, of which a quarter goes to one batch's activations; None for any.
    """
    bound = ACTIVATIONS if memory is None else min(ACTIVATIONS, memory / 4)
    total = 0
    for node in costs.model.graph:
        for value in node.outputs:
            with contextlib.suppress(UnsupportedError, UsageError):
                total += 4 * math.prod(costs.dense_shape(value))
    return int(min(max(bound * _tokens(costs) / max(total, 1), 1), most))


def tokens_to_measure(costs: Costs) -> int:
    """How many tokens say what a level of the damage table costs: the larger the model, the fewer it can be."""
    fewest, most = LEVEL_TOKENS
    return int(min(max(LEVEL_MACS * _tokens(costs) / max(costs.macs(), 1), fewest), most))


def _tokens(costs: Costs) -> int:
    """Tokens, or rows of anything else, at the shape where costs are counted."""
    rows, tokens = 1, 1
    for value in costs.model.graph.inputs:
        shape = costs.dense_shape(value)
        rows = shape[0] if shape else rows
        tokens = max(tokens, shape[1]) if len(shape) == 2 and value.dtype and value.dtype.is_integer() else tokens
    return rows * tokens
