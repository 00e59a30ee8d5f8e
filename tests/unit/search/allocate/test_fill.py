"""Filling: what a plan leaves of its budget is spent, the budget holds, and nothing gets worse."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.search.allocate.choices import Additive, Allocation, Level, Module, damage_of
from onnxprune.search.allocate.fill import fill, widest_first


def module(name: str, damages: list[float], price: float = 1.0) -> Module:
    """Levels of 0, 1, 2 … units at `price` each."""
    return Module(name, tuple(Level(k, price * k, damage) for k, damage in enumerate(damages)))


@st.composite
def started(draw: st.DrawFn) -> tuple[list[Module], dict[str, int], float]:
    """Modules of any costs and damages, a start, and a budget that holds it."""
    numbers = st.integers(0, 6).map(float)
    level = st.tuples(st.integers(0, 9), numbers, st.one_of(numbers, st.just(math.inf)))
    modules = [
        Module(f"m{i}", tuple(Level(*x) for x in draw(st.lists(level, min_size=1, max_size=5))))
        for i in range(draw(st.integers(1, 4)))
    ]
    start = {m.id: draw(st.integers(0, len(m.levels) - 1)) for m in modules}
    return modules, start, Additive(modules).total(start) + draw(st.integers(0, 12))


@given(started())
def test_no_single_rise_is_left(problem: tuple[list[Module], dict[str, int], float]) -> None:
    """Within the budget, no module worse than before, and no level that fits would be better or as good and wider."""
    modules, start, budget = problem
    prices = Additive(modules)
    filled = fill(modules, start, budget, prices)
    now = prices.total(filled)
    assert now <= budget
    for m in modules:
        at, before = m.levels[filled[m.id]], m.levels[start[m.id]]
        assert (at.damage, -at.kept) <= (before.damage, -before.kept)
        for k, level in enumerate(m.levels):
            if (level.damage, -level.kept) < (at.damage, -at.kept):
                assert not now <= prices.total({**filled, m.id: k}) <= budget


def test_the_rise_that_gains_most_for_its_cost_comes_first() -> None:
    dear, cheap = module("dear", [9.0, 3.0], price=4.0), module("cheap", [5.0, 0.0], price=1.0)
    start = {"dear": 0, "cheap": 0}
    assert fill([dear, cheap], start, 4.0, Additive([dear, cheap])) == {"dear": 0, "cheap": 1}
    assert fill([dear, cheap], start, 5.0, Additive([dear, cheap])) == {"dear": 1, "cheap": 1}


def test_what_gains_nothing_comes_last_and_comes_all_the_same() -> None:
    """Units of no damage are kept where they fit; those that lower it are not kept waiting for them."""
    flat, steep = module("flat", [0.0, 0.0, 0.0]), module("steep", [2.0, 1.0, 0.0])
    start = {"flat": 0, "steep": 0}
    assert fill([flat, steep], start, 2.0, Additive([flat, steep])) == {"flat": 0, "steep": 2}
    assert fill([flat, steep], start, 3.0, Additive([flat, steep])) == {"flat": 1, "steep": 2}
    assert fill([flat, steep], start, 9.0, Additive([flat, steep])) == {"flat": 2, "steep": 2}


def test_the_whole_cost_decides_where_prices_multiply() -> None:
    """Two widths of one product: what the first takes, the second can't have any more."""

    class Product:
        def total(self, allocation: Allocation) -> float:
            return float((allocation["a"] + 1) * (allocation["b"] + 1))

        def levels(self, name: str, allocation: Mapping[str, int]) -> np.ndarray:
            return np.array([self.total({**allocation, name: k}) for k in range(5)])

    modules = [module(name, [4.0, 3.0, 2.0, 1.0, 0.0]) for name in "ab"]
    for budget in range(1, 26):
        filled = fill(modules, {"a": 0, "b": 0}, budget, Product())
        assert Product().total(filled) <= budget
        assert all(Product().total({**filled, n: k + 1}) > budget for n, k in filled.items() if k < 4)
    assert damage_of(modules, fill(modules, {"a": 0, "b": 0}, 25, Product())) == 0.0


def test_widest_first() -> None:
    assert widest_first(Module("m", (Level(2, 0, 0), Level(8, 0, 0), Level(4, 0, 0)))) == [1, 2, 0]
