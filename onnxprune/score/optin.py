"""OPTIN's trajectory score (Khaki & Plataniotis, ICLR 2024, arXiv 2403.17921): no labels.

I(u) = Σ_z L_MD(F_z, F'_z) + λ · KL(p ‖ p'), over the block boundaries z behind the unit; both terms are scaled to
unit mean over all units first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Statistics, ranking

BALANCE = 0.1
"""λ."""


@dataclass(frozen=True)
class Optin:
    """The score at a λ."""

    balance: float = BALANCE
    needs: frozenset[str] = frozenset({"trajectory"})

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        return ranking(site, self.scores(site.id, statistics))

    def scores(self, name: str, statistics: Statistics) -> np.ndarray:
        """I of the units of a group, or of a branch. [units]"""
        found = statistics.trajectory
        units = [t for t in found.values() if len(t.manifold) > 1]
        means = [np.concatenate([getattr(t, part) for t in units]).mean() or 1.0 for part in ("manifold", "output")]
        mine = found[name]
        return np.asarray(mine.manifold / means[0] + self.balance * mine.output / means[1])


optin = Optin()
