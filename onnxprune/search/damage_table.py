"""The damage table: how far outputs move when one site alone is at each of its levels, on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.graph import memory
from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.put_away import over
from onnxprune.graph.structure.reading_matrices import Matrix
from onnxprune.graph.structure.sites import Site, kept_by
from onnxprune.probe import threads
from onnxprune.probe.batched_states import Copies
from onnxprune.probe.forward import Evaluator, Walk
from onnxprune.probe.gates import Gated, Gates
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.refit.solvers import NestedRefit, RefitOnTokens

FACTORS = 2**28
"""Bytes of factorisations, and what goes with them, from which on old ones are made again when they are needed."""
DEAD = 1e-7
"""Of the best score: what is no score."""
NOTHING = 1e-6
"""Of a curve's height: a fall that is not worth a bend."""


@dataclass(frozen=True, eq=False)
class Refitter:
    """Weights of a site at a level: the rows that stay, corrected for those that went (least squares on the Gram).

    Without Gram matrices the rows that stay are left as they are.

    Args:
        rankings: group id -> order; what follows it, at any level, shares one factorisation.
        writable: what an initializer can hold of some numbers (`Gates.writable`).
    """

    weight: Callable[[str], np.ndarray]
    gram: Mapping[Usage, Gram]
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    damping: float = 1e-2
    writable: Callable[[str, np.ndarray], np.ndarray] = lambda _, array: array
    _nested: dict[tuple[Usage, str], NestedRefit | RefitOnTokens] = field(default_factory=dict)

    def together(self, chosen: Sequence[tuple[Site, Sequence[int]]]) -> dict[str, np.ndarray]:
        """The same of several sites that the same weights read, each with its units."""
        (first, units), *others = chosen
        if not others:
            return self(first, units)
        found: dict[str, np.ndarray] = {}
        for readers in zip(*(site.matrices for site, _ in chosen), strict=True):
            matrix, usage = readers[0], readers[0].usage
            name = matrix.reader.weight or ""
            if usage not in self.gram or not matrix.refits:
                continue
            array = self.weight(name)
            stays = [np.isin(m.units, u) | (m.units < 0) for m, (_, u) in zip(readers, chosen, strict=True)]
            fitted = self._alone(matrix.weight(array), self.gram[usage], np.logical_and.reduce(stays))
            found[name] = self.writable(name, matrix.restore(fitted.astype(np.float32), array.shape))
        return found

    def __call__(self, site: Site, units: Sequence[int]) -> dict[str, np.ndarray]:
        """initializer -> refit weight, in its own shape."""
        if len(units) in (0, site.group.size):
            return {}
        found: dict[str, np.ndarray] = {}
        shared = len({m.reader.weight for m in site.matrices}) < len(site.matrices)
        for matrix in site.matrices:
            usage, name = (matrix.reader.node, matrix.reader.input), matrix.reader.weight or ""
            if usage not in self.gram or shared or not matrix.refits:
                continue
            array = self.weight(name)
            kept = np.isin(matrix.units, units) | (matrix.units < 0)
            fitted = self._fitted(site, matrix, matrix.weight(array), kept)
            found[name] = self.writable(name, matrix.restore(fitted.astype(np.float32), array.shape))
        return found

    def _fitted(self, site: Site, matrix: Matrix, weight: np.ndarray, kept: np.ndarray) -> np.ndarray:
        usage, count = (matrix.reader.node, matrix.reader.input), int(kept.sum())
        # Each site's own: what it is refit to must not depend on whose order was solved along first.
        nested = self._nested.get((usage, site.id))
        if nested is None and site.id in self.rankings:
            places = np.empty(site.group.size + 1, dtype=np.int64)
            places[list(self.rankings[site.id].order)] = np.arange(site.group.size)
            places[-1] = -1  # rows of no unit stay whatever goes
            order = np.argsort(places[matrix.units], kind="stable")
            if sum(n.nbytes for n in self._nested.values()) > FACTORS:
                self._nested.clear()
            nested = self._nested[usage, site.id] = self._nest(weight, self.gram[usage], order)
        if nested is not None and kept[nested.order[:count]].all():
            return nested.at(count)
        return self._alone(weight, self.gram[usage], kept)

    def _nest(self, weight: np.ndarray, gram: Gram, order: np.ndarray) -> NestedRefit | RefitOnTokens:
        tokens = gram.tokens
        if tokens is not None:
            return RefitOnTokens(weight, tokens, order, damping=self.damping)
        return NestedRefit(weight, gram.matrix, order, damping=self.damping)

    def _alone(self, weight: np.ndarray, gram: Gram, kept: np.ndarray) -> np.ndarray:
        """For one set of rows [n]."""
        rows = np.flatnonzero(kept)
        return self._nest(weight, gram, np.concatenate([rows, np.flatnonzero(~kept)])).at(len(rows))


