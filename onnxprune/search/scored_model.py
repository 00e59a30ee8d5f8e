"""A model on its way down: its units in order, what each level costs in accuracy, refit weights at the levels taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.refit.linear_stand_ins import StandIn
from onnxprune.search.allocate.choices import Module
from onnxprune.search.damage_table import Refitter


@dataclass(eq=False)
class Stage:
    """A plan's model with its units ordered, and what was measured on it."""

    plan: Plan
    rankings: Mapping[str, Ranking]
    refitter: Refitter
    modules: tuple[Module, ...] | None = None
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    _fitted: dict[tuple[str, int], dict[str, np.ndarray]] = field(default_factory=dict)

    def weights(self, sites: Sequence[Site], counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Refit weights of every thinned site at its level, kept for reuse."""
        found: dict[str, np.ndarray] = {}
        for site in sites:
            key = (site.id, counts[site.id])
            if key not in self._fitted:
                self._fitted[key] = (
                    self.refitter(site, self.rankings[site.id].keep(counts[site.id])) if counts[site.id] else {}
                )
            found.update(self._fitted[key])
        return found


def behind(ranking: Ranking, kept: Sequence[int] | None) -> Ranking:
    """An order in which units that are gone already come last."""
    if kept is None:
        return ranking
    there = set(kept)
    return replace(ranking, order=tuple(sorted(ranking.order, key=lambda u: u not in there)))
