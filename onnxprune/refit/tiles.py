"""Tiles: which inputs each tile of a matrix's outputs reads, and the order of units that makes them a range.

What a tile reads is chosen on the Gram matrix of the inputs: units by optimal brain surgeon, ranges by the error of
exact least squares. Orders are free: units that one matrix writes and another reads (neurons) are written as [read by
the first tile only | by both | by the second only], those of a stream that is only normalised the dearest first. What
no tile reads leaves. The weights themselves are solved for afterwards (sparsify.py).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import NothingToPruneError
from onnxprune.graph.axes import in_whole_terms, index_of
from onnxprune.graph.plan import Plan, Structure, Tile
from onnxprune.graph.structure.linear_layers import Linear
from onnxprune.probe.forward import Rows, Walk
from onnxprune.probe.gates import Gates
from onnxprune.refit.solvers import Reader, Tiled, Tiles, obs_path, range_errors
from onnxprune.refit.solvers.linalg import Array, Ints
from onnxprune.refit.sparsify import Part, gram_of, parts_of
from onnxprune.rewrite.tile import divisible

logger = logging.getLogger(__name__)

STARTS = 13
"""Ranges that a tile may choose from, evenly spread."""

SYMMETRIC = ("LayerNormalization", "RMSNormalization", "EmbedLayerNormalization")
"""Endings of the operators that normalise a stream of features alike, whatever their order."""


def arrange(
    gates: Gates,
    fit: Rows | None,
    plan: Plan,
    linears: Sequence[Linear],
    pattern: Tiles,
    name: str,
    *,
    centred: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The plan with tiles for every matrix that can have them; its weights are as they were.

    Args:
        fit: rows to learn from; None to go by the weights' magnitude.
        linears: in graph order.
        name: of the pattern, as the plan will have it.
        centred: whether biases will make up for the means of what is not read.

    Raises:
        NothingToPruneError: no matrix has outputs enough for a tile.
    """
    todo = [p for p in parts_of(gates, plan, linears) if divisible(p.linear.matrix.node)]
    wide = [p for p in todo if len(p.columns) >= pattern.least and len(p.rows) > 1]
    if not wide:
        most = max((len(p.columns) for p in todo), default=0)
        raise NothingToPruneError(
            f"--sparsity {name}: tiles of outputs need a MatMul or Gemm with at least {pattern.least}; the widest here "
            f"has {most}" + (f" (tiles:{pattern.share:g}:{most // 2} would do)" if most > 1 else "")
        )
    found = _Arrangement(gates, fit, plan, pattern, centred)
    for i, part in enumerate(wide):
        found.see(part)
        if progress is not None:
            progress(i + 1, len(wide))
    return replace(found.arranged(), sparsity=dict.fromkeys((p.linear.weight for p in wide), name))


def emptied(gates: Gates, plan: Plan, linears: Sequence[Linear]) -> Plan:
    """The plan with zeros outside its tiles, and nothing that makes up for them: enough to be written and timed."""
    weights = dict(plan.weights)
    for part in parts_of(gates, plan, [x for x in linears if x.weight in plan.tiles]):
        array = gates.weight(plan, part.linear.weight)
        matrix = part.take(array)
        mask = Tiled(plan.tiles[part.linear.weight]).project(matrix)
        weights[part.linear.weight] = part.put(matrix * mask, array)
    return replace(plan, weights=weights)


@dataclass(frozen=True, eq=False)
class _Owned:
    """Units that one matrix alone reads: `runs` of them, each read by the same tiles, in the order they are written."""

    group: str
    source: str
    runs: tuple[Ints, ...]


