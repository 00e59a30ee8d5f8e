"""Rows made of texts, drawn by what they tell: of a classifier those that the dense model is unsure of.

Where a pruned classifier strays from the dense one, it is on the few rows that lie between two classes: of the others
both are sure, whatever was cut. Rows made of given texts cost nothing but a pass of the dense model, so several times
as many are made as are taken, and the more doubtful one is, the likelier it is drawn. Refits after a cut learn from
such rows, and the damage table is measured on some in the place of half of those given. Scores and bases are taken on
rows as they come: what a unit is worth, it is worth on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.data import Dataset, variants
from onnxprune.probe.divergence import SCORES, Divergence, Kind, Measure
from onnxprune.probe.forward import Rows

POOL = 3
"""Rows that are made for each that is drawn."""
SURE = 0.02
"""Doubt that every row is given on top: the others are to be seen, too."""
DIGITS = 3
"""Of a doubt that count: a machine that rounds otherwise draws the same rows."""


def doubtful(rows: Rows, given: Dataset, seed: int) -> Rows:
    """As many rows, of which those made of given texts are ones that the model is unsure of; where that says nothing
    (`drawn`) the rows themselves.

    Args:
        rows: the given ones, and behind them those made of them (`data.variants`).
    """
    made = drawn(rows, given, len(rows.dataset) - len(given), seed)
    return replace(rows, dataset=given + made, given=rows.divergence) if len(made) else rows


def drawn(rows: Rows, given: Dataset, count: int, seed: int) -> Dataset:
    """`count` rows made of given texts, the likelier the more doubtful.

    None where outputs are no class scores with one answer a row (`doubts`), where rows are no texts, and where a pass
    more over the model's weights takes long because they are not held.

    Args:
        rows: what runs them, and how they are measured.
    """
    if count <= 0 or rows.interpreter.streams or not any(_says(m) for m in rows.divergence.measures):
        return given.subset([])
    pool = variants(given, POOL * count, seed)
    if not len(pool):
        return pool
    doubt = doubts(replace(rows, dataset=pool, given=rows.divergence))
    if doubt is None:
        return given.subset([])
    weight = np.round(doubt, DIGITS) + SURE
    places = np.random.default_rng(seed).choice(len(pool), count, replace=False, p=weight / weight.sum())
    return pool.subset(sorted(places.tolist()))


def doubts(rows: Rows) -> np.ndarray | None:
    """1 − Σ p² over the classes of what the dense model answers, summed over its class scores: [rows], 0 where sure.

    None where a graph gives more answers, or fewer, than the one a row that it declares.
    """
    found = np.zeros(len(rows.dataset))
    for batch, outputs in zip(rows.batches, rows.outputs, strict=True):
        told = _of(rows.divergence, outputs)
        if told.shape != (len(batch),):
            return None
        found[batch.index] = told
    return found


def _of(divergence: Divergence, outputs: Mapping[str, Any]) -> np.ndarray:
    import torch

    found = []
    for m in divergence.measures:
        if _says(m):
            scores = outputs[m.output].double()
            p = torch.softmax(scores, m.axis) if m.kind is Kind.KL else scores
            found.append(1 - p.square().sum(m.axis))
    return np.asarray(torch.stack(found).sum(0).cpu().numpy())


def _says(measure: Measure) -> bool:
    """Whether an output says how sure the model is of a row."""
    return measure.single and measure.kind in SCORES and measure.kind is not Kind.BERNOULLI_KL
