"""Spectral-normalised identity prior (Lin et al. 2020, arXiv 2010.01791): modules that write little go.

The function norm of a residual module y = x + f(x) is E‖f(x)‖, here relative to E‖x‖. By default on the true weights: a
small σ(W) is part of what marks a module as near-identity. (Connection sensitivity, also called SNIP, is `taylor`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.graph.plan import Ranking, Structure
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.branch_norms import Flow
from onnxprune.score.base import Statistics, ranking


@dataclass(frozen=True)
class Snip:
    """The score of units: the norm of what they write, relative to the stream.

    Attributes:
        spectral: as the paper trains, with each weight divided by its largest singular value.
        whole: its modules are heads and whole branches: a branch that may go is not thinned otherwise.
    """

    spectral: bool = False
    whole: bool = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"spectral_flow" if self.spectral else "flow"})

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        found = statistics.spectral_flow if self.spectral else statistics.flow
        return ranking(site, found[site.id].relative)


def near_identity(flow: Mapping[str, Flow], structure: Structure, threshold: float) -> tuple[str, ...]:
    """Branches whose relative function norm is below a threshold, least first."""
    norms = {b.id: float(flow[b.id].relative[0]) for b in structure.branches if b.id in flow}
    return tuple(sorted((b for b, norm in norms.items() if norm < threshold), key=norms.__getitem__))


snip = Snip()
