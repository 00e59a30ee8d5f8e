"""Allocation where costs do not add up: a Lagrangian over exact prices, then what is left of the budget is filled.

For a price λ of the budget's unit, damage + λ · cost falls with every change of a single module that lowers it,
whatever the costs are made of; λ is found by bisection so that the budget is met from below. Of few modules all
allocations are tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.errors import BudgetError
from onnxprune.search.allocate.choices import Allocation, Module, Prices, damage_of
from onnxprune.search.allocate.fill import fill, widest_first
from onnxprune.search.allocate.knapsack import allocate

EXHAUSTIVE = 2048
"""Allocations that are all tried."""
BISECTIONS, SWEEPS, ROUNDS = 24, 12, 3


def coupled(modules: Sequence[Module], budget: float, prices: Prices) -> dict[str, int]:
    """The level of each module with a small summed damage, at a total price of at most `budget`.

    Raises:
        BudgetError: even the cheapest allocation found costs more; `closest` is what it costs.
    """
    whole = {m.id: max(range(len(m.levels)), key=lambda k, m=m: m.levels[k].kept) for m in modules}  # type: ignore[misc]
    if prices.total(whole) <= budget:
        return whole
    if math.prod(len(m.levels) for m in modules) <= EXHAUSTIVE:
        return _best_of_all(modules, budget, prices)
    least = _descended(modules, prices, whole, math.inf)
    if prices.total(least) > budget:
        raise BudgetError(
            f"the cheapest levels of all {len(modules)} modules cost {prices.total(least):g}, above the budget of "
            f"{budget:g}; raise the budget or allow more kinds of units to be cut",
            closest=prices.total(least),
        )
    found = min(_on_the_way(modules, budget, prices, whole, least), key=lambda a: _worth(modules, prices, a))
    # Exchanged before it is filled: what was filled at once, by the next best rise, is in the way of better ones.
    for _ in range(ROUNDS):
        better = fill(modules, _exchanged(modules, budget, prices, found), budget, prices)
        if _worth(modules, prices, better) >= _worth(modules, prices, found):
            break
        found = better
    return fill(modules, found, budget, prices)


def tabled(modules: Sequence[Module], budget: float, prices: Prices, fixed: float | None) -> dict[str, int]:
    """The least damage by the table: a knapsack where costs add up above `fixed`, by exact prices where they do not."""
    if fixed is None:
        return coupled(modules, budget, prices)
    found = allocate(modules, budget - fixed)
    over = prices.total(found) - budget
    # Sums of milliseconds, which are no whole numbers, may differ in their last digits.
    return found if over <= 0 else allocate(modules, budget - fixed - 2 * over)


def _worth(modules: Sequence[Module], prices: Prices, allocation: Allocation) -> tuple[float, float]:
    """Less damage first; of equal damage, what uses more of the budget."""
    return damage_of(modules, allocation), -prices.total(allocation)


def _best_of_all(modules: Sequence[Module], budget: float, prices: Prices) -> dict[str, int]:
    names = [m.id for m in modules]
    allowed = [[k for k, level in enumerate(m.levels) if math.isfinite(level.damage)] for m in modules]
    every = [dict(zip(names, levels, strict=True)) for levels in itertools.product(*allowed)]
    held = [a for a in every if prices.total(a) <= budget]
    if not held:
        closest = min(prices.total(a) for a in every)
        raise BudgetError(f"the cheapest allocation costs {closest:g}, above the budget of {budget:g}", closest=closest)
    return min(held, key=lambda a: (*_worth(modules, prices, a), *a.values()))


def _on_the_way(
    modules: Sequence[Module], budget: float, prices: Prices, whole: dict[str, int], least: dict[str, int]
) -> list[dict[str, int]]:
    """The allocations within the budget that a bisection of λ comes by."""
    held = [least]
    room = prices.total(whole) - prices.total(least)
    spread = sum(float(np.ptp([x.damage for x in m.levels if math.isfinite(x.damage)])) for m in modules)
    low, high = 1e-9 * max(spread, 1e-300) / room, 1e9 * max(spread, 1e-300) / room
    above = whole
    for _ in range(BISECTIONS):
        price = math.sqrt(low) * math.sqrt(high)
        # From above and from below: a descent ends in what is near its start.
        tried = [_descended(modules, prices, start, price) for start in (above, held[-1])]
        within = [a for a in tried if prices.total(a) <= budget]
        if within:
            held += within
            high = price
        else:
            low, above = price, min(tried, key=prices.total)
    return held


def _descended(modules: Sequence[Module], prices: Prices, start: Mapping[str, int], price: float) -> dict[str, int]:
    """Where no change of one module lowers damage + price · cost; of equal ones the wider."""
    state = dict(start)
    damages = [np.array([level.damage for level in m.levels]) for m in modules]
    widths = [np.array([level.kept for level in m.levels], dtype=np.float64) for m in modules]
    for _ in range(SWEEPS):
        before = dict(state)
        for module, damage, width in zip(modules, damages, widths, strict=True):
            cost = prices.levels(module.id, state)
            value = np.where(np.isfinite(damage), cost if math.isinf(price) else damage + price * cost, np.inf)
            state[module.id] = int(np.argmax(np.where(value <= value.min(), width, -np.inf)))
        if state == before:
            break
    return state


def _exchanged(modules: Sequence[Module], budget: float, prices: Prices, start: Mapping[str, int]) -> dict[str, int]:
    """The best exchanges found: one module goes down some levels, another takes what that sets free."""
    state, damage = dict(start), {m.id: np.array([x.damage for x in m.levels]) for m in modules}
    for giver in modules:
        order = widest_first(giver)
        place = order.index(state[giver.id])
        best, chosen = -1e-12 * max(damage_of(modules, state), 1e-300), None
        for down in {order[min(place + step, len(order) - 1)] for step in (1, 2, 4, 8)} - {state[giver.id]}:
            lost = damage[giver.id][down] - damage[giver.id][state[giver.id]]
            lowered = {**state, giver.id: down}
            if not math.isfinite(lost):
                continue
            for taker in modules:
                if taker.id == giver.id:
                    continue
                change = lost + damage[taker.id] - damage[taker.id][state[taker.id]]
                if change.min() >= best:
                    continue
                fits = prices.levels(taker.id, lowered) <= budget
                change = np.where(fits, change, np.inf)
                level = int(np.argmin(change))
                if change[level] < best:
                    best, chosen = float(change[level]), {**lowered, taker.id: level}
        state = chosen or state
    return state
