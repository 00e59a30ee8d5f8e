"""Wanda (Sun et al., ICLR 2024, arXiv 2306.11695): |w|·‖x‖₂, summed over a unit's reading rows."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Scored, Statistics, per_unit


def score(site: Site, statistics: Statistics) -> np.ndarray:
    """Σ |W_ij| ‖x_i‖₂ over the unit's rows i and all outputs j. [units]"""
    total = np.zeros(site.group.size)
    for matrix in site.matrices:
        weight = matrix.weight(statistics.weight(matrix.reader.weight or ""))
        norm = np.sqrt(np.maximum(np.diag(statistics.gram[matrix.reader.node, matrix.reader.input].matrix), 0.0))
        total += per_unit(matrix.units, np.abs(weight.astype(np.float64)).sum(1) * norm, site.group.size)
    return total


wanda = Scored(score, frozenset({"gram"}))
