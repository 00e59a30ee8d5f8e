"""PLATON (Zhang et al., ICML 2022, arXiv 2206.12562): sensitivity times its uncertainty.

s = |w · g|; Ī follows s, Ū follows |s − Ī|; the score is Ī · Ū: what is sensitive, or may yet turn out to be, stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Statistics, ranking
from onnxprune.score.seven import on_weights, steps

BETA1, BETA2 = 0.85, 0.95


@dataclass
class Uncertainty:
    """The accumulator; on numpy arrays or torch tensors."""

    beta1: float = BETA1
    beta2: float = BETA2
    _importance: Any = None
    _uncertainty: Any = 0.0

    def add(self, weight: Any, gradient: Any) -> None:
        seen = abs(weight * gradient)
        if self._importance is None:  # starting from the first value instead of zero needs no bias correction
            self._importance = seen
            self._uncertainty = seen * 0.0
            return
        self._importance = self.beta1 * self._importance + (1 - self.beta1) * seen
        self._uncertainty = self.beta2 * self._uncertainty + (1 - self.beta2) * abs(seen - self._importance)

    @property
    def score(self) -> Any:
        return self._importance * self._uncertainty


@dataclass(frozen=True)
class Platon:
    """The score of units, on their gates or summed over their reading rows."""

    beta1: float = BETA1
    beta2: float = BETA2
    weights: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"weight_score" if self.weights else "gate_grad"})

    def accumulator(self) -> Uncertainty:
        return Uncertainty(self.beta1, self.beta2)

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        if self.weights:
            return ranking(site, on_weights(site, statistics))
        accumulator = self.accumulator()
        for step in steps(statistics.gate_grad[site.id], at_least=2):  # one step alone has no uncertainty
            accumulator.add(1.0, step)
        return ranking(site, np.asarray(accumulator.score))


platon = Platon()
