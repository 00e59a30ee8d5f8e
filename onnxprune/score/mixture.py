"""Weighted mixtures of scores: each scaled to unit mean over the site's units, then summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import UsageError, near
from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.forward import Rows
from onnxprune.probe.gates import Gates
from onnxprune.probe.weight_gradients import Accumulator
from onnxprune.score.base import Method, Statistics, ranking
from onnxprune.score.seven_dyn import Dynamic, Refit, dynamic

LEAST = 0.05
"""The smallest share of units that a schedule goes down to."""


@dataclass(frozen=True)
class Mixture:
    """Σ weight · score / mean(score). `obs`, whose order is sequential, mixes by its step errors."""

    parts: tuple[tuple[float, Method], ...]

    def __post_init__(self) -> None:
        if sum("weight_score" in method.needs for _, method in self.parts) > 1:
            raise UsageError("--method: a mixture can hold one score that is taken on weights, not several")

    @property
    def accumulator(self) -> Callable[[], Accumulator] | None:
        """That of the part that is taken on weights."""
        made: list[Any] = [method for _, method in self.parts if "weight_score" in method.needs]
        return made[0].accumulator if made else None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(method.needs for _, method in self.parts))

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        total = np.zeros(site.group.size)
        for weight, method in self.parts:
            scores = np.asarray(method(site, statistics).scores)
            total += weight * scores / (scores.mean() or 1.0)
        return ranking(site, total)


def stepwise(
    method: Method, rows: Rows, sites: Sequence[Site], gates: Gates, share: float, base: Plan, refit: Refit
) -> dict[str, Ranking]:
    """The orders by the part of a method that prunes in steps, down to the share of units that a budget keeps."""
    parts = [part for _, part in method.parts] if isinstance(method, Mixture) else [method]
    found = next(part for part in parts if isinstance(part, Dynamic))
    return dynamic(rows, sites, gates, min(max(share, LEAST), 1.0), found.accumulator, base=base, refit=refit)


def parse(text: str, methods: Mapping[str, Method]) -> Method:
    """A method by name, or a mixture: `optin+0.5*seven`.

    Raises:
        UsageError: an unknown name or a weight that is no positive number.
    """
    parts = []
    for term in text.split("+"):
        weight, _, name = term.rpartition("*")
        try:
            share = float(weight) if weight else 1.0
        except ValueError:
            share = -1.0
        if name.strip() not in methods or not share > 0:
            raise UsageError(
                f"--method {text}: {term!r} is not understood; choose from {', '.join(methods)}"
                f"{near(name.strip(), methods)}"
            )
        parts.append((share, methods[name.strip()]))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1.0 else Mixture(tuple(parts))
