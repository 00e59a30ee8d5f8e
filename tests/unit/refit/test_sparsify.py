"""Sparse weights in gated space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import ZooModel

from onnxprune import data
from onnxprune.errors import CheckError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.linear_layers import Linear, find_linears
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe.forward import Evaluator, Rows
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.weight_gradients import weight_scores
from onnxprune.refit import sparsify as sparse
from onnxprune.refit.finetune import finetune
from onnxprune.refit.solvers import INFINITE, SOLVERS, parse
from onnxprune.refit.sparsify import output_errors, parts_of, sparsify, verify
from onnxprune.score import Seven

Zoo = Callable[..., ZooModel]


def subject(model: ZooModel, count: int = 48) -> tuple[Gates, Rows, list[Linear]]:
    loaded = models.load(model.path)
    structure = analyze(loaded)
    learn = data.read([model.sample(1, seed=i) for i in range(count)], loaded.inputs, outputs=loaded.outputs)
    interpreter = Interpreter(loaded.graph)
    inside = [x for x in find_linears(loaded.graph, structure) if x.inside is not None]
    return Gates(structure, interpreter), Rows(interpreter, learn), inside


@pytest.mark.parametrize(
    "pattern", ["1:2", "2:4", "4:8", "8:16", "16:32", "block:4x1:0.5", "block:16x16:0.5", "pattern:4x4:0.5"]
)
def test_every_matrix_is_in_the_pattern(zoo: Zoo, pattern: str) -> None:
    gates, rows, linears = subject(zoo("bert", "torchscript", "eager"))
    asked = parse(pattern)
    plan = sparsify(gates, rows, Plan(gates.structure.digest), linears, asked)
    found = verify(gates, plan, linears, asked)
    assert set(found) == {x.weight for x in linears} == set(plan.weights)
    # Half of the weights are exact zeros, but where the last group is not a whole one (48 inputs, 16:32).
    assert np.median(list(found.values())) == pytest.approx(0.5, abs=0.01)
    assert min(found.values()) > 0.33
    with pytest.raises(CheckError):
        verify(gates, Plan(plan.digest), linears, asked)


def test_groups_are_counted_in_what_is_left(zoo: Zoo) -> None:
    """After structured pruning the written matrix has fewer inputs: every group of those has its N of M."""
    gates, rows, linears = subject(zoo("bert", "torchscript", "eager"))
    sites = find_sites(gates.interpreter.graph, gates.structure)
    keep = {s.id: tuple(range(1, s.group.size, 2)) for s in sites if s.group.kind == "neurons" and s.branch}
    plan = sparsify(gates, rows, Plan(gates.structure.digest, keep), linears, parse("2:4"))
    verify(gates, plan, linears, parse("2:4"))
    seen = 0
    for part in parts_of(gates, plan, linears):
        weight = plan.weights[part.linear.weight]
        written = part.take(weight)
        assert (written.reshape(-1, 4, written.shape[1]) != 0).sum(1).max() <= 2
        if len(part.rows) < len(part.linear.matrix.weight(weight)):
            seen += 1
            assert len(part.rows) == len(part.linear.matrix.weight(weight)) // 2
    assert seen == len(keep)


def test_branches_that_are_dropped_are_passed_over(zoo: Zoo) -> None:
    gates, rows, linears = subject(zoo("bert", "torchscript", "eager"))
    branch = gates.structure.branches[0].id
    plan = gates.complete(Plan(gates.structure.digest, drop=(branch,)), rows.batches[0].feeds)
    found = sparsify(gates, rows, plan, linears, parse("2:4"))
    assert set(found.weights) == {x.weight for x in linears if x.inside != branch}


def test_scores_decide_the_mask(zoo: Zoo) -> None:
    gates, rows, linears = subject(zoo("bert", "torchscript", "eager"))
    one = linears[:1]
    scores = weight_scores(rows, [one[0].weight], Seven(weights=True).accumulator)
    plan = sparsify(gates, rows, Plan(gates.structure.digest), one, parse("2:4"), scores=scores)
    (part,) = parts_of(gates, plan, one)
    expected = parse("2:4").project(part.take(scores[one[0].weight]))
    np.testing.assert_array_equal(part.take(plan.weights[one[0].weight]) != 0, expected)


def test_scores_in_steps_remove_more_and_more(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the cubic schedule, each time scored on the model as masked so far; what is gone stays gone."""
    from onnxprune.search import weight_scores as module

    gates, rows, linears = subject(zoo("bert", "torchscript", "eager"), 16)
    plans: list[Plan] = []

    def watched(seen: Rows, *args: Any, **kwargs: Any) -> Any:
        zeros = [float((seen.interpreter.weight(x.weight) == 0).float().mean()) for x in linears]
        plans.append(Plan(gates.structure.digest, notes={"zeros": np.mean(zeros)}))
        return weight_scores(seen, *args, **kwargs)

    monkeypatch.setattr(module, "weight_scores", watched)
    empty, pattern = Plan(gates.structure.digest), parse("2:4")
    found = module.worth("seven-dyn", gates, rows, empty, linears, pattern, (0.8, 0.8))
    zeros = [p.notes["zeros"] for p in plans]
    np.testing.assert_allclose(zeros, [0.5 * (1 - (1 - t / 4) ** 3) for t in range(4)], atol=0.01)
    plan = sparsify(gates, rows, empty, linears, pattern, scores=found)
    verify(gates, plan, linears, pattern)
    at_once = module.worth("seven", gates, rows, empty, linears, pattern, (0.8, 0.8))
    assert any((found[n] != at_once[n]).any() for n in found)


