"""The damage table: how far outputs move when one site alone is brought to each of its levels, measured on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.gates import Gates
from onnxprune.plan import Plan, Ranking
from onnxprune.probe import Evaluator, Gram
from onnxprune.interpret import Usage
from onnxprune.sites import Site, kept_by
from onnxprune.solve import refit


@dataclass(frozen=True)
class Refitter:
    """Weights of a site at a level: the rows that stay, corrected for those that went (least squares on the Gram).

    Without Gram matrices the rows that stay are left as they are.
    """

    weight: Callable[[str], np.ndarray]
    gram: Mapping[Usage, Gram]

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
            fitted = refit(matrix.weight(array), gram.matrix, kept)
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
    """Divergence per site and level, every other site as in `base`.

    Only what follows a site is run, from values cached in front of it.

    Returns:
        group id -> [levels], mean over rows.
    """
    table = {s.id: np.zeros(len(levels[s.id])) for s in sites}
    states = {}
    for site in sites:
        for j, count in enumerate(levels[site.id]):
            if count < site.group.size:
                keep, drop = kept_by({site.id: count}, rankings, [site])
                units = keep.get(site.id, ())
                states[site.id, j] = gates.gated(Plan(base.digest, keep, drop, refitter(site, units)))
    rows = 0
    for batch, starts in evaluator.suffixes([s.stop for s in sites]):
        for site, values in zip(sites, starts, strict=True):
            for j in range(len(levels[site.id])):
                if (site.id, j) in states:
                    table[site.id][j] += evaluator.from_here(batch, values, states[site.id, j]).sum()
        rows += len(evaluator.rows.batches[batch])
        if progress is not None:
            progress(batch + 1, len(evaluator.rows.batches))
    return {name: values / max(rows, 1) for name, values in table.items()}


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
