"""Rows of several lengths in one batch, where the graph computes the same whatever is behind a row's last token.

Rows of one length are few, and two short ones take nearly as long as twenty: every weight is read for each batch. A
mask says what is real; whether the graph keeps to it is seen by running some rows alone and filled up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.data import Batch, Dataset
from onnxprune.probe.divergence import Divergence
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.forward import Rows, forward
from onnxprune.probe.interpreter import Interpreter

TRIED = 6
"""Rows that are run alone and filled up, of all lengths."""
APART = 2e-5
"""How far outputs may be apart, of their largest number: sums in another order."""
JUDGED = 1e-3
"""The same of what is read off them."""

Outputs = Mapping[str, np.ndarray]


def filling(interpreter: Interpreter, dataset: Dataset, divergence: Divergence) -> Mapping[str, int] | None:
    """What rows may be filled up with (`Dataset.fillable`); None where a graph computes something else then.

    Args:
        divergence: that must come to the same.
    """
    fill = dataset.fillable
    if fill is None or interpreter.streams:
        return None
    order = sorted(range(len(dataset)), key=lambda p: dataset.examples[p].tokens)
    some = dataset.subset([order[k] for k in np.unique(np.linspace(0, len(order) - 1, TRIED).astype(int))])
    rows = Rows(interpreter, some, given=divergence)

    def run(batch: Batch) -> Outputs:
        found = rows.by_row(batch, forward(interpreter, batch.feeds, divergence.outputs))
        return {name: to_numpy(value, single=True) for name, value in found.items()}

    batch = some.filled(range(len(some)), fill)
    together = run(batch)
    apart = _judged(divergence, together, batch.real)
    longest = max(example.tokens for example in some.examples)
    for i, example in enumerate(some.examples):
        alone = run(some.filled([i], fill))
        same = all(_same(alone[n], together[n][i : i + 1], example.tokens, longest) for n in alone)
        if not same or not np.allclose(_judged(divergence, alone, None)[0], apart[i], rtol=JUDGED, atol=1e-9):
            return None
    return fill


def _judged(divergence: Divergence, outputs: Outputs, real: np.ndarray | None) -> Any:
    """[rows], how far other outputs are from these: any that differ in every number."""
    return divergence(outputs, {name: np.sin(value) for name, value in outputs.items()}, real)


def _same(alone: np.ndarray, filled: np.ndarray, tokens: int, longest: int) -> bool:
    """Whether an output is what it was, but for what is behind the last token."""
    if alone.ndim != filled.ndim:
        return False
    for axis in range(1, filled.ndim):
        if (filled.shape[axis], alone.shape[axis]) == (longest, tokens):
            filled = filled.take(range(tokens), axis)
    if alone.shape != filled.shape or not np.isfinite(alone).all():
        return False
    return bool(np.abs(filled - alone).max(initial=0.0) <= APART * float(np.abs(alone).max(initial=0.0)))