class _Arrangement:
    """Orders and ranges of one plan, found on the way through its matrices."""

    def __init__(self, gates: Gates, fit: Rows | None, plan: Plan, pattern: Tiles, centred: bool) -> None:
        self.gates, self.plan, self.pattern, self.centred = gates, plan, pattern, centred
        self.walk = None if fit is None else Walk(fit, fit.divergence.outputs)
        self.grams: dict[str, Array] = {}
        self.waiting: list[Linear] = []
        self.owned: list[_Owned] = []
        self.tiles: dict[str, tuple[Tile, ...]] = {}

    def see(self, part: Part) -> None:
        """Take in a matrix: one that owns its inputs is tiled at once, the others wait for the order of theirs."""
        gram = self._gram(part)
        group = own_group(self.gates.structure, part.linear)
        if group is None:
            self.waiting.append(part.linear)
            self.grams[part.linear.source] = gram
            return
        ordered, ranges = owned_ranges(self._weight(part), gram, self.pattern)
        readers = np.zeros((len(ordered), len(ranges)), dtype=bool)
        for i, (start, stop) in enumerate(ranges):
            readers[start:stop, i] = True
        read = readers.any(axis=1)
        place = np.concatenate([[0], np.cumsum(read)])
        self.tiles[part.linear.weight] = self._tiles(len(part.columns), [(place[a], place[b]) for a, b in ranges])
        ordered, readers = part.rows[ordered[read]], readers[read]
        ends = np.flatnonzero((readers[1:] != readers[:-1]).any(axis=1)) + 1
        self.owned.append(_Owned(group, part.linear.source, tuple(np.split(ordered, ends))))

    def arranged(self) -> Plan:
        """The plan with orders and tiles, all matrices seen."""
        keep = {o.group: tuple(sorted(int(u) for run in o.runs for u in run)) for o in self.owned}
        sizes = {o.group: self.gates.structure.group(o.group).size for o in self.owned}
        keep = {g: units for g, units in keep.items() if len(units) < sizes[g] or g in self.plan.keep}
        plan = replace(self.plan, keep={**self.plan.keep, **keep}, order={**self.plan.order, **self._streams()})
        parts = parts_of(self.gates, plan, self.waiting)
        losses = [range_errors(*self._problem(part), self._candidates(len(part.rows))) for part in parts]
        plan = replace(plan, order={**plan.order, **self._neurons(parts, losses)})
        for before, part, loss in zip(parts, parts_of(self.gates, plan, self.waiting), losses, strict=True):
            columns = np.searchsorted(np.sort(before.columns), part.columns)
            ascending = loss[:, np.argsort(before.columns)][:, columns]
            candidates = self._candidates(len(part.rows))
            bounds = self.pattern.bounds(len(part.columns))
            best = [candidates[int(np.argmin(ascending[:, first:last].sum(axis=1)))] for first, last in bounds]
            self.tiles[part.linear.weight] = self._tiles(len(part.columns), best)
        return replace(plan, tiles=dict(self.tiles))

    # ----------------------------------------------------------------------------------------------------------

    def _streams(self) -> dict[str, tuple[int, ...]]:
        """source -> order of its features, for every stream whose features may be put in order."""
        readers: dict[int, list[Part]] = defaultdict(list)
        for part in parts_of(self.gates, self.plan, self.waiting):
            atom = stream_atom(self.gates.structure, part.linear.source)
            if atom is not None:
                readers[atom].append(part)
        found = {}
        for parts in readers.values():
            order = dearest_first([(self._weight(part), self.grams[part.linear.source]) for part in parts])
            found[parts[0].linear.source] = tuple(int(u) for u in parts[0].rows[order])
        return found

    def _neurons(self, parts: Sequence[Part], losses: Sequence[Array]) -> dict[str, tuple[int, ...]]:
        """source -> order of the units that a matrix owns: in a run, those side by side whose best ranges are."""
        structure = self.gates.structure
        found = {}
        for owned in self.owned:
            atom = structure.group(owned.group).atom
            lost = np.zeros((STARTS, structure.sizes[atom]))
            for part, loss in zip(parts, losses, strict=True):
                index = index_of(structure.layouts[part.linear.matrix.output][-1], atom, structure.sizes)[part.columns]
                np.add.at(lost[: len(loss)].T, index[index >= 0], loss[:, index >= 0].T)
            best = np.argmin(lost, axis=0)
            ordered = [run[np.argsort(best[run], kind="stable")] for run in owned.runs]
            found[owned.source] = tuple(int(u) for run in ordered for u in run)
        return found

    def _candidates(self, inputs: int) -> list[tuple[int, int]]:
        return candidates(inputs, self.pattern.length(inputs))

    def _tiles(self, outputs: int, ranges: Sequence[tuple[int, int]]) -> tuple[Tile, ...]:
        """Tiles side by side; neighbours that read the same are one."""
        found: list[Tile] = []
        for (first, last), (start, stop) in zip(self.pattern.bounds(outputs), ranges, strict=True):
            same = bool(found) and (found[-1].start, found[-1].stop) == (start, stop)
            found.append(Tile(found.pop().first if same else first, last, int(start), int(stop)))
        return tuple(found)

    def _weight(self, part: Part) -> Array:
        return part.take(self.gates.weight(self.plan, part.linear.weight)).astype(np.float64)

    def _problem(self, part: Part) -> tuple[Array, Array]:
        """(weight, gram) of a waiting matrix with its rows in the order of the part."""
        place = np.searchsorted(np.sort(part.rows), part.rows)
        gram = self.grams[part.linear.source]
        return self._weight(part), gram[np.ix_(place, place)]

    def _gram(self, part: Part) -> Array:
        if self.walk is None:
            return np.eye(len(part.rows))
        if part.linear.source in self.grams:
            return self.grams[part.linear.source]
        gram = gram_of(self.gates, self.walk, self.plan, part)
        return gram.centred if self.centred else gram.matrix


