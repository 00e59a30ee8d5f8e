"""Laws 2 and 7: units that nothing reads go first, whatever the method, and nobody is the wiser.

Some heads and neurons are killed in the torch module, before export. What is dead in the graph is read off its weights:
the rows that read a unit are all zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import zoo as exports
from plans import Subject, distance, in_runtime
from zoo import Plant, ZooModel
from zoo_families import OPSETS

import onnxprune
from onnxprune import data
from onnxprune.graph.plan import Budget, Plan, Ranking
from onnxprune.graph.structure.sites import Site, find_sites
from onnxprune.measure.cost import Costs
from onnxprune.pipeline.rows import shape_of
from onnxprune.score import METHODS
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

Build = Callable[..., ZooModel]

PLANT = Plant(heads=0.5, neurons=0.5)
FAMILIES = ("bert", "roberta", "distilbert", "vit", "deit", "gpt2", "llama")
UNITS = ("heads", "neurons")
EVERY: list[tuple[str, exports.Exporter, str]] = [
    (family, exporter, method)
    for i, exporter in enumerate(OPSETS)
    for j, family in enumerate(FAMILIES)
    for method in np.roll(["obs", "fisher", "wanda", "magnitude"], i + j).tolist()
]
QUICK = [case for i, case in enumerate(EVERY) if i % 4 == 0 or case[:2] == ("bert", "torchscript")]
COLLECTED = {"gram", "gate_grad", "trajectory", "flow", "spectral_flow", "weight_score"}
"""Statistics that the planner collects."""

load = cache(Subject.load)


def rows(model: ZooModel, count: int = 24) -> list[dict[str, np.ndarray]]:
    """Examples one by one, of two lengths where there are lengths."""
    lengths = (9, 6) if model.inputs[0] == "input_ids" else (None,)
    return [model.sample(1, lengths[i % len(lengths)], seed=100 + i) for i in range(count)]


def dead_units(subject: Subject, site: Site) -> set[int]:
    """Units whose reading rows are zero in every matrix."""
    alive = np.zeros(site.group.size, dtype=bool)
    for matrix in site.matrices:
        weight = subject.interpreter.weight(matrix.reader.weight or "").numpy()
        reading = np.abs(matrix.weight(weight)).sum(axis=1) > 0
        alive[matrix.units[reading & (matrix.units >= 0)]] = True
    return set(np.flatnonzero(~alive).tolist())


def sites_of(subject: Subject) -> Iterator[tuple[Site, set[int]]]:
    for site in find_sites(subject.model.graph, subject.structure, UNITS):
        yield site, dead_units(subject, site)


def live_share(subject: Subject, learn: data.Dataset) -> float:
    """The share of the FLOPs that is left when exactly the dead units go."""
    costs = Costs(subject.model, subject.structure, shape_of(subject.model, {}, learn))
    keep = {s.id: tuple(sorted(set(range(s.group.size)) - dead)) for s, dead in sites_of(subject) if dead}
    return costs.macs(Plan(subject.structure.digest, keep)) / costs.macs()


def read(subject: Subject, calibration: Any) -> data.Dataset:
    return data.read(calibration, subject.model.inputs, outputs=subject.model.outputs)


@pytest.mark.parametrize(("family", "exporter", "method"), QUICK)
def test_dead_units_leave_unnoticed(zoo: Build, family: str, exporter: exports.Exporter, method: str) -> None:
    check_dead(zoo, family, exporter, method)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter", "method"), [case for case in EVERY if case not in QUICK])
def test_dead_units_leave_unnoticed_everywhere(
    zoo: Build, family: str, exporter: exports.Exporter, method: str
) -> None:
    check_dead(zoo, family, exporter, method)


def check_dead(zoo: Build, family: str, exporter: exports.Exporter, method: str) -> None:
    model = zoo(family, exporter, "eager", plant=PLANT)
    subject, calibration = load(model.path), rows(model)
    live = live_share(subject, read(subject, calibration))
    assert live < 0.9
    budget = live + 0.25 * (1 - live)
    result = onnxprune.prune(
        model.path, flops=budget, calibration=calibration, method=method, round_to=1, compensate=False, units=UNITS,
        measure_latency=False,
    )  # fmt: skip
    assert result.plan.keep
    before, after = in_runtime(model.path, model.feeds), in_runtime(result.model, model.feeds)
    assert distance(after, before) < 1e-4


@pytest.mark.parametrize(
    ("family", "kind", "method", "share"),
    # Half of the query heads are 0.13 of the FLOPs, and one of every two must stay.
    [
        ("llama", "query_heads", "obs", 0.88),
        ("bert", "head_dims", "obs", 0.85),
        ("llama", "head_dims", "magnitude", 0.85),
    ],
)
def test_units_within_heads_leave_evenly(zoo: Build, family: str, kind: str, method: str, share: float) -> None:
    """Each head (or key and value head) chooses its own, equally many; the dead ones go first."""
    model = zoo(family, "torchscript", "eager", plant=PLANT)
    subject = load(model.path)
    sizes = {g.id: g.shape for g in subject.structure.groups}
    result = onnxprune.prune(
        model.path, flops=share, calibration=rows(model), method=method, round_to=1, compensate=False, units=(kind,),
        measure_latency=False,
    )  # fmt: skip
    assert result.plan.keep
    assert result.report.flops.ratio <= share
    for name, units in result.plan.keep.items():
        *heads, width = sizes[name]  # rotary pairs are all heads' together: they have no heads of their own
        counts = {row: sum(u // width == row for u in units) for row in range(math.prod(heads))}
        assert name.startswith(kind)
        assert len(set(counts.values())) == 1
    if kind == "query_heads":
        before, after = in_runtime(model.path, model.feeds), in_runtime(result.model, model.feeds)
        assert distance(after, before) < 1e-4


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2"])
@pytest.mark.parametrize("method", sorted(m for m in METHODS if METHODS[m].needs <= COLLECTED))
def test_every_score_ranks_dead_units_last(zoo: Build, family: str, method: str) -> None:
    model = zoo(family, "torchscript", "eager", plant=PLANT)
    subject = load(model.path)
    rankings = rankings_of(subject, rows(model, 96), method)
    seen = 0
    for site, dead in sites_of(subject):
        if dead:
            assert set(rankings[site.id].order[-len(dead) :]) == dead, site.id
            seen += len(dead)
    heads = sum(len(units) for units in model.planted.heads.values())
    neurons = sum(len(units) for units in model.planted.neurons.values())
    assert seen == heads + neurons, "the graph holds other dead units than were planted"


@pytest.mark.parametrize("method", sorted(m for m in METHODS if METHODS[m].needs <= COLLECTED))
def test_padding_content_does_not_matter(zoo: Build, method: str) -> None:
    model = zoo("bert", "torchscript", "eager")
    subject = load(model.path)
    found = []
    for filler in (0, 77):
        padded = []
        for example in rows(model, 12):
            ids, mask = (np.pad(example[name], ((0, 0), (0, 3))) for name in ("input_ids", "attention_mask"))
            ids[:, -3:] = filler
            padded.append(
                {
                    **{n: np.pad(a, ((0, 0), (0, 3))) for n, a in example.items()},
                    "input_ids": ids,
                    "attention_mask": mask,
                }
            )
        found.append(rankings_of(subject, padded, method))
    plain = rankings_of(subject, rows(model, 12), method)
    for name, expected in plain.items():
        for other in found:
            assert other[name].order == expected.order
            np.testing.assert_allclose(other[name].scores, expected.scores, rtol=1e-6)


def rankings_of(subject: Subject, calibration: Any, method: str) -> Mapping[str, Ranking]:
    options = Options(Budget("flops", 0.7), method=method, units=UNITS, compensate=False)
    learn = read(subject, calibration)
    planner = Planner(subject.model, subject.structure, options, learn, shape_of(subject.model, {}, learn))
    return planner.start.rankings
