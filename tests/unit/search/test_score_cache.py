"""What was measured serves the next budget, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.cli.test_main import Outcome, folder  # noqa: F401 -- fixtures

from onnxprune.graph.plan import Ranking
from onnxprune.search.score_cache import Scores


@pytest.fixture
def cut(run: Callable[..., Outcome], folder: Path) -> Callable[..., dict[str, Any]]:  # noqa: F811
    def cut(place: Path, budget: float, *more: object) -> dict[str, Any]:
        args = ["--flops", budget, "--round-to", 1, "--calib", folder / "rows.jsonl", "--no-latency", "--force"]
        code, out, err = run(folder / "model.onnx", "-o", place / "cut.onnx", *args, "--json", *more)
        assert code == 0, err
        report: dict[str, Any] = json.loads(out)
        return report

    return cut


def test_a_second_budget_needs_no_second_table(cut: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert "table" in cut(first, 0.8)["seconds"]
    assert (first / "model.scores.json").exists()
    again = cut(first, 0.6)
    assert "table" not in again["seconds"]
    fresh = cut(second, 0.6)
    assert "table" in fresh["seconds"]
    assert [u["kept"] for u in again["units"]] == [u["kept"] for u in fresh["units"]]
    plans = [json.loads((place / "cut.plan.json").read_text())["keep"] for place in (first, second)]
    assert plans[0] == plans[1]
    assert "table" in cut(first, 0.6, "--seed", 1)["seconds"]


def test_a_file_that_is_not_one_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.scores.json"
    for text in ("", "[]", "{}", '{"schema_version": 1, "key": "k", "rankings": 3}'):
        path.write_text(text)
        found = Scores.open(path, "k")
        assert not found.rankings
        assert not found.measured({"g": [1]})


def test_what_someone_changed_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.scores.json"
    Scores(path, "k").keep_rankings({"g": Ranking("g", (1, 0), (0.5, 0.25))})
    assert Scores.open(path, "k").rankings["g"].order == (1, 0)
    told = json.loads(path.read_text())
    for order in ([1, 999], [0], [0, 0], ["a", "b"], [], None):
        told["rankings"]["g"]["order"] = order
        path.write_text(json.dumps(told))
        assert not Scores.open(path, "k").rankings
    path.write_bytes(b"[" * 100_000)
    assert not Scores.open(path, "k").rankings


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.scores.json").mkdir()
    scores = Scores.open(tmp_path / "model.scores.json", "k")
    scores.keep_rankings({"g": Ranking("g", (1, 0))})
    assert [p.name for p in tmp_path.iterdir()] == ["model.scores.json"]
