"""Level swaps: the last word of a search belongs to the measured divergence of the whole plan.

Damages of single modules do not add up. A few dozen exchanges, in which one module goes down and another up, are
measured as whole plans. The damage table says which to try first, and learns from what is measured.

The best of several measurements on a hundred rows is mostly the luckiest: chosen by its mean alone, it is worse on
other rows than the plan it replaces. So a move must be better by more than the rows' own differences leave to chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import BudgetError
from onnxprune.refit.solvers.chance import surely_lower
from onnxprune.search.allocate.belief import Belief
from onnxprune.search.allocate.choices import Additive, Allocation, Evaluate, Module, Prices, damage_of

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Swap:
    """A move that was measured.

    Attributes:
        changes: (module id, level before, level after).
        predicted, measured: change of the divergence by the damage table, and as evaluated.
        accepted: whether it became part of the plan: it is lower by more than chance.
    """

    changes: tuple[tuple[str, int, int], ...]
    predicted: float
    measured: float
    accepted: bool


@dataclass(frozen=True)
class Swapped:
    """The plan after swaps.

    Attributes:
        levels: module id -> level index; within the budget.
        value: `evaluate(levels)`; never above `start`.
        start: `evaluate` of the plan it began with.
        trials: everything that was measured, in order.
    """

    levels: dict[str, int]
    value: float
    start: float
    trials: tuple[Swap, ...]


def swaps(
    start: Allocation,
    modules: Sequence[Module],
    evaluate: Evaluate,
    budget: float,
    *,
    evaluations: int = 40,
    reach: int = 2,
    seed: int = 0,
    prices: Prices | None = None,
) -> Swapped:
    """Improves an allocation by measured moves, each accepted only if `evaluate` surely falls.

    A move takes one module down and another up, each by at most `reach` levels of cost, or only one of them. The same
    arguments give the same result.

    Args:
        start: level index of every module.
        modules: with the damage table.
        evaluate: divergence of a whole allocation, row by row (or as one number, which is taken to be exact).
        budget: in the unit of the levels' costs.
        evaluations: how often `evaluate` may be called, the start included.
        prices: where costs do not add up; the budget is in their unit.

    Raises:
        BudgetError: `start` is above the budget.
    """
    levels = {module.id: int(start[module.id]) for module in modules}
    prices = prices or Additive(modules)
    cost = prices.total(levels)
    if not cost <= budget:
        raise BudgetError(f"the plan to improve costs {cost:g}, above the budget of {budget:g}", closest=cost)
    random = np.random.default_rng(seed)
    rows = np.atleast_1d(np.asarray(evaluate(dict(levels)), dtype=np.float64))
    value = first = float(rows.mean())
    moves = _Moves(modules, budget, reach, prices)
    belief = Belief(moves.damage)
    index = {module.id: i for i, module in enumerate(modules)}
    seen = {tuple(levels.values())}
    trials: list[Swap] = []
    while len(trials) + 1 < evaluations:
        table = belief.sample(random) if trials else belief.mean()
        trial = next((t for t in moves.likeliest_first(levels, table) if tuple(t.values()) not in seen), None)
        if trial is None:
            break
        seen.add(tuple(trial.values()))
        found = np.atleast_1d(np.asarray(evaluate(dict(trial)), dtype=np.float64))
        measured = float(found.mean())
        changes = tuple((key, levels[key], trial[key]) for key in levels if levels[key] != trial[key])
        if math.isfinite(measured - value):
            belief.observe([(index[key], before, after) for key, before, after in changes], measured - value)
        predicted = damage_of(modules, trial) - damage_of(modules, levels)
        accepted = surely_lower(found, rows)
        trials.append(Swap(changes, predicted, measured - value, accepted))
        if accepted:
            levels, rows, value = trial, found, measured
    return Swapped(levels, value, first, tuple(trials))


class _Moves:
    """The moves from an allocation that the budget holds."""

    def __init__(self, modules: Sequence[Module], budget: float, reach: int, prices: Prices) -> None:
        self.modules = modules
        self.budget = budget
        self.reach = reach
        self.prices = prices
        cost = [np.array([level.cost for level in module.levels]) for module in modules]
        self.damage = [np.array([level.damage for level in module.levels]) for module in modules]
        self.order = [np.lexsort(pair) for pair in zip(self.damage, cost, strict=True)]

    def likeliest_first(self, levels: dict[str, int], table: Sequence[Array]) -> Iterator[dict[str, int]]:
        """Allocations one move away, by the change of damage that `table` predicts."""
        at = [levels[module.id] for module in self.modules]
        module, level = self._singles(at)
        if not len(module):
            return
        now = self.prices.total(levels)
        priced = [self.prices.levels(m.id, levels) - now for m in self.modules]
        cost = np.array([priced[i][k] for i, k in zip(module, level, strict=True)])
        change = np.array([table[i][k] - table[i][at[i]] for i, k in zip(module, level, strict=True)])
        room = self.budget - now
        # To go down without need is worth a measurement only where it is thought to help.
        alone = np.flatnonzero((cost <= room) & ((cost > 0) | (change < 0)))
        down, up = np.flatnonzero(cost < 0), np.flatnonzero(cost > 0)
        a, b = np.nonzero((cost[down][:, None] + cost[up] <= room) & (module[down][:, None] != module[up]))
        one, two = np.concatenate([alone, down[a]]), np.concatenate([alone, up[b]])
        total = np.concatenate([change[alone], change[down[a]] + change[up[b]]])
        for k in np.argsort(total, kind="stable").tolist():
            trial = dict(levels)
            for single in (one[k], two[k]):
                trial[self.modules[module[single]].id] = int(level[single])
            # What the whole costs decides, not the sum of two differences.
            if self.prices.total(trial) <= self.budget:
                yield trial

    def _singles(self, at: Sequence[int]) -> tuple[Ints, Ints]:
        """Every change of one module within reach: (module index, level), in parallel."""
        module, level = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for i, now in enumerate(at):
            place = int(np.flatnonzero(self.order[i] == now)[0])
            near = self.order[i][max(0, place - self.reach) : place + self.reach + 1]
            near = near[(near != now) & np.isfinite(self.damage[i][near])]
            module.append(np.full(len(near), i))
            level.append(near)
        return np.concatenate(module), np.concatenate(level)
