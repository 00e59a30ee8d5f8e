"""Fisher information of the gates (Kwon et al., NeurIPS 2022, arXiv 2204.09656): E[(∂L/∂gate)²], sample by sample.

The full recipe: units are ordered by the diagonal; once a level is chosen, the set that goes is rearranged inside the
layer by the whole matrix F = GᵀG / samples, whose cross terms know that two similar units must not go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.score.base import Statistics, ranking


@dataclass(frozen=True)
class Fisher:
    """The score. `rearrange`: with cross terms inside a layer; otherwise the diagonal alone."""

    rearrange: bool = True
    needs: frozenset[str] = frozenset({"gate_grad"})

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        gradients = statistics.gate_grad[site.id]
        plain = ranking(site, np.square(gradients).mean(0))
        if not self.rearrange:
            return plain
        return Rearranged(plain.group, plain.order, plain.scores, gradients.T @ gradients / max(len(gradients), 1))


@dataclass(frozen=True, eq=False)
class Rearranged(Ranking):
    """A ranking whose sets are not nested: at every level the set that goes is improved by swaps.

    Attributes:
        fisher: [units, units].
    """

    fisher: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    _kept: dict[int, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    def keep(self, count: int) -> tuple[int, ...]:
        if count not in self._kept:
            gone = rearrange(self.fisher, self.order[::-1], len(self.order) - count)
            self._kept[count] = tuple(sorted(set(self.order) - set(gone)))
        return self._kept[count]


def rearrange(fisher: np.ndarray, first_to_go: Sequence[int], count: int) -> list[int]:
    """`count` units whose removal costs little by the quadratic form 1ᵀ F 1 over the set.

    From the first `count` of an order; every other unit in turn is let in, and the one whose leaving lowers the form
    most goes back. The form never rises.
    """
    order = np.asarray(first_to_go, dtype=np.int64)
    gone = order[:count].copy()
    if count in (0, len(order)):
        return [int(u) for u in gone]
    links = fisher[:, gone].sum(1)  # of every unit to the set
    for unit in order[count:]:
        members = np.append(gone, unit)
        links = links + fisher[:, unit]
        # 1ᵀF1 without i falls by 2(F1)_i − F_ii.
        leaves = int(np.argmax(2.0 * links[members] - np.diagonal(fisher)[members]))
        if leaves < count:
            links = links - fisher[:, gone[leaves]]
            gone[leaves] = unit
        else:
            links = links - fisher[:, unit]
    return [int(u) for u in gone]


fisher = Fisher()
