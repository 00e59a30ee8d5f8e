"""The search by rank: kinds that share nothing but the budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from onnxprune.graph.plan import Ranking
from onnxprune.graph.structure.sites import Site
from onnxprune.search.by_rank import _spent, ranked
from onnxprune.search.prices import Prices


def site(name: str, kind: str, *, branch: bool = True, size: int = 0, rows: int = 1) -> Site:
    group = SimpleNamespace(kind=kind, size=size, shape=(rows, size // rows))
    there = SimpleNamespace(id=name, group=group, matrices=(1,), branch="b" if branch else None, rows=rows)
    return cast(Site, there)


def spent(scores: dict[str, np.ndarray], kinds: dict[str, str], room: float, **options: bool) -> dict[str, int]:
    sites = [site(name, kinds[name], **options) for name in scores]
    rankings = {n: Ranking(n, tuple(np.argsort(-s).tolist()), tuple(s.tolist())) for n, s in scores.items()}
    return _spent(sites, rankings, dict.fromkeys(scores, 1.0), lambda s: 1, room)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_kinds_scores_are_shares_of_their_sum(scale: float) -> None:
    """The unit of one kind's scores says nothing about another kind."""
    heads, neurons = np.array([5.0, 3.0, 1.0, 1.0]), np.array([4.0, 3.0, 2.0, 1.0])
    kinds = {"h": "heads", "n": "neurons"}
    assert spent({"h": scale * heads, "n": neurons}, kinds, 4) == {"h": 2, "n": 2}
    third = {"h": scale * heads, "n": neurons, "c": neurons / scale}
    assert spent(third, kinds | {"c": "channels"}, 6) == {"h": 2, "n": 2, "c": 2}


def test_within_a_kind_scores_are_compared_as_they_are() -> None:
    scores = {"a": np.array([9.0, 8.0, 7.0]), "b": np.array([6.0, 1.0, 0.5])}
    assert spent(scores, {"a": "heads", "b": "heads"}, 4) == {"a": 3, "b": 1}
    assert spent(scores, {"a": "heads", "b": "heads"}, 3) == {"a": 3, "b": 0}
    assert spent(scores, {"a": "heads", "b": "heads"}, 3, branch=False) == {"a": 2, "b": 1}


def test_a_dead_head_goes_at_the_price_of_the_live_one_that_goes_with_it() -> None:
    """Groups of query heads keep equally many: of two groups, one of them dead, half can only go with a live head."""
    sites = [site("h", "heads", size=4, rows=2), site("n", "neurons", size=4), site("k", "heads", size=2)]
    scores = {"h": (3.0, 2.0, 0.0, 0.0), "n": (1.0, 1.0, 0.0, 0.0), "k": (4.0, 4.0)}
    rankings = {n: Ranking(n, tuple(range(len(s))), s) for n, s in scores.items()}
    unit = dict.fromkeys(scores, 1.0)
    steps = {"h": 2, "n": 1, "k": 1}
    assert _spent(sites, rankings, unit, lambda s: steps[s.id], 8) == {"h": 4, "n": 2, "k": 2}
    assert _spent(sites[:2], rankings, unit, lambda s: steps[s.id], 6) == {"h": 4, "n": 2}
    assert _spent(sites, rankings, unit, lambda s: steps[s.id], 7)["h"] in (2, 4)


@pytest.mark.parametrize(("budget", "kept"), [(100.0, 10), (81.0, 9), (49.5, 7), (25.0, 5), (4.0, 2)])
def test_where_widths_are_multiplied_the_whole_decides(budget: float, kept: int) -> None:
    """Between two layers of channels a unit is worth less the more has gone: sums of unit costs would overspend."""
    scores = tuple(np.linspace(2.0, 1.0, 10).tolist())
    sites = [site(name, "channels", branch=False, size=10) for name in "ab"]
    prices = SimpleNamespace(
        sites={s.id: s for s in sites},
        kind="flops",
        coupled=True,
        whole={"a": 10, "b": 10},
        total=lambda counts: float(counts["a"] * counts["b"]),
        costs=SimpleNamespace(unit_costs=lambda kind, group: 10.0),
    )
    rankings = {s.id: Ranking(s.id, tuple(range(10)), scores) for s in sites}
    assert ranked(sites, rankings, cast(Prices, prices), budget, lambda s: 1) == {"a": kept, "b": kept}
