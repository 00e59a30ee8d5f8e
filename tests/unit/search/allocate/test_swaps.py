"""Level swaps: within the budget, never worse, repeatable, and better than the table alone where damages interact."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator

from onnxprune.errors import BudgetError
from onnxprune.search.allocate import Allocation, Level, Module, allocate, cost_of, damage_of, swaps
from onnxprune.search.allocate.choices import Additive, alike, merged
from onnxprune.search.allocate.swaps import _Moves

seeds = st.integers(0, 2**32 - 1)


class Problem:
    """Modules whose damages compound: neighbours both cut hard harm each other."""

    def __init__(self, seed: int, modules: int, levels: int, interaction: float = 1.0) -> None:
        random = np.random.default_rng(seed)
        shares = np.linspace(1.0, 0.0, levels)
        weight = random.uniform(0.2, 2.0, modules)
        self.price = random.integers(1, 4, modules)
        self.pull = interaction * random.uniform(-1.0, 1.0, (modules, modules))
        self.weight, self.shares = weight, shares
        self.modules = [
            Module(
                f"m{i}",
                tuple(
                    Level(k, float(self.price[i]) * share * 10, float(weight[i] * (1 - share) ** 2))
                    for k, share in zip(range(levels, 0, -1), shares.tolist(), strict=True)
                ),
            )
            for i in range(modules)
        ]
        self.calls = 0

    def evaluate(self, allocation: Allocation) -> float:
        self.calls += 1
        gone = np.array([1.0 - self.shares[allocation[m.id]] for m in self.modules])
        return float(self.weight @ gone**2 + 0.5 * abs(gone @ self.pull @ gone))

    def budget(self, share: float) -> float:
        return share * sum(m.levels[0].cost for m in self.modules)


@given(seeds, st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 1.0), st.integers(1, 30), st.integers(1, 3))
def test_swaps_stay_within_budget_and_never_lose(
    seed: int, modules: int, levels: int, share: float, evaluations: int, reach: int
) -> None:
    if levels == 1:
        share = 1.0
    problem = Problem(seed, modules, levels)
    budget = problem.budget(share)
    start = allocate(problem.modules, budget)
    found = swaps(start, problem.modules, problem.evaluate, budget, evaluations=evaluations, reach=reach, seed=seed)
    assert problem.calls <= evaluations
    assert cost_of(problem.modules, found.levels) <= budget
    assert found.start == problem.evaluate(start)
    assert found.value == problem.evaluate(found.levels) <= found.start
    again = swaps(start, problem.modules, problem.evaluate, budget, evaluations=evaluations, reach=reach, seed=seed)
    assert again == found


@given(seeds)
def test_the_trials_retell_the_way(seed: int) -> None:
    """Replaying the accepted moves from the start gives the result, each one an improvement, none tried twice."""
    problem = Problem(seed, 5, 5)
    budget = problem.budget(0.5)
    start = allocate(problem.modules, budget)
    found = swaps(start, problem.modules, problem.evaluate, budget)
    levels, value, seen = dict(start), found.start, {tuple(start.values())}
    for trial in found.trials:
        after = dict(levels)
        for key, old, new in trial.changes:
            assert levels[key] == old != new
            after[key] = new
        assert 1 <= len(trial.changes) <= 2
        assert tuple(after.values()) not in seen
        seen.add(tuple(after.values()))
        assert trial.measured == pytest.approx(problem.evaluate(after) - value)
        before, now = (damage_of(problem.modules, a) for a in (levels, after))
        assert trial.predicted == pytest.approx(now - before)
        assert trial.accepted == (trial.measured < 0)
        if trial.accepted:
            levels, value = after, value + trial.measured
    assert levels == found.levels and value == pytest.approx(found.value)


def test_interacting_damages_are_improved_on() -> None:
    """Over fixed problems: what swaps close of the gap between the table's choice and the true optimum."""
    closed = []
    for seed in range(12):
        problem = Problem(seed, 5, 4, interaction=2.0)
        budget = problem.budget(0.5)
        start = allocate(problem.modules, budget)
        found = swaps(start, problem.modules, problem.evaluate, budget, evaluations=40)
        keys = [m.id for m in problem.modules]
        every = (dict(zip(keys, choice, strict=True)) for choice in product(range(4), repeat=5))
        best = min(problem.evaluate(a) for a in every if cost_of(problem.modules, a) <= budget)
        assert found.value >= best - 1e-12
        if found.start > best + 1e-9:
            closed.append((found.start - found.value) / (found.start - best))
    assert len(closed) >= 6, "the table's choice was the best already: no test"
    assert float(np.mean(closed)) > 0.8, closed


def test_the_tables_favourite_is_tried_first() -> None:
    """With additive damages and a bad start, the first move measured is the best one there is."""
    problem = Problem(3, 6, 5, interaction=0.0)
    budget = problem.budget(0.6)
    start = {m.id: len(m.levels) - 1 for m in problem.modules}
    found = swaps(start, problem.modules, problem.evaluate, budget, evaluations=2, reach=1)
    ups = [m.levels[4].damage - m.levels[3].damage for m in problem.modules]
    assert found.trials[0].accepted
    assert -found.trials[0].measured == pytest.approx(max(ups))


