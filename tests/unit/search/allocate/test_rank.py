"""Rank search against brute force over all kept sets."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import BudgetError
from onnxprune.search.allocate import Kept, Kind, rank, rank_pair

Scores = dict[str, np.ndarray]

values = st.floats(0, 100, width=32)


def kinds(prefix: str, most: int) -> st.SearchStrategy[Scores]:
    """Up to two modules with up to `most` units between them."""
    return st.lists(values, min_size=1, max_size=most).flatmap(
        lambda s: st.integers(0, len(s)).map(
            lambda cut: {f"{prefix}0": np.array(s[:cut]), f"{prefix}1": np.array(s[cut:])}
        )
    )


def kept_score(scores: Scores, kept: Kept) -> float:
    return float(sum(scores[key][kept[key]].sum() for key in scores))


def count(scores: Scores, kept: Kept) -> int:
    return sum(len(kept[key]) for key in scores)


@given(kinds("h", 5), kinds("n", 7), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_pair_search_is_the_best_of_all_subsets(
    heads: Scores, neurons: Scores, head_cost: int, neuron_cost: int, share: float
) -> None:
    """All 2^units kept sets, at most 12 units."""
    every = np.concatenate([*heads.values(), *neurons.values()])
    number = sum(len(s) for s in heads.values())
    price = np.array([head_cost] * number + [neuron_cost] * (len(every) - number))
    budget = share * price.sum()
    masks = np.array(list(product((0, 1), repeat=len(every))))
    best = float((masks @ every)[masks @ price <= budget].max())
    kept = rank_pair(Kind(heads, head_cost), Kind(neurons, neuron_cost), budget)
    assert head_cost * count(heads, kept) + neuron_cost * count(neurons, kept) <= budget
    assert kept_score(heads, kept) + kept_score(neurons, kept) == pytest.approx(best, rel=1e-6)


@given(kinds("a", 8), kinds("b", 8), st.floats(0, 1), st.floats(0, 1))
def test_general_rank_fits_and_keeps_each_modules_best(a: Scores, b: Scores, x: float, y: float) -> None:
    pools = [Kind(a, {"a0": 3.0, "a1": 5.0}), Kind(b, 2.0)]

    def cost(kept: Kept) -> float:
        return 3.0 * len(kept["a0"]) + 5.0 * len(kept["a1"]) + 2.0 * count(b, kept)

    everything = cost({key: np.arange(len(s)) for key, s in (a | b).items()})
    budget = x * everything
    kept = rank(pools, budget)
    assert cost(kept) <= budget
    for key, scores in (a | b).items():
        gone = np.delete(scores, kept[key])
        if len(gone) and len(kept[key]):
            assert scores[kept[key]].min() >= gone.max()
        assert (np.diff(kept[key]) > 0).all()
    if y >= x:
        assert cost(rank(pools, everything)) == everything


@given(kinds("m", 12), st.floats(0, 1))
def test_one_kind_of_equal_costs_is_the_top_of_the_list(scores: Scores, share: float) -> None:
    every = np.sort(np.concatenate(list(scores.values())))[::-1]
    number = int(share * len(every))
    kept = rank([Kind(scores, 7.0)], 7.0 * number)
    assert count(scores, kept) == number
    assert kept_score(scores, kept) == pytest.approx(float(every[:number].sum()), rel=1e-6)


def test_rounding_keeps_multiples_or_all() -> None:
    random = np.random.default_rng(0)
    scores = {"a": random.random(70), "b": random.random(64), "c": random.random(5)}
    pool, other = Kind(scores, 1.0, round_to=16), Kind({"h": random.random(4)}, 8.0)
    for budget in range(0, 175, 7):
        for kept in (rank([pool, other], budget), rank_pair(pool, other, budget)):
            assert count(scores, kept) + 8 * len(kept["h"]) <= budget
            for key, units in kept.items():
                if key != "h":
                    assert len(units) % 16 == 0 or len(units) == len(scores[key])


def test_every_module_keeps_its_share() -> None:
    scores = {"a": np.array([9.0, 8.0, 7.0, 6.0]), "b": np.array([0.1, 0.3, 0.2, 0.0])}
    pool = Kind(scores, 1.0, at_least=1)
    kept = rank_pair(pool, Kind({}, 1.0), 4)
    assert kept["a"].tolist() == [0, 1, 2] and kept["b"].tolist() == [1]
    assert {key: v.tolist() for key, v in rank([pool], 4).items()} == {"a": [0, 1, 2], "b": [1]}
    both = Kind(scores, 1.0, at_least=3, round_to=2)
    assert rank([both], 8)["b"].tolist() == [0, 1, 2, 3]
    with pytest.raises(BudgetError) as caught:
        rank_pair(both, Kind({}, 1.0), 7.5)
    assert caught.value.closest == 8.0


def test_units_that_harm_are_not_kept_for_being_affordable() -> None:
    heads, neurons = {"h": np.array([1.0, -2.0])}, {"n": np.array([3.0, -1.0, 0.5])}
    for kept in (
        rank_pair(Kind(heads, 1.0), Kind(neurons, 1.0), 100),
        rank([Kind(heads, 1.0), Kind(neurons, 1.0)], 100),
    ):
        assert kept["h"].tolist() == [0] and kept["n"].tolist() == [0, 2]


def test_ties_go_to_the_earlier_unit_every_time() -> None:
    flat = {"a": np.ones(6), "b": np.ones(6)}
    first, second = rank([Kind(flat, 1.0)], 8), rank([Kind(flat, 1.0)], 8)
    assert first["a"].tolist() == [0, 1, 2, 3, 4, 5] and first["b"].tolist() == [0, 1]
    assert all((first[key] == second[key]).all() for key in flat)


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="module a"):
        rank([Kind({"a": np.array([1.0, np.nan])}, 1.0)], 1.0)
