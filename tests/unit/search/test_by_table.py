"""The search by the table: what it chooses it has measured, once, and tells whoever searches after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import random_graphs

from onnxprune.data import read
from onnxprune.graph.model import load
from onnxprune.graph.plan import Budget
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.rows import shape_of
from onnxprune.search import by_table
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

SHARES = (0.7, 0.45)


def planner(folder: Path, scores: Path | None = None) -> Planner:
    model = load(random_graphs.saved(random_graphs.build("transformer", 3), folder / "dense.onnx"))
    learn = read([{"x": row[None]} for row in random_graphs.sample("transformer", 64)], model.inputs)
    options = Options(Budget("flops", 0.6), units=("heads", "head_ranks", "neurons"), round_to=1, swaps=0)
    return Planner(model, analyze(model), options, learn, shape_of(model, {}, learn), scores=scores)


def chosen(made: Planner, share: float) -> dict[str, int]:
    return by_table.searched(made, made.start, share * made.costs.total("flops"), made.scores)


def refuse(*args: Any, **more: Any) -> None:
    raise AssertionError("a level is measured again")


def test_levels_near_what_is_chosen_are_measured_as_the_table_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_table, "UNSURE", 0.0)
    made = planner(tmp_path)
    for share in SHARES:
        chosen(made, share)
    stage = made.start
    assert stage.rows is not None
    assert stage.near
    for (name, count), damage in stage.near.items():
        site = next(s for s in made.sites if s.id == name)
        assert count not in stage.rows[name].levels
        ((_, row),) = by_table.rows_of(made, by_table.walk_of(made, stage), [site], {name: [count, site.group.size]})
        assert damage == pytest.approx(row.damage[row.levels.index(count)], rel=1e-5)


def test_it_looks_closer_until_what_is_chosen_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is chosen in the end, nothing is left that would be worth a measurement, if there is time enough."""
    asked: list[Any] = []
    unsure = by_table._unsure

    def told(*args: Any) -> Any:
        asked.append(unsure(*args))
        return asked[-1]

    monkeypatch.setattr(by_table, "_unsure", told)
    monkeypatch.setattr(by_table, "REFINED", 50)
    made = planner(tmp_path)
    for share in SHARES:
        chosen(made, share)
        assert not asked[-1]
    assert len(made.start.near) == sum(len(found) for found in asked) > 0


def test_what_was_measured_near_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the same planner, nor by one that finds its file; and what was asked before changes nothing."""
    file = tmp_path / "scores.json"
    first = planner(tmp_path, file)
    found = [chosen(first, share) for share in SHARES]
    assert first.start.near
    alone = planner(tmp_path)
    assert chosen(alone, SHARES[1]) == found[1]
    second = planner(tmp_path, file)
    monkeypatch.setattr(by_table, "damage_table", refuse)
    assert [chosen(first, share) for share in SHARES] == found
    assert [chosen(second, share) for share in SHARES] == found
