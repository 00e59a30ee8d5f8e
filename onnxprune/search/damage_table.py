"""The damage table: how far outputs move when one site alone is at each of its levels, on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.structure.reading_matrices import Matrix
from onnxprune.graph.structure.sites import Site, kept_by
from onnxprune.probe.batched_states import Copies
from onnxprune.probe.forward import Evaluator, Walk
from onnxprune.probe.gates import Gated, Gates
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.refit.solvers import NestedRefit, refit

FACTORS = 2**28
"""Bytes of factorisations from which on old ones are made again when they are needed."""


@dataclass(frozen=True, eq=False)
class Refitter:
    """Weights of a site at a level: the rows that stay, corrected for those that went (least squares on the Gram).

    Without Gram matrices the rows that stay are left as they are.

    Args:
        rankings: group id -> order; what follows it, at any level, shares one factorisation.
    """

    weight: Callable[[str], np.ndarray]
    gram: Mapping[Usage, Gram]
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    damping: float = 1e-2
    _nested: dict[Usage, NestedRefit] = field(default_factory=dict)

    def __call__(self, site: Site, units: Sequence[int]) -> dict[str, np.ndarray]:
        """initializer -> refit weight, in its own shape."""
        if len(units) in (0, site.group.size):
            return {}
        found: dict[str, np.ndarray] = {}
        shared = len({m.reader.weight for m in site.matrices}) < len(site.matrices)
        for matrix in site.matrices:
            usage, name = (matrix.reader.node, matrix.reader.input), matrix.reader.weight or ""
            if usage not in self.gram or shared:
                continue
            array = self.weight(name)
            kept = np.isin(matrix.units, units) | (matrix.units < 0)
            fitted = self._fitted(site, matrix, matrix.weight(array), kept)
            found[name] = matrix.restore(fitted.astype(np.float32), array.shape)
        return found

    def _fitted(self, site: Site, matrix: Matrix, weight: np.ndarray, kept: np.ndarray) -> np.ndarray:
        usage, count = (matrix.reader.node, matrix.reader.input), int(kept.sum())
        nested = self._nested.get(usage)
        if nested is None and site.id in self.rankings:
            places = np.empty(site.group.size + 1, dtype=np.int64)
            places[list(self.rankings[site.id].order)] = np.arange(site.group.size)
            places[-1] = -1  # rows of no unit stay whatever goes
            order = np.argsort(places[matrix.units], kind="stable")
            if sum(n.factor.nbytes for n in self._nested.values()) > FACTORS:
                self._nested.clear()
            nested = NestedRefit(weight, self.gram[usage].matrix, order, damping=self.damping)
            self._nested[usage] = nested
        if nested is not None and kept[nested.order[:count]].all():
            return nested.at(count)
        return refit(weight, self.gram[usage].matrix, kept, damping=self.damping)


def damage_table(
    evaluator: Evaluator,
    gates: Gates,
    base: Plan,
    sites: Sequence[Site],
    rankings: Mapping[str, Ranking],
    levels: Mapping[str, Sequence[int]],
    refitter: Refitter,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Divergence per site and level, everything else as in `base`.

    Only what follows a site is run, from values cached in front of it.

    Returns:
        group id -> [levels], mean over rows.
    """
    walk = Walk(evaluator.rows, evaluator.wanted)
    before = gates.gated(base)
    table = {}
    for done, site in enumerate(sites):
        walk.to(site.stop, state=before)
        states = [_state(gates, base, site, count, rankings, refitter) for count in levels[site.id]]
        copies = Copies(evaluator.rows, gates.structure, site, before, evaluator.wanted)
        found = [copies.distances(i, values, states, evaluator.distance) for i, values in enumerate(walk.values)]
        table[site.id] = np.asarray(np.concatenate(found, axis=1).mean(axis=1))
        if progress is not None:
            progress(done + 1, len(sites))
    return table


def _state(
    gates: Gates, base: Plan, site: Site, count: int, rankings: Mapping[str, Ranking], refitter: Refitter
) -> Gated:
    keep, drop = kept_by({site.id: count}, rankings, [site])
    weights = refitter(site, keep[site.id]) if site.id in keep else {}
    return gates.gated(
        replace(base, keep={**base.keep, **keep}, drop=(*base.drop, *drop), weights={**base.weights, **weights})
    )


def spread(levels: Sequence[int], damage: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A table row at every multiple of `step` between the measured levels, never rising with more units kept.

    Returns:
        (counts, damages); nothing kept, if measured, stands for itself.
    """
    counts = np.asarray(levels)
    falling = np.minimum.accumulate(np.maximum(damage, 0.0))
    some = counts > 0
    first, last = int(counts[some][0]), int(counts[-1])
    fine = np.unique(np.concatenate([np.arange(first, last + 1, max(step, 1)), counts[some]]))
    dense = np.interp(fine, counts[some], falling[some])
    if not some.all():
        fine, dense = np.concatenate([[0], fine]), np.concatenate([[falling[0]], dense])
    return fine, dense
