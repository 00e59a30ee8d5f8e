"""Costs in milliseconds of a measured table, beside those that are counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Group, Plan, Structure
from onnxprune.graph.structure.sites import Site
from onnxprune.measure.calls import times_of
from onnxprune.measure.cost import Costs
from onnxprune.measure.tables.micro_models import Cutter, Micro
from onnxprune.measure.tables.table import Curve, LatencyTable

Obtain = Callable[[Cutter, Sequence[Micro]], LatencyTable]
"""obtain(cutter, what is needed) -> a table that has it."""


class LatencyCosts(Costs):
    """`Costs` that also know the kind "latency": what a plan takes on one provider, by a table of its modules.

    The prediction is what the model takes as it is written without a cut, less what modules save at their width. That
    adds up nearly, not exactly: `landing` measures what the real file takes. Of several graphs it is what as many calls
    of each take as are counted (`Model.calls`), a session for each.

    Args:
        sites: where plans may cut.
        widths: site -> the numbers of units to know the time of, ascending, none and all among them.
        obtain: gives the table, once.
        picky: whether only widths are offered that take less than every wider one.
        keep_unread: of `Cutter`.
    """

    def __init__(
        self,
        model: Model,
        structure: Structure,
        bindings: Mapping[str, int],
        sites: Sequence[Site],
        widths: Callable[[Site], Sequence[int]],
        obtain: Obtain,
        picky: bool = True,
        keep_unread: bool = False,
    ) -> None:
        super().__init__(model, structure, bindings)
        self.sites = {site.id: site for site in sites}
        self.widths = widths
        self.obtain = obtain
        self.picky = picky
        self.cutters: dict[Cutter, int] = {
            Cutter(self, sites, keep_unread, part): times_of(model, part) for part in model.parts
        } or {Cutter(self, sites, keep_unread): 1}

    @property
    def cutter(self) -> Cutter:
        """The first graph's."""
        return next(iter(self.cutters))

    @cached_property
    def table(self) -> LatencyTable:
        """What was measured."""
        return self.obtain(self.cutter, self.needed())

    def needed(self) -> list[Micro]:
        """The model, what it is without a cut, every module at every width, maps for branches; equal ones once."""
        found = [*self._whole, *self._uncut]
        for modules in self._micros.values():
            found += [micro for micros in modules.values() for micro in micros.values()]
        found += [micro for maps in self._maps.values() for micro in maps.values()]
        unique: dict[str, Micro] = {}
        for micro in found:
            unique.setdefault(micro.signature, micro)
        return list(unique.values())

    def total(self, kind: str, plan: Plan | None = None) -> float:
        if kind != "latency":
            return super().total(kind, plan)
        if plan is None:
            return self._called(self._whole)
        saved = 0.0
        for site in self.sites.values():
            group = site.group
            count = 0 if group.branch in plan.drop else len(plan.keep.get(group.id, range(group.size)))
            full, left = self.curve(group.id).at([group.size, count])
            saved += float(full - left)
        added = sum(self.map_cost(kind, b) for b in plan.drop if b in plan.maps)
        return self._called(self._uncut) - saved + added

    def part(self, kind: str, groups: Sequence[Group], plan: Plan) -> float:
        if kind != "latency":
            return super().part(kind, groups, plan)
        total = 0.0
        for group in groups:
            count = 0 if group.branch in plan.drop else len(plan.keep.get(group.id, range(group.size)))
            total += float(self.curve(group.id).at([count])[0])
        mapped = {g.branch for g in groups if g.branch is not None and g.branch in plan.maps}
        return total + sum(self.map_cost(kind, b) for b in mapped)

    def offered(self, group: Group, counts: Sequence[int]) -> npt.NDArray[np.bool_]:
        return self.curve(group.id).offered(counts) if self.picky else super().offered(group, counts)

    def unit_costs(self, kind: str, group: Group) -> float:
        if kind != "latency":
            return super().unit_costs(kind, group)
        none, full = self.curve(group.id).at([0, group.size])
        return float(full - none) / group.size

    def map_cost(self, kind: str, branch: str) -> float:
        if kind != "latency":
            return super().map_cost(kind, branch)
        site = next((s for s in self.sites.values() if s.branch is not None and s.branch.id == branch), None)
        idle = self._micros[site.id] if site is not None else {}
        return sum(
            self.cutters[cutter] * max(self._ms(micro) - (self._ms(idle[cutter][0]) if cutter in idle else 0.0), 0.0)
            for cutter, micro in self._maps[branch].items()
        )

    def branch_cost(self, kind: str, branch: str) -> float:
        if kind != "latency":
            return super().branch_cost(kind, branch)
        return self.total(kind, Plan(self.structure.digest)) - self.total(
            kind, Plan(self.structure.digest, drop=(branch,))
        )

    def curve(self, group: str) -> Curve:
        """A group's milliseconds over its units."""
        if group not in self._curves:
            points: dict[int, float] = defaultdict(float)
            for cutter, micros in self._micros[group].items():
                for units, micro in micros.items():
                    points[units] += self.cutters[cutter] * self._ms(micro)
            self._curves[group] = Curve(points)
        return self._curves[group]

    # ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _curves(self) -> dict[str, Curve]:
        return {}

    @cached_property
    def _whole(self) -> list[Micro]:
        """The model, graph by graph."""
        return [cutter.whole() for cutter in self.cutters]

    @cached_property
    def _uncut(self) -> list[Micro]:
        return [cutter.uncut() for cutter in self.cutters]

    def _called(self, graphs: Sequence[Micro]) -> float:
        """Milliseconds of the calls of all graphs."""
        return sum(times * self._ms(micro) for micro, times in zip(graphs, self.cutters.values(), strict=True))

    @cached_property
    def _micros(self) -> dict[str, dict[Cutter, dict[int, Micro]]]:
        """Group -> graph that has it -> units -> micro-model; what is equal when whole is cut once, since it is equal
        at every width."""
        made: dict[tuple[object, ...], dict[int, Micro]] = {}
        found: dict[str, dict[Cutter, dict[int, Micro]]] = {}
        for site in self.sites.values():
            widths = tuple(self.widths(site))
            found[site.id] = {}
            for cutter in self.cutters:
                if not cutter.holds(site):
                    continue
                whole = cutter.module(site, site.group.size)
                alike = (whole.signature, site.group.kind, site.group.shape, cutter.role(site), widths)
                if alike not in made:
                    made[alike] = {units: cutter.module(site, units) for units in widths}
                found[site.id][cutter] = made[alike]
        return found

    @cached_property
    def _maps(self) -> dict[str, dict[Cutter, Micro]]:
        """Branch -> graph that has it, or the same one -> the map in its place."""
        copies = {name for twins in self.structure.twins.values() for name in twins}
        found = {}
        for name in (b.id for b in self.structure.branches if b.id not in copies):
            same = [self.structure.branch(twin) for twin in self.structure.with_twins([name])]
            found[name] = {c: c.map(b) for b in same for c in self.cutters if c.has(b)}
        return found

    def _ms(self, micro: Micro) -> float:
        entry = self.table.by_signature.get(micro.signature)
        if entry is None:
            raise DataError(
                f"the latency table knows no {micro.kind} module with {micro.units} of {micro.of} units: it was made "
                "for another model or another shape; make one of this model with `onnxprune profile`"
            )
        return entry.ms
