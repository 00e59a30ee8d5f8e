"""What was measured serves the next budget, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.cli.test_main import Outcome, folder  # noqa: F401 -- fixtures

from onnxprune.errors import UsageError
from onnxprune.graph.plan import Ranking
from onnxprune.search.damage_table import Row
from onnxprune.search.score_cache import Scores
from onnxprune.search.store import Store


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


def test_a_file_is_no_store(tmp_path: Path) -> None:
    """Told before anything is measured that would not be kept."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for place in ("file", "link", "file/below/it"):
        for url in (str(tmp_path / place), f"file://{tmp_path / place}"):
            with pytest.raises(UsageError, match=r"--store .*(file|link) is a file; name a folder"):
                Store(url)
    Store(str(tmp_path / "not" / "there" / "yet"))


def test_a_store_keeps_rows_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for url in (f"memory://{tmp_path.name}", str(tmp_path / "folder")):
        store = Store(url)
        scores = Scores.open(None, "k", store)
        scores.keep_rankings({"g": Ranking("g", (1, 0), (0.5, 0.25)), "h/1": Ranking("h/1", (0,))})
        scores.keep_rows({"h/1": [0, 1]}, {"h/1": Row((0, 1), np.array([0.3, 0.0]))})
        found = Scores.open(None, "k", Store(url))
        assert found.rankings == scores.rankings
        assert found.measured({"g": [0, 2], "h/1": [0, 1]}).keys() == {"h/1"}
        assert not found.measured({"h/1": [1]})
        assert not Scores.open(None, "other", store).rankings
        store.put("scores/k/row.h/1.json".replace("h/1", "x"), b"{")
        assert Scores.open(None, "k", store).rankings == scores.rankings
    with pytest.raises(UsageError, match="--store nothing://x"):
        Store("nothing://x")
    lost = Store(str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    assert not lost.put("a/b", b"")
    assert not lost.put("a/c", b"")
    assert len([r for r in caplog.records if "is not kept" in r.message]) == 1, "what is lost is said once"
