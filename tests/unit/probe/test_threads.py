"""Batches on several threads: the same results in the same order, and torch as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from plans import Subject
from zoo import ZooModel

from onnxprune import data
from onnxprune.graph import memory
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe import threads
from onnxprune.probe.forward import Evaluator, Rows, Walk, grams, record
from onnxprune.probe.gate_gradients import sensitivities
from onnxprune.probe.interpreter import Interpreter

ANY = cast(Interpreter, SimpleNamespace(device="cpu", streams=False))


@pytest.fixture
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_with_one_core_each(two: None) -> None:
    seen: dict[int, tuple[str, int]] = {}

    def run(i: int) -> int:
        seen[i] = threading.current_thread().name, torch.get_num_threads()
        assert threads.each(ANY, 3, lambda k: k * i) == [0, i, 2 * i]  # inside, nothing more is shared out
        return i * i

    assert threads.each(ANY, 7, run) == [i * i for i in range(7)]
    assert all(count == 1 and name.startswith("onnxprune-batches") for name, count in seen.values())
    assert torch.get_num_threads() == 2


def test_what_is_taken_is_taken_in_order_and_few_wait(two: None) -> None:
    begun: list[int] = []
    taken: list[int] = []

    def run(i: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        begun.append(i)
        return i

    def take(i: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert len(begun) - len(taken) <= 3
        taken.append(i)

    threads.pipelined(ANY, 20, run, take)
    assert taken == list(range(20)) and torch.get_num_threads() == 2


def test_cores_of_those_who_wait_run_batches_and_change_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    together = threading.Barrier(2, timeout=30)

    def run(i: int) -> int:
        together.wait()  # nobody gets past it alone
        return torch.get_num_threads()

    try:
        free = [1]
        with threads.lent(lambda: free[0]):
            assert threads.count(ANY) == 1
            free[0] = 8  # others are done
            assert threads.count(ANY) == 2
            assert threads.each(ANY, 4, run) == [1] * 4
            assert torch.get_num_threads() == 1
        assert threads.count(ANY) == 1
    finally:
        torch.set_num_threads(before)


def test_a_stated_limit_holds_there_too(two: None) -> None:
    with memory.limited(10**9):
        assert threads.each(ANY, 3, lambda _: memory.limit()) == [10**9] * 3


@pytest.mark.parametrize("several", [threads.each, lambda a, n, run: threads.pipelined(a, n, run, print)])
def test_what_fails_is_raised_and_leaves_torch_as_it_was(two: None, several: Any) -> None:
    def run(i: int) -> int:
        raise ValueError(f"batch {i}")

    with pytest.raises(ValueError, match="batch"):
        several(ANY, 5, run)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"streams": True}])
def test_batches_go_one_by_one_where_they_share_more_than_weights(two: None, other: dict[str, Any]) -> None:
    interpreter = cast(Interpreter, SimpleNamespace(**{"device": "cpu", "streams": False, **other}))
    assert threads.count(ANY) == 2 and threads.count(interpreter) == 1
    here = threading.current_thread()
    assert threads.each(interpreter, 2, lambda _: threading.current_thread()) == [here, here]


def test_passes_over_batches_see_the_same_on_one_thread_and_on_two(zoo: Callable[..., ZooModel], two: None) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject = Subject.load(model.path)
    sites = find_sites(subject.model.graph, subject.structure)
    matrices = [m for s in sites for m in s.matrices]
    told = data.read(
        [model.sample(1, tokens=3 + i % 5, seed=i) for i in range(15)],
        subject.model.inputs, outputs=subject.model.outputs,
    )  # fmt: skip

    def look() -> dict[str, Any]:
        rows = Rows(subject.interpreter, told, max_rows=2)
        order: list[tuple[str, int]] = []

        def noted(node: str) -> Callable[[Any, Any], None]:
            return lambda x, real: order.append((node, x.shape[1]))

        record(rows, {m.usage: noted(m.reader.node) for m in matrices})
        walk = Walk(rows, rows.divergence.outputs)
        walk.to(sites[-1].stop)
        weighed = sensitivities(rows, matrices, subject.gates.usages)
        found = grams(rows, matrices, weights=weighed)
        state = subject.gates.gated(Plan(subject.model.digest, keep={sites[0].id: (0,)}))
        return {
            "order": order,
            "walk": [float(v.sum()) for values in walk.values for v in values.values() if v.is_floating_point()],
            "weights": np.concatenate([p.numpy() for parts in weighed.values() for p in parts]),
            "grams": np.concatenate([g.matrix.ravel() for g in found.values()]),
            "distance": Evaluator(rows).per_row(state),
        }

    several = look()
    torch.set_num_threads(1)
    alone = look()
    assert several["order"] == alone["order"] and len(alone["order"]) > 2 * len(matrices)
    for name in ("walk", "weights", "grams", "distance"):
        np.testing.assert_allclose(several[name], alone[name], rtol=1e-4, atol=1e-5)
    assert alone["distance"].max() > 1e-6