@dataclass(frozen=True, eq=False)
class Row:
    """One site's damages.

    Attributes:
        levels: units kept, ascending.
        damage: [levels], mean over rows.
    """

    levels: tuple[int, ...]
    damage: np.ndarray


BEND, SHARP = 8.0, 128.0
"""How many times steeper than the interval above it one must be for a level between to be measured, too: where nothing
is known of the curve, and where the scores tell its shape, so that nothing but the end of what is needed is that sharp.
"""


BEYOND = 1e3
"""How many times more than any other the damage is where outputs are no number."""


@dataclass(eq=False)
class TableWalk:
    """Rows of the table, one site after another: the graph is gone through once, and only what follows a site is run.

    Args:
        base: everything else is as in it.
    """

    evaluator: Evaluator
    gates: Gates
    base: Plan
    rankings: Mapping[str, Ranking]
    refitter: Refitter

    def __post_init__(self) -> None:
        self._walk = Walk(self.evaluator.rows, self.evaluator.wanted)
        self._before = self.gates.gated(self.base)

    @cached_property
    def _whole(self) -> float:
        """The damage of the base alone."""
        base = self.base
        return self.evaluator(self._before) if base.keep or base.drop or base.weights else 0.0

    def row(self, site: Site, levels: Sequence[int], step: int | None = None) -> Row:
        """The divergence at every level; where the curve bends, at more until the bend is found.

        Args:
            site: not before the last one that was asked for, in graph order.
            levels: units kept, ascending.
            step: units that go together; None measures the levels alone.
        """
        evaluator, before = self.evaluator, self._before
        self._walk.to(site.stop, state=before)
        copies = Copies(evaluator.rows, self.gates.structure, site, before, evaluator.wanted)

        def measured(counts: Sequence[int]) -> np.ndarray:
            some = [count for count in counts if count < levels[-1]]
            if not some:  # an earlier stage left a site what it needs, and no more
                return np.full(len(counts), self._whole)
            states = [_state(self.gates, self.base, site, count, self.rankings, self.refitter) for count in some]
            _ = evaluator.rows.outputs  # made once, before threads would each make them

            def run(i: int) -> np.ndarray:
                return copies.distances(i, self._walk.values[i], states, evaluator.distance)

            found = threads.each(evaluator.rows.interpreter, len(self._walk.values), run)
            known = dict(zip(some, np.concatenate(found, axis=1).mean(axis=1).tolist(), strict=True))
            return np.array([known.get(count, self._whole) for count in counts])

        return _row(levels, measured, step, self.rankings[site.id])


def damage_table(
    walk: TableWalk,
    sites: Sequence[Site],
    levels: Mapping[str, Sequence[int]],
    *,
    steps: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, Row]]:
    """(group id, its row) site by site: divergence at every level.

    Where a curve bends, as it does where the last unit that nobody needs is gone, levels are measured between the given
    ones until the bend is found.

    Args:
        sites: in graph order.
        levels: group id -> units kept, ascending.
        steps: group id -> units that go together; sites that are not named are measured at their levels alone.
    """
    for site in sites:
        yield site.id, walk.row(site, levels[site.id], (steps or {}).get(site.id))
        memory.ease()


def _row(
    levels: Sequence[int], measured: Callable[[Sequence[int]], np.ndarray], step: int | None, ranking: Ranking
) -> Row:
    alive = _living(ranking, step) if step is not None else len(ranking.order)
    counts = sorted({*levels, *([alive] if levels[0] < alive < levels[-1] else [])})
    known = dict(zip(counts, measured(counts).tolist(), strict=True))
    steep = SHARP if tells(ranking) else BEND
    while step is not None:
        some = sorted(known)
        damage = _told(known)
        more = bends(some, damage, step, steep) or unended(some, damage, step, alive)
        if not more:
            break
        known |= dict(zip(more, measured(more).tolist(), strict=True))
    return Row(tuple(sorted(known)), np.array(_told(known)))


def _told(known: Mapping[int, float]) -> list[float]:
    """Damages, more than any other where outputs are no number with so few units: a cosine of nothing is 0/0.

    Where no level between nothing and all is a number, or one overflows, no measure of the site is to be had, and they
    stay as they are.

    Args:
        known: units kept -> damage.
    """
    levels = sorted(known)
    damage = np.array([known[k] for k in levels])
    unknown = np.isnan(damage)
    if all(unknown[i] for i, k in enumerate(levels) if 0 < k < levels[-1]) or np.isinf(damage).any():
        return [float(d) for d in damage]
    return [float(d) for d in np.where(unknown, BEYOND * max(1.0, float(np.nanmax(damage))), damage)]


