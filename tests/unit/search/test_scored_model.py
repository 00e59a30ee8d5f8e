"""A scored model: the order of units that say nothing on the rows."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.plan import Ranking
from onnxprune.search.scored_model import behind, told_apart


def test_silent_units_go_by_their_weights_behind_all_that_spoke() -> None:
    ranking = Ranking("g", (2, 0, 1, 3, 4), (0.5, 0.0, 0.9, 1e-12, 0.0))
    found = told_apart(ranking, np.array([0.1, 1.0, 0.2, 3.0, 2.0]))
    assert found.order == (2, 0, 3, 4, 1)
    assert found.scores == ranking.scores


def test_an_order_without_scores_is_left() -> None:
    ranking = Ranking("g", (1, 0))
    assert told_apart(ranking, np.array([0.0, 1.0])) is ranking


def test_what_is_gone_comes_last() -> None:
    assert behind(Ranking("g", (3, 2, 1, 0)), (0, 2)).order == (2, 0, 3, 1)