def test_held_out_tokens_choose_and_are_then_fitted_too(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    gates, rows, (one, *_) = subject(zoo("bert", "torchscript", "eager"))
    few, most = (
        Rows(rows.interpreter, rows.dataset.subset(r), given=rows.divergence) for r in (range(8), range(8, 48))
    )
    scores = {one.weight: np.abs(gates.weight(Plan(gates.structure.digest), one.weight))}

    def made(fit: Rows, held: Rows, strengths: Sequence[float], dampings: Sequence[float]) -> np.ndarray:
        monkeypatch.setattr(sparse, "STRENGTHS", tuple(strengths))
        monkeypatch.setattr(sparse, "DAMPINGS", tuple(dampings))
        empty = Plan(gates.structure.digest)
        plan = sparsify(gates, fit, empty, [one], parse("2:4"), scores=scores, held=held)
        return np.append(plan.weights[one.weight], plan.intercepts[one.matrix.output])

    chosen = made(most, few, (INFINITE,), (1e-1,))
    np.testing.assert_allclose(made(few, most, (INFINITE,), (1e-1,)), chosen, atol=1e-4)
    np.testing.assert_allclose(made(most, few, (INFINITE,), (1e3, 1e-1)), chosen, atol=1e-4)
    assert np.abs(made(most, few, (INFINITE,), (1e3,)) - chosen).max() > 1e-2, "a damping that holds all weights back"
    # Eight rows say little of the map that gave them: their own target stands only where there is no other.
    np.testing.assert_allclose(made(few, most, (1e-6, INFINITE), (1e-1,)), chosen, atol=1e-4)


def test_sparse_model_runs_on_its_sparse_weights(zoo: Zoo) -> None:
    gates, rows, linears = subject(zoo("gpt2", "torchscript", "eager"))
    evaluator = Evaluator(rows)
    plan = sparsify(gates, rows, Plan(gates.structure.digest), linears, parse("4:4"), "magnitude")
    assert evaluator(gates.gated(plan)) < 1e-6, "4:4 keeps everything"
    plan = sparsify(gates, rows, Plan(gates.structure.digest), linears, parse("1:4"), "magnitude")
    assert evaluator(gates.gated(plan)) > 1e-3


def test_finetuning_lowers_the_divergence_and_keeps_the_pattern(zoo: Zoo) -> None:
    gates, rows, linears = subject(zoo("bert", "torchscript", "eager"))
    evaluator, pattern = Evaluator(rows), parse("2:4")
    plan = sparsify(gates, rows, Plan(gates.structure.digest), linears, pattern, "magnitude")
    tuned = finetune(gates, rows, evaluator, plan, linears, pattern, 60, rate=1e-3)
    verify(gates, tuned, linears, pattern)
    assert evaluator(gates.gated(tuned)) < 0.8 * evaluator(gates.gated(plan))
    assert finetune(gates, rows, evaluator, plan, linears, pattern, 10, rate=10.0) is plan, "never worse"


def test_solvers_in_order_on_a_real_model(sst2_folder: Path, assets: Path) -> None:
    """Held-out output error, summed over the matrices of the first layer: the better the solver, the smaller."""
    _in_order(sst2_folder, assets, 1)


@pytest.mark.slow
def test_solvers_in_order_on_a_whole_real_model(sst2_folder: Path, assets: Path) -> None:
    _in_order(sst2_folder, assets, 6)


def _in_order(folder: Path, assets: Path, layers: int) -> None:
    loaded = models.load(folder)
    structure = analyze(loaded)
    interpreter = Interpreter(loaded.graph)
    gates = Gates(structure, interpreter)
    linears = [x for x in find_linears(loaded.graph, structure) if x.inside is not None][: 6 * layers]

    def read(name: str, limit: int) -> Rows:
        file = assets / "data" / "sst2" / name
        asked = {"outputs": loaded.outputs, "folder": loaded.folder, "limit": limit}
        return Rows(interpreter, data.read(file, loaded.inputs, **asked))  # type: ignore[arg-type]

    fit, held_out = read("calibration.jsonl", 192), read("dev.jsonl", 64)
    errors = {}
    for solver in SOLVERS:
        plan = sparsify(gates, fit, Plan(structure.digest), linears, parse("2:4"), solver)
        errors[solver] = sum(output_errors(gates, held_out, plan, linears).values())
    assert errors["admm"] < errors["sparsegpt"] < errors["wanda"] < errors["magnitude"], errors
