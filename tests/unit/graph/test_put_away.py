"""Arrays that memory does not hold: read from files when they are asked for, in plans too."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plans import Subject, distance
from zoo import ZooModel

from onnxprune.errors import LimitError
from onnxprune.graph.plan import Plan
from onnxprune.graph.put_away import Arrays, Store, over


def test_as_many_as_fit_stay_in_memory_and_files_go_with_the_last_reader() -> None:
    store = Store(100)
    one, two = (store.kept({name: np.full(10, value)}) for name, value in (("a", 1.0), ("b", 2.0)))
    assert not isinstance(one, Arrays) and isinstance(two, Arrays) and store.left == 20
    both = over(one, two, {"a": np.zeros(3)})
    assert isinstance(both, Arrays) and set(both) == {"a", "b"} and len(both) == 2 and "b" in both
    np.testing.assert_array_equal(both["a"], np.zeros(3))
    np.testing.assert_array_equal(both["b"], np.full(10, 2.0))
    assert pickle.loads(pickle.dumps(both))["b"][0] == 2.0
    assert both["b"] is not both["b"], "it was kept"
    assert store._folder is not None
    folder = store._folder.path
    del store, two
    gc.collect()
    assert folder.exists() and both["b"][0] == 2.0
    del both
    gc.collect()
    assert not folder.exists()


def test_what_nobody_has_any_more_makes_room() -> None:
    store = Store(100)
    first = store.kept({"a": np.zeros(10)})
    assert store.left == 20 and isinstance(store.kept({"b": np.zeros(10)}), Arrays)
    del first
    gc.collect()
    assert store.left == 100 and not isinstance(store.kept({"b": np.zeros(10)}), Arrays)


def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(LimitError, match="TMPDIR"):
        Store(0).kept({"a": np.zeros(10)})


def test_a_plan_whose_weights_lie_in_files_is_the_same_plan(zoo: Callable[..., ZooModel], tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    subject = Subject.load(model.path)
    group = next(g for g in subject.structure.groups if g.kind == "neurons")
    name = group.readers[0].weight
    assert name is not None
    tensor = subject.model.graph.initializers[name].const_value
    assert tensor is not None
    weights = {name: tensor.numpy() * np.float32(1.5)}
    held = Plan(subject.structure.digest, {group.id: tuple(range(group.size // 2))}, weights=weights)
    away = replace(held, weights=Store(0).kept(weights))
    assert isinstance(away.weights, Arrays)
    expected = subject.gated(held, model.feeds)
    assert distance(subject.gated(away, model.feeds), expected) == 0
    assert distance(subject.written(away, model.feeds), expected) < 1e-5
    for plan, file in ((held, "held.json"), (away, "away.json")):
        plan.save(tmp_path / file)
    assert (tmp_path / "held.safetensors").read_bytes() == (tmp_path / "away.safetensors").read_bytes()
