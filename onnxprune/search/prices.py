"""What numbers of units cost, all sites together: exact on any graph.

Multiply-accumulates and weights are products of widths. In a transformer every product has one width that may change,
so that costs add up over sites; in a chain of convolutions or a plain MLP it has two, and a unit's price depends on
what its neighbours keep.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import Site
from onnxprune.measure.cost import Costs

Array = npt.NDArray[np.float64]
Counts = Mapping[str, int]
"""Site id -> units kept; 0 drops the site's branch, `MAPPED` leaves a linear map in its place."""

MAPPED = -1
"""As a count: the branch is gone, and a linear map of the stream stands in for it."""

DEGREE = 4
"""More widths than that no product of a graph has."""

_MAP = np.zeros((0, 0), dtype=np.float32)


class Prices:
    """Costs by numbers of units.

    Args:
        kind: of budget.
        sites: where units may go.
        first: what every plan begins with.
    """

    def __init__(self, costs: Costs, kind: str, sites: Sequence[Site], first: Plan) -> None:
        self.costs, self.kind, self.first = costs, kind, first
        self.sites = {s.id: s for s in sites if s.group.branch not in first.drop}
        self._totals: dict[tuple[int, ...], float] = {}
        self._clusters_at: dict[tuple[int, ...], float] = {}
        self._parts: dict[tuple[object, ...], Array] = {}
        self._counted: dict[tuple[object, ...], float] = {}
        self._kept: dict[tuple[str, int], tuple[int, ...]] = {}
        self._neighbours: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def plan(self, counts: Counts, names: Collection[str] | None = None) -> Plan:
        """A plan that keeps so many units, whichever they are; of some sites alone, where `names` says which."""
        keep, drop, maps = dict(self.first.keep), list(self.first.drop), dict(self.first.maps)
        for name in self.sites if names is None else names:
            site, count = self.sites[name], counts[name]
            if count <= 0 and site.branch is not None:
                drop.append(site.branch.id)
                if count == MAPPED:
                    maps[site.branch.id] = _MAP
            elif count < site.group.size:
                keep[site.id] = self._first_units(site, count)
        return Plan(self.first.digest, keep, tuple(dict.fromkeys(drop)), maps=maps)

    def total(self, counts: Counts) -> float:
        """What is left of the model."""
        key = tuple(counts[name] for name in self.sites)
        if key not in self._totals:
            table = self.kind == "latency"
            whole = self.costs.total(self.kind, self.plan(counts)) if table else self._fixed + self._in_clusters(counts)
            self._totals[key] = whole
        return self._totals[key]

    def levels(self, members: Sequence[str], counts: Counts, levels: Sequence[int]) -> Array:
        """The total at each of some counts of one site, or of several alike, everything else as in `counts`."""
        now = tuple(counts[m] for m in members)
        wide, beside = self._near(tuple(members))
        key = (tuple(members), tuple(levels), *(counts[n] for n in wide), *(min(counts[n], 1) for n in beside))
        if key not in self._parts:
            self._parts[key] = self._measured(members, counts, levels)
        own = (tuple(members), now, *key[2:])
        if own not in self._parts:
            self._parts[own] = np.array([self._part(members, counts)])
        return np.asarray(self.total(counts) - self._parts[own][0] + self._parts[key])

    @cached_property
    def whole(self) -> dict[str, int]:
        """Every site with all its units."""
        return {name: site.group.size for name, site in self.sites.items()}

    def least(self, site: str) -> float:
        """The total when one site keeps the least it can, everything else whole."""
        fewest = 0 if self.sites[site].branch else self.sites[site].rows
        return float(self.levels([site], self.whole, [fewest])[0])

    def span(self, site: str) -> float:
        """What a site's units cost together, but for the least that it keeps."""
        return self.total(self.whole) - self.least(site)

    @cached_property
    def coupled(self) -> bool:
        """Whether a unit's price depends on what other sites keep."""
        if self.kind == "latency":
            return False  # by the table modules add up; the file is measured
        half = {name: site.rows * max(site.group.shape[-1] // 2, 1) for name, site in self.sites.items()}
        for name in self.sites:
            if not self._near((name,))[0]:
                continue
            ends = [half[name], self.whole[name]]
            dear, cheap = (np.ptp(self.levels([name], counts, ends)) for counts in (self.whole, half))
            if abs(dear - cheap) > 1e-9 * self.total(self.whole):
                return True
        return False

    # ----------------------------------------------------------------------------------------------------------

    def _measured(self, members: Sequence[str], counts: Counts, levels: Sequence[int]) -> Array:
        """What is counted around some sites at each level: a polynomial of the width, but where a branch leaves."""
        wide = [k for k in levels if k > 0]
        some = wide if len(wide) <= DEGREE + 1 or self.kind == "latency" else _spread(wide)
        counted = [k for k in levels if k <= 0] + some
        found = {k: self._part(members, {**counts, **dict.fromkeys(members, k)}) for k in counted}
        if len(some) < len(wide):
            rest = [k for k in wide if k not in found]
            found |= dict(zip(rest, np.rint(_interpolated(some, [found[k] for k in some], rest)).tolist(), strict=True))
        return np.array([found[k] for k in levels])

    def _part(self, members: Sequence[str], counts: Counts) -> float:
        """What is counted around some sites; no site of another cluster is seen there."""
        near = tuple(members) if self.kind == "latency" else self._clusters_of(members)
        key = tuple(members), *(counts[name] for name in near)
        if key not in self._counted:
            groups = [self.sites[m].group for m in members]
            self._counted[key] = self.costs.part(self.kind, groups, self.plan(counts, near))
        return self._counted[key]

    @cached_property
    def _fixed(self) -> float:
        """What is in no cluster."""
        return self.costs.total(self.kind, self.plan(self.whole)) - self._in_clusters(self.whole)

    def _in_clusters(self, counts: Counts) -> float:
        """What is counted around all sites, cluster by cluster: none is counted twice at the same widths."""
        found = 0.0
        for place, members in enumerate(self._clusters):
            key = (place, *(counts[m] for m in members))
            if key not in self._clusters_at:
                self._clusters_at[key] = self._part(members, counts)
            found += self._clusters_at[key]
        return found

    def _clusters_of(self, members: Sequence[str]) -> tuple[str, ...]:
        if len(members) == 1:
            return self._cluster[members[0]]
        return tuple(dict.fromkeys(name for member in members for name in self._cluster[member]))

    @cached_property
    def _cluster(self) -> dict[str, tuple[str, ...]]:
        return {name: members for members in self._clusters for name in members}

    @cached_property
    def _clusters(self) -> tuple[tuple[str, ...], ...]:
        """Sites between which something is counted that both have to do with; no two clusters share anything."""
        found: list[tuple[list[str], set[str]]] = []
        for name, (_, touched) in self._touched.items():
            joined = [other for other in found if other[1] & touched]
            names, every = [n for ns, _ in joined for n in ns] + [name], set(touched).union(*(t for _, t in joined))
            found = [other for other in found if other not in joined] + [(names, every)]
        return tuple(tuple(names) for names, _ in found)

    def _near(self, members: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(other sites whose width is in what is counted around some, those of which only whether they are there)."""
        if members not in self._neighbours:
            own = frozenset().union(*(self._touched[m][1] for m in members))
            others = {n: touched for n, touched in self._touched.items() if n not in members}
            wide = tuple(n for n, (shown, _) in others.items() if shown & own)
            beside = tuple(n for n, (_, all_) in others.items() if all_ & own and n not in wide)
            self._neighbours[members] = wide, beside
        return self._neighbours[members]

    @cached_property
    def _touched(self) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
        return {name: self.costs.touching(site.group) for name, site in self.sites.items()}

    def _first_units(self, site: Site, count: int) -> tuple[int, ...]:
        """As many units of every row."""
        if (site.id, count) not in self._kept:
            keep = np.zeros((site.rows, site.group.shape[-1]), dtype=bool)
            keep[:, : max(-(-count // site.rows), 1)] = True
            self._kept[site.id, count] = tuple(np.flatnonzero(keep).tolist())
        return self._kept[site.id, count]


def _spread(values: Sequence[int]) -> list[int]:
    """So many of some ascending numbers that a polynomial is known from them, the ends among them."""
    places = np.unique(np.rint(np.linspace(0, len(values) - 1, DEGREE + 1)).astype(int))
    return [values[i] for i in places]


def _interpolated(at: Sequence[int], values: Sequence[float], wanted: Sequence[int]) -> Array:
    """The polynomial through some points, elsewhere (Lagrange)."""
    x, y, z = (np.asarray(v, dtype=np.float64) for v in (at, values, wanted))
    found = np.zeros(len(z))
    for i, value in enumerate(y):
        others = np.delete(x, i)
        found += value * np.prod((z[:, None] - others) / (x[i] - others), axis=1)
    return found
