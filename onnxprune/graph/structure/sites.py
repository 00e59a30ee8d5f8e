"""Where pruning acts: a group of units with the matrices that read it, and the branch that goes when all of it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import atoms_of
from onnxprune.graph.ops.reduce import SUMS
from onnxprune.graph.plan import Branch, Group, Ranking, Structure
from onnxprune.graph.structure.bases import rotatable
from onnxprune.graph.structure.reading_matrices import Matrix, matrices

KINDS = {kind: (kind,) for kind in ("heads", "neurons", "channels", "query_heads", "head_dims", "hidden")} | {
    "head_ranks": ("head_dims",)
}
"""What `--units` may name, and the groups it means; "blocks" are the branches of whatever is chosen.

Of the dimensions within a head those of values and outputs are read by a weight; those of queries and keys meet each
other, and are ordered by that (score/unweighted.py), as units that sums alone read are. Where their basis is free, both
are rotated first (score/rotation.py); "head_ranks" are these alone.
"""


@dataclass(frozen=True)
class Site:
    """A group that can be thinned.

    Attributes:
        matrices: what reads the units; none where queries and keys meet, or where only sums read.
        branch: the residual branch that vanishes when no unit is left; None where one unit must stay.
    """

    group: Group
    matrices: tuple[Matrix, ...]
    branch: Branch | None

    @property
    def id(self) -> str:
        return self.group.id

    @property
    def rows(self) -> int:
        """Outer units that each choose their own, equally many (heads their dimensions); 1 where there are none."""
        return self.group.size // self.group.shape[-1]

    @property
    def stop(self) -> str:
        """The first node that reads the units: what a suffix starts at."""
        return self.group.readers[0].node


def find_sites(
    graph: ir.Graph,
    structure: Structure,
    units: Sequence[str] = ("heads", "neurons", "blocks"),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[Site]:
    """The groups of the wanted kinds, in graph order.

    Args:
        units: kinds; with "blocks", branches may go as a whole.
        include, exclude: globs over group ids and node names.
    """
    wanted = {kind for unit in units for kind in KINDS.get(unit, (unit,))}
    order = {n.name: i for i, n in enumerate(graph)}
    headed = {g.branch for g in structure.groups if g.kind in ("heads", "query_heads") and g.kind in wanted}
    ranks = "head_dims" not in units
    found = []
    for group in structure.groups:
        names = (group.id, group.name)
        if group.kind not in wanted or (include and not _matches(names, include)) or _matches(names, exclude):
            continue
        read = matrices(graph, structure, group)
        fused = read is None and not (meet(graph, structure, group) or summed(graph, group))
        if (fused or (ranks and group.kind == "head_dims")) and not rotatable(graph, structure, group):
            continue
        branch = structure.branch(group.branch) if group.branch else None
        whole = (
            branch is not None and branch.reader is not None and branch.reader in group.readers and "blocks" in units
        ) and not (group.kind == "head_dims" and group.branch in headed)  # it goes with the last of its heads
        found.append(Site(group, tuple(read or ()), branch if whole else None))
    return sorted(found, key=lambda s: order[s.stop])


def meet(graph: ir.Graph, structure: Structure, group: Group) -> bool:
    """Whether units are dimensions that two activations share in a product, which outer units choose side by side."""
    nodes = {n.name: n for n in graph}
    for reader in group.readers:
        node = nodes[reader.node]
        if reader.weight is not None or node.op_type != "MatMul" or reader.input != 0:
            return False
        for side, value in enumerate(node.inputs):
            layouts = structure.layouts[value.name or ""] if value is not None else ()
            axis = reader.axis if side == 0 else max(len(layouts) - 2, 0)
            around = {a for i, layout in enumerate(layouts) if i != axis for a in atoms_of(layout)}
            if not around.issuperset(group.context):
                return False
    return True


def summed(graph: ir.Graph, group: Group) -> bool:
    """Whether sums alone read the units: no weight tells what one is worth, and what it adds does."""
    nodes = {n.name: n for n in graph}
    return all(nodes[reader.node].op_type in SUMS for reader in group.readers)


def _matches(names: Iterable[str], globs: Sequence[str]) -> bool:
    return any(fnmatch(name, glob) for name in names for glob in globs)


def levels(site: Site, round_to: int, count: int = 13, few: int = 16) -> list[int]:
    """Numbers of units at which a site's damage is measured: all of a `few`, else closer together where little is left.

    Multiples of `round_to`, from nothing (or one step, where something must stay) to everything.
    """
    size = site.group.size
    step = max(1, min(round_to, size))
    if size <= few:
        grid = set(range(0, size + 1, step if site.group.kind != "heads" else site.rows)) | {size}
    else:
        shares = np.linspace(0.0, 1.0, count) ** 1.6
        grid = {min(round(float(s) * size / step) * step, size) for s in shares} | {step, size}
    grid.add(0)
    return sorted(k for k in grid if k > 0 or site.branch is not None)


def even(site: Site, ranking: Ranking) -> Ranking:
    """An order whose first k · rows units are k of every row: the best of each row, then the second of each …"""
    if site.rows == 1:
        return ranking
    width = site.group.shape[-1]
    seen = [0] * site.rows
    place = {}
    for unit in ranking.order:
        place[unit] = seen[unit // width]
        seen[unit // width] += 1
    return replace(ranking, order=tuple(sorted(ranking.order, key=place.__getitem__)))


def kept_by(
    counts: Mapping[str, int], rankings: Mapping[str, Ranking], sites: Sequence[Site]
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """(keep, drop) of a plan that leaves `counts` units at every site."""
    drop = [s.branch.id for s in sites if s.branch is not None and counts[s.id] == 0]
    left = [s for s in sites if s.group.branch not in drop and counts[s.id] < s.group.size]
    return {s.id: rankings[s.id].keep(counts[s.id]) for s in left}, tuple(dict.fromkeys(drop))
