"""Magnitude: the norm of a unit's reading rows. Needs no data; the writing side says nothing of what is read."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Scored, Statistics, per_unit


def score(site: Site, statistics: Statistics) -> np.ndarray:
    """‖W_u‖₂ over the rows of every reader. [units]"""
    total = np.zeros(site.group.size)
    for matrix in site.matrices:
        weight = matrix.weight(statistics.weight(matrix.reader.weight or ""))
        total += per_unit(matrix.units, np.square(weight.astype(np.float64)).sum(1), site.group.size)
    return np.sqrt(total)


magnitude = Scored(score)
