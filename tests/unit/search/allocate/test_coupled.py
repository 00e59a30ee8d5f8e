"""Allocation where costs multiply, against brute force."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import BudgetError
from onnxprune.search.allocate.choices import Additive, Allocation, Level, Module, damage_of
from onnxprune.search.allocate.coupled import coupled, tabled

module_ = importlib.import_module("onnxprune.search.allocate.coupled")
seeds = st.integers(0, 2**32 - 1)


class Bilinear:
    """Σ aᵢwᵢ + Σ bᵢⱼwᵢwⱼ of the modules' widths, as the costs of a chain of layers are."""

    def __init__(self, seed: int, modules: int = 4, levels: int = 5) -> None:
        random = np.random.default_rng(seed)
        self.single = random.integers(0, 5, modules).astype(float)
        self.pairs = np.triu(random.integers(0, 4, (modules, modules)), 1).astype(float)
        falls = random.exponential(1.0, (modules, levels - 1)) * random.uniform(0.1, 3.0, (modules, 1))
        self.modules = [
            Module(f"m{i}", tuple(Level(k + 1, float(k + 1), float(fall[k:].sum())) for k in range(levels)))
            for i, fall in enumerate(falls)
        ]
        self.names = [m.id for m in self.modules]

    def total(self, allocation: Allocation) -> float:
        width = np.array([m.levels[allocation[m.id]].kept for m in self.modules], dtype=float)
        return float(self.single @ width + width @ self.pairs @ width)

    def levels(self, module: str, allocation: Allocation) -> np.ndarray:
        count = len(next(m for m in self.modules if m.id == module).levels)
        return np.array([self.total({**allocation, module: k}) for k in range(count)])

    def costs(self) -> tuple[np.ndarray, np.ndarray]:
        """(costs, damages) of all allocations: [levels, levels, …] each."""
        widths = np.stack(np.meshgrid(*[[x.kept for x in m.levels] for m in self.modules], indexing="ij"), -1)
        damages = np.meshgrid(*[[x.damage for x in m.levels] for m in self.modules], indexing="ij")
        return widths @ self.single + ((widths @ self.pairs) * widths).sum(-1), np.sum(damages, axis=0)

    def best(self, budget: float) -> float:
        """The least damage of any allocation within the budget."""
        costs, damages = self.costs()
        return float(damages[costs <= budget].min())

    def budget(self, share: float) -> float:
        """A share of the way from the cheapest allocation to the whole."""
        costs, _ = self.costs()
        return float(costs.min() + share * np.ptp(costs))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.8, 1.0])
def test_of_few_allocations_the_best_is_found(share: float) -> None:
    for seed in range(6):
        problem = Bilinear(seed)
        budget = problem.budget(share)
        chosen = coupled(problem.modules, budget, problem)
        assert problem.total(chosen) <= budget
        assert damage_of(problem.modules, chosen) == pytest.approx(problem.best(budget))


def test_of_many_it_is_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """By price and exchanges alone: a few percent from brute force on average, the best more often than not."""
    monkeypatch.setattr(module_, "EXHAUSTIVE", 0)
    lost = []
    for seed in range(40):
        problem = Bilinear(seed, modules=5, levels=6)
        budget = problem.budget((0.1, 0.3, 0.5, 0.7, 0.9)[seed % 5])
        chosen = coupled(problem.modules, budget, problem)
        assert problem.total(chosen) <= budget
        lost.append(damage_of(problem.modules, chosen) / problem.best(budget) - 1)
    assert min(lost) >= -1e-12
    assert np.mean(lost) < 0.01
    assert np.median(lost) < 1e-9


@given(seeds, st.floats(0, 1), st.sampled_from([0, 2048]))
def test_the_budget_holds_and_is_used(seed: int, share: float, exhaustive: int) -> None:
    """Nothing is cut that could stay: no module's wider level fits beside the others."""
    problem = Bilinear(seed, modules=3, levels=4)
    budget = problem.budget(share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_, "EXHAUSTIVE", exhaustive)
        chosen = coupled(problem.modules, budget, problem)
        assert chosen == coupled(problem.modules, budget, problem)
    assert problem.total(chosen) <= budget
    for name, level in chosen.items():
        assert level == 3 or problem.total({**chosen, name: level + 1}) > budget


@pytest.mark.parametrize("exhaustive", [0, 2048])
def test_a_budget_that_nothing_meets_says_what_would(exhaustive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_, "EXHAUSTIVE", exhaustive)
    for seed in range(5):
        problem = Bilinear(seed)
        cheapest = problem.budget(0.0)
        with pytest.raises(BudgetError) as caught:
            coupled(problem.modules, cheapest - 0.5, problem)
        assert caught.value.closest == cheapest
        assert problem.total(coupled(problem.modules, cheapest, problem)) == cheapest


@pytest.mark.parametrize("exhaustive", [0, 2048])
def test_of_equal_damages_the_wider_stays_and_forbidden_levels_are_not_taken(
    exhaustive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_, "EXHAUSTIVE", exhaustive)
    problem = Bilinear(0, modules=3)
    flat = [Module(m.id, tuple(Level(x.kept, x.cost, 0.0) for x in m.levels)) for m in problem.modules]
    problem.modules = flat
    chosen = coupled(flat, problem.budget(0.6), problem)
    assert all(problem.total({**chosen, n: k + 1}) > problem.budget(0.6) for n, k in chosen.items() if k < 4)
    barred = [Module(m.id, (*m.levels[:2], Level(3, 3.0, math.inf), *m.levels[3:])) for m in flat]
    problem.modules = barred
    for share in (0.1, 0.3, 0.5, 0.7):
        assert 2 not in coupled(barred, problem.budget(share), problem).values()


def test_what_is_forbidden_is_no_way_to_meet_a_budget() -> None:
    modules = [Module("a", (Level(1, 1.0, math.inf), Level(2, 2.0, 1.0), Level(3, 3.0, 0.0)))]
    problem = Bilinear(0, modules=1, levels=3)
    problem.modules, problem.single = modules, np.ones(1)
    with pytest.raises(BudgetError) as caught:
        coupled(modules, 1.5, problem)
    assert caught.value.closest == 2.0
    assert coupled(modules, 2.5, problem) == {"a": 1}


def test_everything_stays_where_the_budget_holds_it() -> None:
    problem = Bilinear(1)
    assert coupled(problem.modules, problem.budget(1.0), problem) == dict.fromkeys(problem.names, 4)


def test_a_sum_that_ends_in_other_digits_is_still_within_the_budget() -> None:
    """Milliseconds of the whole and of its parts differ in their last digits; the whole is what a budget is about."""
    modules = [Module(k, tuple(Level(n, float(n), float((4 - n) ** 2)) for n in range(5))) for k in "ab"]

    class Whole(Additive):
        def total(self, allocation: Allocation) -> float:
            return 3.0 + super().total(allocation) + 1e-9

    prices = Whole(modules)
    found = tabled(modules, 3.0 + 5.0, prices, fixed=3.0)
    assert prices.total(found) <= 8.0
    assert sum(found.values()) == 4  # the next that fits, and no further