@given(seeds)
def test_moves_come_by_what_the_table_says_they_change(seed: int) -> None:
    """Pairs by the sum of both: what one gives back counts against what the other takes."""
    problem = Problem(seed, 5, 6)
    budget = problem.budget(0.5)
    start = allocate(problem.modules, budget)
    table = [np.array([level.damage for level in module.levels]) for module in problem.modules]
    moves = list(_Moves(problem.modules, budget, 2, Additive(problem.modules)).likeliest_first(start, table))
    changes = [damage_of(problem.modules, move) - damage_of(problem.modules, start) for move in moves]
    assert any(sum(move[k] != start[k] for k in start) == 2 for move in moves)
    assert np.diff(changes).min() >= -1e-9


def test_nothing_is_cut_further_without_need() -> None:
    """At the best that the budget holds no move is worth a measurement: what only goes down, the table says, harms."""
    problem = Problem(3, 4, 5, interaction=0.0)
    start = {m.id: 0 for m in problem.modules}
    found = swaps(start, problem.modules, problem.evaluate, problem.budget(1.0), evaluations=8)
    assert found.trials == ()
    assert problem.calls == 1


def test_a_rise_that_takes_all_that_is_left_is_tried() -> None:
    module = Module("m", (Level(2, 5.0, 0.0), Level(1, 0.0, 1.0)))
    assert swaps({"m": 1}, [module], lambda a: float(a["m"]), 5.0, evaluations=4).levels == {"m": 0}


def test_what_is_uncertain_gets_tried() -> None:
    """Behind the first move, which is the table's own, others ask for others: they draw from what may be true."""
    ways = set()
    for seed in range(6):
        problem = Problem(5, 6, 6)
        budget = problem.budget(0.5)
        start = allocate(problem.modules, budget)
        found = swaps(start, problem.modules, problem.evaluate, budget, evaluations=6, seed=seed)
        ways.add(tuple(trial.changes for trial in found.trials))
    assert len({way[0] for way in ways}) == 1
    assert len(ways) > 1


def test_luck_is_no_reason_to_move() -> None:
    """Rows that differ by chance, and a start that is the best: a mean of them moves away from it, rows seldom do."""
    moved = {"rows": 0, "mean": 0}
    for seed in range(12):
        problem = Problem(seed, 6, 6, interaction=0.0)
        budget = problem.budget(0.5)
        start = allocate(problem.modules, budget)
        random = np.random.default_rng(seed)

        def noisy(allocation: Allocation, problem: Problem = problem, random: Generator = random) -> np.ndarray:
            return problem.evaluate(allocation) + 6.0 * random.standard_normal(60)

        moved["rows"] += swaps(start, problem.modules, noisy, budget, evaluations=8).levels != start
        moved["mean"] += swaps(start, problem.modules, lambda a: noisy(a).mean(), budget, evaluations=8).levels != start
    assert moved["rows"] <= 3
    assert moved["mean"] >= 9


def test_what_every_row_says_is_done() -> None:
    """A bad start, rows of very different divergence, and none of them noisy: the moves are made all the same."""
    problem = Problem(3, 6, 5, interaction=0.0)
    budget = problem.budget(0.6)
    start = {m.id: len(m.levels) - 1 for m in problem.modules}
    rows = np.random.default_rng(0).exponential(1.0, 50)
    found = swaps(start, problem.modules, lambda a: problem.evaluate(a) * rows, budget)
    assert found.value < 0.5 * found.start


def test_forbidden_levels_and_nan_are_never_taken() -> None:
    modules = [Module(k, (Level(2, 2.0, 0.0), Level(1, 1.0, math.inf), Level(0, 0.0, 0.5))) for k in "ab"]
    asked: list[Allocation] = []

    def evaluate(allocation: Allocation) -> float:
        asked.append(allocation)
        return math.nan if len(asked) > 1 else 1.0

    found = swaps({"a": 0, "b": 2}, modules, evaluate, 2.0)
    assert found.levels == {"a": 0, "b": 2} and found.value == 1.0
    assert len(asked) > 1 and all(1 not in a.values() for a in asked)


def test_a_start_above_the_budget_is_refused() -> None:
    problem = Problem(0, 3, 3)
    with pytest.raises(BudgetError):
        swaps({m.id: 0 for m in problem.modules}, problem.modules, problem.evaluate, problem.budget(0.9))


def test_modules_alike_are_cut_alike_even_where_some_are_gone() -> None:
    levels = tuple(Level(kept, float(kept), 0.0) for kept in range(3))
    modules = [Module("b", levels), Module("c", levels[:2]), Module("d", levels)]
    kinds = {"a": "heads", "b": "heads", "c": "heads", "d": "heads"}
    shared = alike(modules, kinds)
    assert [[m.id for m in members] for members in shared.values()] == [["b", "d"], ["c"]]
    assert merged("bd", shared["heads:3"]).levels[2].cost == 4
