"""Greedy structured optimal brain surgeon (ZipLM, Kurtic et al. 2023; OSSCAR, Meng et al. 2024).

Units go one after another, each the one whose removal costs least after the best correction of those that stay.
"""

from __future__ import annotations

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.refit.solvers import obs_path
from onnxprune.refit.solvers.obs import Reader
from onnxprune.score.base import Statistics


class _Obs:
    needs = frozenset({"gram"})
    alone = True

    def __call__(self, site: Site, statistics: Statistics) -> Ranking:
        readers = [
            Reader(
                m.weight(statistics.weight(m.reader.weight or "")),
                statistics.gram[m.reader.node, m.reader.input].rows,
                m.units,
            )
            for m in site.matrices
        ]
        path = obs_path(readers)
        scores = np.empty(site.group.size)
        scores[path.order] = np.maximum.accumulate(np.diff(path.error))
        return Ranking(site.id, tuple(int(i) for i in path.order[::-1]), tuple(float(s) for s in scores))


obs = _Obs()