def _living(ranking: Ranking, step: int) -> int:
    """As many units as have a score at all, by steps: a level of its own, where some have none."""
    if not ranking.scores or min(ranking.scores) < 0:
        return len(ranking.order)
    dead = int(np.sum(np.array(ranking.scores) <= DEAD * max(ranking.scores)))
    return -(-(len(ranking.scores) - dead) // step) * step


def unended(levels: Sequence[int], damage: Sequence[float], step: int, alive: int) -> list[int]:
    """The level between the last two, where damage goes on among units that have no score: until its end is passed.

    Such units were silent on the rows that were scored; on those of the table they may speak.

    Args:
        levels, damage, step: as for `bends`.
        alive: as many units as have a score.
    """
    falling = _falling(damage)
    last, full = levels[-2:] if len(levels) > 1 else (levels[0], levels[0])
    between = (last + full) // 2 // step * step
    goes_on = len(levels) > 1 and falling[-2] - falling[-1] > NOTHING * falling[0]
    return [between] if goes_on and alive <= last < between < full else []


def bends(levels: Sequence[int], damage: Sequence[float], step: int, steep: float = BEND) -> list[int]:
    """Levels between the given ones at which a curve is to be measured: where it turns steep.

    Args:
        levels: units kept, ascending; nothing kept stands for itself and is no part of the curve.
        damage: at each.
        step: multiples of which levels may be.
        steep: how many times steeper than the interval above it one must be.
    """
    some = [(k, d) for k, d in zip(levels, _falling(damage), strict=True) if k > 0]
    found = []
    for (a, high), (b, middle), (c, low) in zip(some, some[1:], some[2:], strict=False):
        left, right = (high - middle) / (b - a), (middle - low) / (c - b)
        between = (a + b) // 2 // step * step
        flat = middle - low <= NOTHING * some[0][1]  # nobody needs what goes there, and where that ends is exact
        if a < between < b and left > (BEND if flat else steep) * right and high - middle > NOTHING * some[0][1]:
            found.append(between)
    return found


def _falling(damage: npt.ArrayLike) -> np.ndarray:
    """Damages that never rise with more units kept, and are never less than nothing."""
    return np.asarray(np.minimum.accumulate(np.maximum(np.asarray(damage, dtype=np.float64), 0.0)))


def _state(
    gates: Gates, base: Plan, site: Site, count: int, rankings: Mapping[str, Ranking], refitter: Refitter
) -> Gated:
    keep, drop = kept_by({site.id: count}, rankings, [site])
    weights = refitter(site, keep[site.id]) if site.id in keep else {}
    return gates.gated(
        replace(base, keep={**base.keep, **keep}, drop=(*base.drop, *drop), weights=over(base.weights, weights))
    )


def spread(
    levels: Sequence[int], damage: np.ndarray, step: int, ranking: Ranking | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A table row at every multiple of `step` between the measured levels, never rising with more units kept.

    Between two levels the damage is a straight line, or where the order's scores add up to what is lost, a power of
    that: what a layer errs tells the shape of the curve, and what was measured how high it is.

    Args:
        ranking: whose scores do.

    Returns:
        (counts, damages); nothing kept, if measured, stands for itself.
    """
    counts = np.asarray(levels)
    falling = _falling(damage)
    some = counts > 0
    first, last = int(counts[some][0]), int(counts[-1])
    fine = np.unique(np.concatenate([np.arange(first, last + 1, max(step, 1)), counts[some]]))
    dense = np.interp(fine, counts[some], falling[some])
    if ranking is not None and tells(ranking):
        dense = _shaped(fine, dense, counts[some], falling[some], losses(ranking))
    if not some.all():
        fine, dense = np.concatenate([[0], fine]), np.concatenate([[falling[0]], dense])
    return fine, dense


def tells(ranking: Ranking) -> bool:
    """Whether an order's scores say what is lost with each unit."""
    return bool(ranking.scores) and min(ranking.scores) >= 0 and max(ranking.scores) > 0


def losses(ranking: Ranking) -> np.ndarray:
    """[units + 1]: the sum of scores that is lost with so many units kept."""
    scores = np.array(ranking.scores, dtype=np.float64)[list(ranking.order)]
    return np.append(np.cumsum(scores[::-1])[::-1], 0.0)


def _shaped(fine: np.ndarray, line: np.ndarray, counts: np.ndarray, damage: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Damages at the counts `fine` that follow D = c·lostᵖ between two that were measured, each with its own p.

    The last stretch, to no damage at all, has the power of the one before it, within reason.
    """
    found, power = line.copy(), 1.0
    for a, b, high, low in zip(counts, counts[1:], damage, damage[1:], strict=False):
        inside = (fine > a) & (fine < b)
        before, after = lost[a], lost[b]
        if not high > 0 or not before > after:
            continue
        if low > NOTHING * high and after > 0:
            power = float(np.log(high / low) / np.log(before / after))
            found[inside] = low * (lost[fine[inside]] / after) ** power
        else:
            share = (lost[fine[inside]] - after) / (before - after)
            found[inside] = low + (high - low) * share ** np.clip(power, 0.5, 2.0)
    return found
