"""How many tokens run at once, and how many say what a level of the damage table costs."""

from __future__ import annotations

import contextlib
import math

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.measure.cost import Costs
from onnxprune.measure.footprint import footprint

ACTIVATIONS = 0.75e9
"""Bytes that the activations of one batch may take when all are kept, as for gradients."""

LEVEL_TOKENS = (512, 2048)
"""Fewest and most tokens that a level of the damage table is measured on."""
LEVEL_ROWS, MAP_ROWS = 16, 4
"""Fewest rows of anything that has no tokens; where each gives a map or a sequence, a few say as much."""
LEVEL_MACS = 9e10
"""Multiply-accumulates of the dense model that a level may cost: there are some hundred of them."""
SITES = 24
"""Sites that have as many levels: of more, each gets its share."""
SLACK = 2
"""How many times what a graph's values take at once its copies take: what each begins with is held, too."""
ELEMENT_MACS = 16
"""Multiply-accumulates that run while one element is written and read again: depthwise convolutions hardly multiply."""


def tokens_at_once(costs: Costs, most: int = 4096, memory: int | None = None) -> int:
    """How many tokens (`data.Example.tokens`) a batch may have for all its activations to fit in memory.

    Args:
        most: tokens, however much memory there is.
        memory: bytes that may be used in all, of which a quarter goes to one batch's activations; None for any.
    """
    bound = ACTIVATIONS if memory is None else min(ACTIVATIONS, memory / 4)
    return int(min(max(bound * _tokens(costs) / max(4 * _elements(costs), 1), 1), most))


def tokens_side_by_side(costs: Costs, most: int = 4096, memory: int | None = None) -> int:
    """How many tokens may go through the graph together where values are let go behind their last reader.

    Args:
        most, memory: as of `tokens_at_once`.
    """
    bound = ACTIVATIONS if memory is None else min(ACTIVATIONS, memory / 8)
    taken = footprint(costs.model, costs.bindings).activations
    return int(min(max(bound * _tokens(costs) / max(SLACK * taken, 1), 1), most))


def tokens_to_measure(costs: Costs, sites: int = SITES) -> int:
    """How many tokens (`data.Example.tokens`) say what a level of the damage table costs.

    The larger the model, and the more sites there are, the fewer it can be.
    """
    tokens = _tokens(costs)
    fewest, most = LEVEL_TOKENS
    allowed, work = LEVEL_MACS, costs.macs()
    if tokens == 1:
        maps = any(len(v.shape or ()) > 2 for v in costs.model.graph.outputs)
        fewest, allowed = (MAP_ROWS, LEVEL_MACS / LEVEL_ROWS * MAP_ROWS) if maps else (LEVEL_ROWS, LEVEL_MACS)
        work += ELEMENT_MACS * _elements(costs)
    return int(min(max(allowed * min(SITES / max(sites, 1), 1.0) * tokens / max(work, 1), fewest), most))


def _elements(costs: Costs) -> int:
    """Elements of all values that a forward pass makes, where the sizes are known."""
    total = 0
    for node in costs.model.graph:
        for value in node.outputs:
            with contextlib.suppress(UnsupportedError, UsageError):
                total += math.prod(costs.dense_shape(value))
    return total


def _tokens(costs: Costs) -> int:
    """Tokens, or rows of anything else, at the shape where costs are counted."""
    rows, tokens = 1, 1
    for value in costs.model.graph.inputs:
        shape = costs.dense_shape(value)
        rows = shape[0] if shape else rows
        tokens = max(tokens, shape[1]) if len(shape) == 2 and value.dtype and value.dtype.is_integer() else tokens
    return rows * tokens
