"""First-order importance: E|∂L/∂gate| (Molchanov et al., ICLR 2017), and |w · g| of Lee et al., ICLR 2019.

The latter is published as SNIP, connection sensitivity; here `snip` is the identity prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Scored, Statistics, ranking
from onnxprune.score.seven import on_weights


def score(site: Site, statistics: Statistics) -> np.ndarray:
    """Mean over samples of |∂L/∂gate|, the change of each sample's loss to first order. [units]"""
    return np.asarray(np.abs(statistics.gate_grad[site.id]).mean(0))


@dataclass
class Connections:
    """|w · Σg| over all steps."""

    _weight: Any = 0.0
    _sum: Any = 0.0

    def add(self, weight: Any, gradient: Any) -> None:
        self._weight, self._sum = weight, self._sum + gradient

    @property
    def score(self) -> Any:
        return abs(self._weight * self._sum)


@dataclass(frozen=True)
class Connection:
    """Connection sensitivity of the weights, summed over each unit's reading rows."""

    needs: frozenset[str] = frozenset({"weight_score"})

    def accumulator(self) -> Connections:
        return Connections()

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        return ranking(site, on_weights(site, statistics))


taylor = Scored(score, frozenset({"gate_grad"}))
connection = Connection()
