"""Weighted mixtures of scores: each scaled to unit mean over the site's units, then summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.plan import Ranking
from onnxprune.score.base import Method, Statistics, ranking
from onnxprune.sites import Site


@dataclass(frozen=True)
class Mixture:
    """Σ weight · score / mean(score). `obs`, whose order is sequential, mixes by its step errors."""

    parts: tuple[tuple[float, Method], ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(method.needs for _, method in self.parts))

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        total = np.zeros(site.group.size)
        for weight, method in self.parts:
            scores = np.asarray(method(site, statistics).scores)
            total += weight * scores / (scores.mean() or 1.0)
        return ranking(site, total)


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
            raise UsageError(f"--method {text}: {term!r} is not understood; choose from {', '.join(methods)}")
        parts.append((share, methods[name.strip()]))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1.0 else Mixture(tuple(parts))
