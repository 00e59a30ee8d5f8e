"""Allocation over a damage table: a multiple-choice knapsack by dynamic programming over a grid of costs.

One level per module, least total damage, total cost within the budget. Tables need be neither convex nor monotone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.errors import BudgetError
from onnxprune.search.allocate.choices import Additive, Module
from onnxprune.search.allocate.fill import fill

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESOLUTION = 16384
EXACT_WORK = 1e8
"""Additions (levels × grid) that are spent to be exact where all costs are whole numbers."""

TRACED = 64
"""Choices followed back at once."""


def allocate(modules: Sequence[Module], budget: float, *, resolution: int = RESOLUTION) -> dict[str, int]:
    """`knapsack` on modules: module id -> level index. Of levels that damage alike, the widest that fits is taken."""
    chosen = knapsack(
        [np.array([level.cost for level in module.levels]) for module in modules],
        [np.array([level.damage for level in module.levels]) for module in modules],
        budget,
        resolution=resolution,
    )
    found = {module.id: level for module, level in zip(modules, chosen, strict=True)}
    return fill(modules, found, budget, Additive(modules))


def knapsack(
    costs: Sequence[npt.ArrayLike], damages: Sequence[npt.ArrayLike], budget: float, *, resolution: int = RESOLUTION
) -> list[int]:
    """The level of each module with the least summed damage whose summed cost is at most `budget`.

    Exact where costs are whole numbers with a common divisor that makes the grid small enough (MACs of rounded widths
    are). Otherwise costs are rounded to a grid of `resolution` steps of the budget's room, and no worse than the best
    choice for a budget smaller by one step per module; the true cost never exceeds the budget either way.

    Args:
        costs, damages: per module, [levels] each; an infinite damage forbids a level.
        budget: in the unit of the costs.

    Raises:
        BudgetError: even the cheapest levels cost more; `closest` is what they cost.
    """
    tables = [_Table(c, d) for c, d in zip(costs, damages, strict=True)]
    floor = math.fsum(table.least for table in tables)
    room = budget - floor
    if not room >= 0:
        raise BudgetError(
            f"the cheapest levels of all {len(tables)} modules cost {floor:g}, above the budget of {budget:g}; "
            "raise the budget or allow more kinds of units to be cut",
            closest=floor,
        )
    if not tables:
        return []
    unit = _common_unit(tables)
    exact = unit is not None and (room // unit + 1) * sum(len(t.extra) for t in tables) <= EXACT_WORK
    widest = math.fsum(float(t.extra.max()) for t in tables)
    room = min(room, widest)
    if unit is not None and exact:
        step = float(unit)
        cells = int(room // step)
    else:
        step = max(room / resolution, widest * 2.0**-40, np.finfo(np.float64).tiny)
        # Rounding to nearest may put a choice that fits half a step per module too high.
        cells = round(room / step) + len(tables) // 2 + 1
    grid = [np.rint(np.minimum(table.extra / step, cells + 1.0)).astype(np.int64) for table in tables]
    chosen = _solve(tables, grid, cells, budget)
    return [int(table.index[level]) for table, level in zip(tables, _improve(tables, chosen, budget), strict=True)]


class _Table:
    """A module's levels worth considering: cheapest first, each better than all cheaper ones."""

    def __init__(self, costs: npt.ArrayLike, damages: npt.ArrayLike) -> None:
        cost, damage = np.asarray(costs, dtype=np.float64), np.asarray(damages, dtype=np.float64)
        if cost.ndim != 1 or cost.shape != damage.shape:
            raise ValueError(f"costs of shape {cost.shape} for damages of shape {damage.shape}")
        if np.isnan(damage).any() or not np.isfinite(cost).all():
            raise ValueError("a cost is not finite or a damage is not a number")
        order = np.lexsort((damage, cost))
        order = order[np.isfinite(damage[order])]
        if not len(order):
            raise ValueError("a module has no level that is allowed")
        before = np.concatenate([[np.inf], np.minimum.accumulate(damage[order])[:-1]])
        self.index = order[damage[order] < before]
        self.cost, self.damage = cost[self.index], damage[self.index]
        self.least = float(self.cost[0])
        self.extra = self.cost - self.least


def _common_unit(tables: Sequence[_Table]) -> int | None:
    """The greatest common divisor of all costs above the cheapest, if they are whole numbers."""
    extra = np.concatenate([table.extra for table in tables])
    if extra.max() >= 2**53 or (extra != np.floor(extra)).any():
        return None
    return max(1, int(np.gcd.reduce(extra.astype(np.int64))))


def _solve(tables: Sequence[_Table], grid: Sequence[Ints], cells: int, budget: float) -> list[int]:
    """The best choice over grid costs 0..cells whose true cost is within the budget."""
    best = np.zeros(cells + 1)
    history = []
    room = np.empty_like(best)
    for table, steps in zip(tables, grid, strict=True):
        history.append(best)
        after = np.full(cells + 1, np.inf)
        for step, damage in zip(steps.tolist(), table.damage.tolist(), strict=True):
            if step <= cells:
                tail = cells + 1 - step
                np.add(best[:tail], damage, out=room[:tail])
                np.minimum(after[step:], room[:tail], out=after[step:])
        best = after
    # best[c] is the least damage at grid cost c or below; equal damages are the same choice, so each is tried once.
    values, first = np.unique(best, return_index=True)
    first = first[np.isfinite(values)]
    for begin in range(0, len(first), TRACED):
        chosen = _trace(tables, grid, history, first[begin : begin + TRACED])
        for choice in chosen.tolist():
            if _cost(tables, choice) <= budget:
                return list(choice)
    return [0] * len(tables)


def _trace(tables: Sequence[_Table], grid: Sequence[Ints], history: Sequence[Array], cells: Ints) -> Ints:
    """The choices [k, modules] behind the grid costs `cells` [k]."""
    chosen = np.zeros((len(cells), len(tables)), dtype=np.int64)
    for i in range(len(tables) - 1, -1, -1):
        before = cells[:, None] - grid[i]
        value = np.where(before >= 0, history[i][np.maximum(before, 0)] + tables[i].damage, np.inf)
        chosen[:, i] = np.argmin(value, axis=1)
        cells = np.take_along_axis(before, chosen[:, i : i + 1], axis=1)[:, 0]
    return chosen


def _improve(tables: Sequence[_Table], chosen: list[int], budget: float) -> list[int]:
    """Spends what rounding left of the budget: the largest single fall in damage that fits, again and again."""
    chosen = list(chosen)
    while True:
        left = budget - _cost(tables, chosen)
        best = (0.0, -1, -1)
        for i, table in enumerate(tables):
            fits = int(np.searchsorted(table.cost, table.cost[chosen[i]] + left, side="right")) - 1
            best = min(best, (float(table.damage[fits] - table.damage[chosen[i]]), i, fits))
        trial = [best[2] if i == best[1] else level for i, level in enumerate(chosen)]
        if best[1] < 0 or _cost(tables, trial) > budget:
            return chosen
        chosen = trial


def _cost(tables: Sequence[_Table], chosen: Sequence[int]) -> float:
    return math.fsum(float(table.cost[level]) for table, level in zip(tables, chosen, strict=True))
