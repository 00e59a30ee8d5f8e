"""The damage table: how far outputs move when one site alone is at each of its levels, on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.gates import Gates
from onnxprune.interpret import Usage
from onnxprune.moments import Gram
from onnxprune.plan import Plan, Ranking
from onnxprune.probe import Evaluator, Walk
from onnxprune.sites import Site, kept_by
from onnxprune.solve import refit


@dataclass(frozen=True)
class Refitter:
    """Weights of a site at a level: the rows that stay, corrected for those that went (least squares on the Gram).

    Without Gram matrices the rows that stay are left as they are.
    """

    weight: Callable[[str], np.ndarray]
    gram: Mapping[Usage, Gram]
    damping: float = 1e-2

    def __call__(self, site: Site, units: Sequence[int]) -> dict[str, np.ndarray]:
        """initializer -> refit weight, in its own shape."""
        if len(units) in (0, site.group.size):
            return {}
        found: dict[str, np.ndarray] = {}
        shared = len({m.reader.weight for m in site.matrices}) < len(site.matrices)
        for matrix in site.matrices:
            gram = self.gram.get((matrix.reader.node, matrix.reader.input))
            name = matrix.reader.weight or ""
            if gram is None or shared:
                continue
            array = self.weight(name)
            kept = np.isin(matrix.units, units) | (matrix.units < 0)
            fitted = refit(matrix.weight(array), gram.matrix, kept, damping=self.damping)
            found[name] = matrix.restore(fitted.astype(np.float32), array.shape)
        return found


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
        damages = []
        for count in levels[site.id]:
            keep, drop = kept_by({site.id: count}, rankings, [site])
            weights = refitter(site, keep[site.id]) if site.id in keep else {}
            state = gates.gated(
                replace(base, keep={**base.keep, **keep}, drop=(*base.drop, *drop), weights={**base.weights, **weights})
            )
            rows = [evaluator.from_here(i, values, state) for i, values in enumerate(walk.values)]
            damages.append(float(np.concatenate(rows).mean()))
        table[site.id] = np.array(damages)
        if progress is not None:
            progress(done + 1, len(sites))
    return table


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