def own_group(structure: Structure, linear: Linear) -> str | None:
    """The group of units that a matrix reads and nothing else does, where they may be written in any order."""
    layout = structure.layouts[linear.source][linear.matrix.reader.axis]
    for group in structure.groups:
        if layout == ((group.atom,),):
            alone = len(group.readers) == 1 and len(group.shape) == 1
            return group.id if alone and _alone(structure, group.atom) else None
    return None


def stream_atom(structure: Structure, source: str) -> int | None:
    """The atom of a value's features, where they are a stream that may be written in any order.

    What pins it is then only that it is normalised as a whole, which knows no order.
    """
    layout = structure.layouts[source][-1]
    atom = layout[0][0] if len(layout) == 1 and len(layout[0]) == 1 else None
    if not isinstance(atom, int) or not _alone(structure, atom):
        return None
    reasons = {why for pin in structure.pins if pin.size == structure.sizes[atom] for why in pin.reasons}
    free = any(group.atom == atom for group in structure.groups)
    return atom if free or (reasons and all(_symmetric(why) for why in reasons)) else None


def _alone(structure: Structure, atom: int) -> bool:
    return all(in_whole_terms(x, atom) for layouts in structure.layouts.values() for x in layouts)


def _symmetric(why: str) -> bool:
    return (why.startswith("normalised by ") and why.endswith(SYMMETRIC)) or why.startswith("reduced by Reduce")


def candidates(inputs: int, length: int) -> list[tuple[int, int]]:
    """Ranges (start, stop) of a length to choose from, the first and the last among them."""
    starts = np.unique(np.linspace(0, inputs - length, STARTS).round().astype(int))
    return [(int(s), int(s) + length) for s in starts]


def owned_ranges(weight: Array, gram: Array, pattern: Tiles) -> tuple[Ints, list[tuple[int, int]]]:
    """An order of the inputs, and the range of each tile in it, where any order will do.

    Two sets can always be written as [first only | both | second only | neither]. With more tiles, inputs are ordered
    by the tiles that want them most, and each takes its best range.

    Args:
        weight, gram: [n, m], [n, n].
    """
    bounds = pattern.bounds(weight.shape[1])
    inputs, length = len(weight), pattern.length(len(weight))
    units = np.arange(inputs)
    paths = [obs_path([Reader(weight[:, first:last], gram, units)]) for first, last in bounds]
    if len(paths) <= 2:
        wanted = np.zeros((inputs, 2), dtype=bool)
        for i in range(2):
            wanted[paths[min(i, len(paths) - 1)].kept(length), i] = True
        kinds = np.select([wanted[:, 0] & ~wanted[:, 1], wanted.all(axis=1), wanted[:, 1]], [0, 1, 2], 3)
        only = int((kinds == 0).sum())
        return np.argsort(kinds, kind="stable"), [(0, length), (only, only + length)][: len(paths)]
    loss = np.empty((inputs, len(paths)))  # what a tile loses when an input goes that was left till then
    for i, path in enumerate(paths):
        loss[path.order, i] = np.diff(path.error) / (path.total or 1.0)
    order = np.argsort(loss @ np.arange(len(paths)) / np.maximum(loss.sum(axis=1), 1e-300), kind="stable")
    options = candidates(inputs, length)
    errors = range_errors(weight[order], gram[np.ix_(order, order)], options)
    return order, [options[int(np.argmin(errors[:, first:last].sum(axis=1)))] for first, last in bounds]


def dearest_first(problems: Sequence[tuple[Array, Array]]) -> Ints:
    """An order of the inputs that several matrices (weight, gram) share, the last that should go first.

    Every matrix counts alike: by the share of its own outputs that is lost.
    """
    together: dict[int, tuple[Array, list[Array]]] = {}
    for weight, gram in problems:
        energy = float(np.sum(weight * (gram @ weight))) or 1.0
        together.setdefault(id(gram), (gram, []))[1].append(weight / energy**0.5)
    readers = []
    for gram, weights in together.values():
        # The path depends on W through WWᵀ alone, which a square factor has too.
        square = np.transpose(np.linalg.qr(np.concatenate(weights, axis=1).T, mode="r"))
        readers.append(Reader(square, gram, np.arange(len(gram))))
    return obs_path(readers).order[::-1].copy()
