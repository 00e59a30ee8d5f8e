"""SEVEN: noise-aware sensitivity (Xiao et al., IJCNN 2024, arXiv 2403.12688).

Over calibration steps with gradient g of a weight w: m ← α₁m + (1−α₁)|g|, v ← α₂v + (1−α₂)g², both bias-corrected, and
S += |w · g · m̂ / √v̂|. What is sensitive at every step survives; a gradient that is noise counts for less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.weight_gradients import STEP_ROWS
from onnxprune.score.base import Statistics, per_unit, ranking

ALPHA = 0.8


@dataclass
class Sensitivity:
    """The accumulator; on numpy arrays or torch tensors.

    Attributes:
        alpha1, alpha2: decay of the first and second moment.
        signed: m follows g instead of |g|, so that S weighs by |E g| / √E g².
    """

    alpha1: float = ALPHA
    alpha2: float = ALPHA
    signed: bool = False
    score: Any = 0.0
    _first: Any = 0.0
    _second: Any = 0.0
    _steps: int = field(default=0)

    def add(self, weight: Any, gradient: Any) -> None:
        self._steps += 1
        seen = gradient if self.signed else abs(gradient)
        self._first = self.alpha1 * self._first + (1 - self.alpha1) * seen
        self._second = self.alpha2 * self._second + (1 - self.alpha2) * gradient * gradient
        first = self._first / (1 - self.alpha1**self._steps)
        second = self._second / (1 - self.alpha2**self._steps)
        self.score = self.score + abs(weight * gradient * first) / (second + 1e-38) ** 0.5


@dataclass(frozen=True)
class Seven:
    """`seven-pre`: scores on the intact model, pruned once.

    Attributes:
        weights: score every weight and sum over a unit's reading rows; otherwise the gates, where w = 1.
    """

    alpha1: float = ALPHA
    alpha2: float = ALPHA
    signed: bool = False
    weights: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"weight_score" if self.weights else "gate_grad"})

    def accumulator(self) -> Sensitivity:
        """A fresh one, for gates or weights alike."""
        return Sensitivity(self.alpha1, self.alpha2, self.signed)

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        return ranking(
            site, on_weights(site, statistics) if self.weights else self.on_gates(statistics.gate_grad[site.id])
        )

    def on_gates(self, gradients: np.ndarray) -> np.ndarray:
        """Scores [units] from per-sample gate gradients [samples, units], `STEP_ROWS` samples to a step."""
        sensitivity = self.accumulator()
        for step in steps(gradients):
            sensitivity.add(1.0, step)
        return np.asarray(sensitivity.score)


def steps(gradients: np.ndarray, at_least: int = 1) -> list[np.ndarray]:
    """Mini-batch means [units] of per-sample gradients [samples, units]; `at_least` so many where there are rows."""
    size = max(1, min(STEP_ROWS, len(gradients) // at_least))
    cuts = range(size, len(gradients) - size // 2, size)
    return [part.mean(0) for part in np.split(gradients, cuts)]


def on_weights(site: Site, statistics: Statistics) -> np.ndarray:
    """Sums of weight scores over the rows that read each unit. [units]"""
    total = np.zeros(site.group.size)
    for matrix in site.matrices:
        scores = matrix.weight(statistics.weight_score[matrix.reader.weight or ""])
        total += per_unit(matrix.units, scores.astype(np.float64).sum(1), site.group.size)
    return total


seven = Seven()
