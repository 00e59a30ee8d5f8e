"""The knapsack against brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import BudgetError
from onnxprune.search.allocate import Level, Module, allocate, cost_of, damage_of, knapsack

Tables = list[list[tuple[float, float]]]

damages = st.one_of(st.floats(-10, 10), st.just(math.inf))
shares = st.floats(0, 1)


def tables(costs: st.SearchStrategy[float]) -> st.SearchStrategy[Tables]:
    """Up to 5 modules of up to 5 levels in any order, neither convex nor monotone, one level always allowed."""
    free = st.tuples(costs, st.floats(-10, 10))
    level = st.tuples(costs, damages)
    module = st.tuples(free, st.lists(level, max_size=4)).map(lambda parts: [parts[0], *parts[1]])
    return st.lists(module, min_size=1, max_size=5)


def brute_force(problem: Tables, budget: float) -> float:
    """The least damage of any choice within the budget; infinite if there is none."""
    choices = product(*problem)
    return min(
        (math.fsum(d for _, d in choice) for choice in choices if math.fsum(c for c, _ in choice) <= budget),
        default=math.inf,
    )


def solve(problem: Tables, budget: float, **options: int) -> tuple[float, float]:
    """(cost, damage) of the chosen levels."""
    chosen = knapsack([[c for c, _ in m] for m in problem], [[d for _, d in m] for m in problem], budget, **options)
    picked = [module[level] for module, level in zip(problem, chosen, strict=True)]
    return math.fsum(c for c, _ in picked), math.fsum(d for _, d in picked)


def budget_between(problem: Tables, share: float) -> tuple[float, float]:
    """(budget, cheapest allowed cost) with the budget a share of the way to the dearest levels."""
    floor = math.fsum(min(c for c, d in m if d < math.inf) for m in problem)
    top = math.fsum(max(c for c, _ in m) for m in problem)
    return floor + share * max(top - floor, 0.0), floor


@given(tables(st.integers(0, 50).map(lambda k: float(49152 * k))), shares)
def test_whole_costs_are_solved_exactly(problem: Tables, share: float) -> None:
    budget, _ = budget_between(problem, share)
    cost, damage = solve(problem, budget)
    assert cost <= budget
    assert damage == pytest.approx(brute_force(problem, budget), abs=1e-9)


@given(tables(st.floats(0, 1e3)), shares, st.sampled_from([8, 100, 4096]))
def test_real_costs_stay_within_budget_and_near_the_best(problem: Tables, share: float, resolution: int) -> None:
    """Never above the budget in true cost; never worse than the best for one grid step less per module."""
    budget, floor = budget_between(problem, share)
    cost, damage = solve(problem, max(budget, floor), resolution=resolution)
    budget = max(budget, floor)
    assert cost <= budget
    assert damage >= brute_force(problem, budget) - 1e-9
    lost = len(problem) * (budget - floor) / resolution
    assert damage <= brute_force(problem, budget - lost * (1 + 1e-6) - 1e-9) + 1e-9


@given(tables(st.integers(0, 30).map(float)), shares, shares)
def test_a_larger_budget_never_does_more_damage(problem: Tables, a: float, b: float) -> None:
    small, large = sorted((budget_between(problem, a)[0], budget_between(problem, b)[0]))
    assert solve(problem, large)[1] <= solve(problem, small)[1] + 1e-9


@given(tables(st.floats(0, 100)), shares)
def test_same_question_same_answer(problem: Tables, share: float) -> None:
    budget, floor = budget_between(problem, share)
    assert solve(problem, max(budget, floor)) == solve(problem, max(budget, floor))


@given(tables(st.floats(0, 100)))
def test_a_budget_below_the_cheapest_says_what_the_cheapest_is(problem: Tables) -> None:
    _, floor = budget_between(problem, 0.0)
    with pytest.raises(BudgetError) as caught:
        solve(problem, floor - 1e-3)
    assert caught.value.closest == pytest.approx(floor)
    assert solve(problem, floor)[0] == floor


def test_rounding_is_not_lost_over_many_modules() -> None:
    """200 modules × 100 levels with costs off the grid: the budget is used to within a hundredth of a percent."""
    random = np.random.default_rng(0)
    costs = [np.sort(random.random(100)) for _ in range(200)]
    harm = [np.sort(random.random(100) ** 3)[::-1] for _ in range(200)]
    budget = 0.5 * sum(float(c[-1]) for c in costs)
    chosen = knapsack(costs, harm, budget)
    used = math.fsum(float(c[i]) for c, i in zip(costs, chosen, strict=True))
    assert 0.9999 * budget < used <= budget


def test_a_module_may_be_dropped_and_levels_come_in_any_order() -> None:
    attention = Module("attention", (Level(0, 0.0, 0.1), Level(12, 12.0, 0.0), Level(6, 6.0, 0.3)))
    ffn = Module("ffn", (Level(64, 20.0, 0.0), Level(32, 10.0, 0.4)))
    chosen = allocate([attention, ffn], 20.0)
    assert chosen == {"attention": 0, "ffn": 0}
    assert cost_of([attention, ffn], chosen) == 20.0 and damage_of([attention, ffn], chosen) == pytest.approx(0.1)
    assert allocate([attention, ffn], 32.0) == {"attention": 1, "ffn": 0}
    assert allocate([], 1.0) == {}


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        knapsack([[1.0]], [[math.nan]], 2.0)
    with pytest.raises(ValueError, match="no level that is allowed"):
        knapsack([[1.0]], [[math.inf]], 2.0)
    with pytest.raises(ValueError, match="shape"):
        knapsack([[1.0, 2.0]], [[1.0]], 2.0)
    with pytest.raises(ValueError, match="no level"):
        Module("empty", ())
    with pytest.raises(BudgetError):
        knapsack([[1.0]], [[1.0]], math.nan)


def test_what_rounding_leaves_is_spent() -> None:
    """Two levels in one cell of the grid, of which the better is too dear: the other one, not the cheapest."""
    assert knapsack([[0.0, 1.0, 1.4]], [[3.0, 2.0, 1.0]], 1.2, resolution=1) == [1]


def test_of_levels_that_damage_alike_the_widest_that_fits_is_taken() -> None:
    module = Module("m", (Level(1, 1.0, 0.5), Level(2, 2.0, 0.5), Level(3, 3.0, 0.5), Level(4, 4.0, 0.0)))
    assert knapsack([[x.cost for x in module.levels]], [[x.damage for x in module.levels]], 3.5) == [0]
    assert allocate([module], 3.5) == {"m": 2}


def test_a_choice_that_takes_all_of_the_budget_is_one() -> None:
    assert knapsack([[0.0, 3.0], [0.0, 2.0]], [[5.0, 0.0], [4.0, 0.0]], 3.0) == [1, 0]
