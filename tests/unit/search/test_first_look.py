"""What the rows say of the dense model outlives a machine: block by block, the same numbers, or looked at anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_graphs

from onnxprune.data import read
from onnxprune.graph import memory
from onnxprune.graph.model import load
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.rows import shape_of
from onnxprune.probe import forward
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.search import first_look, problem
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner
from onnxprune.search.store import Store

Make = Callable[..., Planner]


@pytest.fixture(params=[16, 200], ids=["tokens", "sums"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes planners of one model and its rows, of which moments hold the tokens or their sums."""
    model = load(random_graphs.saved(random_graphs.build("transformer", 3), tmp_path / "dense.onnx"))
    rows = random_graphs.sample("transformer", request.param)
    learn = read([{"x": row[None]} for row in rows], model.inputs)

    def make(store: Store | None, seed: int = 0, method: str = "auto") -> Planner:
        options = Options(
            Budget("flops", 0.6), units=("heads", "head_ranks", "neurons"), round_to=1, seed=seed, method=method
        )
        return Planner(model, analyze(model), options, learn, shape_of(model, {}, learn), store=store)

    return make


def planned(planner: Planner) -> Plan:
    return planner.plan(0.6 * planner.costs.total("flops"))


def same(one: Plan, other: Plan) -> None:
    assert (one.keep, one.drop) == (other.keep, other.drop)
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(weight, other.weights[name])


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("it looks at the rows again")


def test_what_was_seen_is_not_looked_at_again(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "store")
    alone = planned(made(None))
    same(alone, planned(made(Store(url))))
    for kept in ("scores", "plans"):  # orders and plans are other objects
        for file in (tmp_path / "store" / kept).rglob("*.json"):
            file.unlink()
    monkeypatch.setattr(problem, "rotated", never)
    monkeypatch.setattr(problem, "sensitivities", never)
    monkeypatch.setattr(forward, "record", never)
    same(alone, planned(made(Store(url))))
    assert made(Store(url), method="wanda").moments, "a method changes nothing of it"


def test_other_rows_and_damaged_objects_count_for_nothing(made: Make, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    first = made(Store(url))
    assert first.look.rotated() is not None
    other = made(Store(url), seed=1)
    assert first.look.key != other.look.key, "rows are split by the seed"
    for file in (tmp_path / "store" / "seen").rglob("*"):
        if file.is_file():
            held = bytearray(file.read_bytes())
            held[len(held) // 2] ^= 1
            file.write_bytes(held)
    again = first_look.FirstLook(Store(url), first.look.key, first.look.bases)
    assert again.rotated() is None
    assert again.weighed("fit") is None
    assert not again.moments(list(first.moments))
    same(planned(made(None)), planned(made(Store(url))))


def test_a_pass_that_ended_halfway_goes_on(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights are not all held, inputs are done one after the other, and each is kept as it is."""
    monkeypatch.setattr(memory, "share", lambda: 10_000)
    url = str(tmp_path / "store")
    alone = made(None)
    assert alone.interpreter.streams
    expected = planned(alone)
    usages = list(alone.moments)
    keep, kept = first_look.FirstLook.keep, list[Usage]()

    def dies(self: first_look.FirstLook, usage: Usage, gram: Gram) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(usage)
        keep(self, usage, gram)

    monkeypatch.setattr(first_look.FirstLook, "keep", dies)
    with pytest.raises(KeyboardInterrupt):
        planned(made(Store(url)))
    kept.clear()
    monkeypatch.setattr(first_look.FirstLook, "keep", lambda self, usage, gram: kept.append(usage))
    second = made(Store(url))
    assert len(second.moments) == 1
    same(expected, planned(second))
    assert len(kept) == len(usages) - 1 > 0
