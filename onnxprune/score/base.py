"""The seam of every method: which statistics it needs, and the order in which a site's units should go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.branch_norms import Flow
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.probe.trajectory import Trajectory


@dataclass(frozen=True)
class Statistics:
    """What the probe collected, as far as the method asked for it.

    Attributes:
        weight: initializer name -> array, in the weight's own shape.
        gram: usage -> Gram matrix of what is read there.
        gate_grad: group id -> [samples, units] gradient of the loss with respect to each unit's gate.
        trajectory: group or branch id -> how far features and outputs move without each unit.
        flow: group or branch id -> norms of what units and branches write, and of the stream.
        spectral_flow: the same with each weight divided by its largest singular value.
        order: group id -> the order in which its units go, from a method that prunes in steps.
        weight_score: initializer name -> what the method's own accumulator made of its gradients, in its shape.
    """

    weight: Callable[[str], np.ndarray]
    gram: Mapping[Usage, Gram] = field(default_factory=dict)
    gate_grad: Mapping[str, np.ndarray] = field(default_factory=dict)
    trajectory: Mapping[str, Trajectory] = field(default_factory=dict)
    flow: Mapping[str, Flow] = field(default_factory=dict)
    spectral_flow: Mapping[str, Flow] = field(default_factory=dict)
    weight_score: Mapping[str, np.ndarray] = field(default_factory=dict)
    order: Mapping[str, Ranking] = field(default_factory=dict)


class Method(Protocol):
    """A way to order units. `needs` names fields of Statistics; data-free methods need none.

    One with `alone = True` orders each site by itself and may be asked on several threads at once.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, site: Site, statistics: Statistics) -> Ranking: ...


@dataclass(frozen=True)
class Scored:
    """A method that gives each unit a score of its own; the highest stay longest."""

    score: Callable[[Site, Statistics], np.ndarray]
    needs: frozenset[str] = frozenset()

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        return ranking(site, self.score(site, statistics))


def ranking(site: Site, scores: np.ndarray) -> Ranking:
    """Units by score, highest first; of equals, the earlier one. scores [units]"""
    order = np.argsort(-scores, kind="stable")
    return Ranking(site.id, tuple(int(i) for i in order), tuple(float(s) for s in scores))


def per_unit(units: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of row values by the unit that owns the row. units, values [rows] -> [size]."""
    owned = units >= 0
    return np.bincount(units[owned], weights=values[owned], minlength=size)
