"""Self-distillation of what is left: outputs come closer, and what is learnt is in the written graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from plans import Subject, distance, random_plan
from zoo import ZooModel

from onnxprune import data
from onnxprune.errors import UsageError
from onnxprune.graph.plan import Budget, Plan
from onnxprune.probe.forward import Evaluator, Rows
from onnxprune.refit.tune import RATE, WARM, Tuned, pace, tune
from onnxprune.search.options import Options

Build = Callable[..., ZooModel]


def rows_of(subject: Subject, model: ZooModel, seeds: range) -> Rows:
    examples = [model.sample(1, seed=seed) for seed in seeds]
    return Rows(subject.interpreter, data.read(examples, subject.model.inputs, outputs=subject.model.outputs))


def taught(subject: Subject, model: ZooModel, plan: Plan, steps: int, rate: float = RATE) -> Tuned:
    """Tuned for a number of steps, by a clock that ticks once a look."""
    rows, held, judge = (rows_of(subject, model, seeds) for seeds in (range(24), range(24, 32), range(32, 44)))
    ticks = count()
    return tune(
        subject.model, subject.structure, subject.gates, rows, held, Evaluator(judge), plan, float(steps),
        now=lambda: float(next(ticks)), rate=rate,
    )  # fmt: skip


def cut(subject: Subject, model: ZooModel, seed: int) -> Plan:
    plan = random_plan(subject, np.random.default_rng(seed), drop=0.2, tile=0)
    return subject.complete(plan, model.feeds)


@pytest.mark.parametrize(
    "variant",
    [("bert", "torchscript", "eager"), ("vit", "dynamo", "sdpa"), ("gpt2", "torchscript", "sdpa")],
    ids="-".join,
)
def test_what_is_learnt_lowers_the_divergence_and_is_written(zoo: Build, variant: tuple[str, ...]) -> None:
    """Of any plan: refit weights, intercepts with a bias to go to and without, branches that left, uneven heads."""
    model = zoo(*variant)
    subject = Subject.load(model.path)
    plan = cut(subject, model, 1)
    found = taught(subject, model, plan, 40, rate=3e-3)
    assert found.steps == 39  # the first tick is the start
    assert found.after < 0.9 * found.before
    assert (found.plan.keep, found.plan.drop) == (plan.keep, plan.drop)
    assert distance(subject.written(found.plan, model.feeds), subject.gated(found.plan, model.feeds)) < 1e-4


def test_rows_that_judge_have_the_last_word(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject = Subject.load(model.path)
    plan = cut(subject, model, 3)
    wild = taught(subject, model, plan, 6, rate=1e3)
    assert wild.plan is plan and wild.after == wild.before
    none = taught(subject, model, plan, 0)
    assert none.plan is plan and none.steps == 0


def test_the_same_steps_teach_the_same(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject = Subject.load(model.path)
    plan = cut(subject, model, 5)
    one, two = (taught(subject, model, plan, 4, rate=1e-3).plan for _ in range(2))
    assert one.weights.keys() == two.weights.keys()
    for name, array in one.weights.items():
        np.testing.assert_array_equal(array, two.weights[name])


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(UsageError, match="--tune"):
        Options(Budget("flops", 0.5), tune=-1.0)
    with pytest.raises(UsageError, match="--finetune"):
        replace(Options(Budget("flops", 0.5), sparsity="2:4"), tune=1.0)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    assert pace(0.0) == pace(1.0) == 0.0
    assert pace(WARM) == pytest.approx(1.0)
    assert pace(WARM / 2) == pytest.approx(0.5)
    assert pace((1 + WARM) / 2) == pytest.approx(0.5)
    assert max(pace(share) for share in np.linspace(0, 1, 101)) <= 1.0
