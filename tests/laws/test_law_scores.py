"""Laws of every score: a planted dead unit goes first, and no padding token is read.

Padding is there where a graph fixes its length: the rows say which tokens are real, and what the others hold is
nobody's business.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from zoo import Plant, ZooModel

from onnxprune import data
from onnxprune.data import Dataset, Example
from onnxprune.graph import model as models
from onnxprune.graph.plan import Ranking, Structure
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import Site, find_sites
from onnxprune.probe.forward import Rows
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.trajectory import linearised
from onnxprune.score import METHODS, Dynamic, collect, dynamic

Build = Callable[..., ZooModel]
UNITS = ("heads", "neurons", "channels", "query_heads", "blocks")
PLANT = Plant(heads=0.5, neurons=0.5)
PADDED = 3


@cache
def subject(path: Path) -> tuple[models.Model, Structure, Interpreter, list[Site]]:
    model = models.load(path)
    structure = analyze(model)
    return model, structure, Interpreter(model.graph), find_sites(model.graph, structure, UNITS)


def dead(interpreter: Interpreter, site: Site) -> set[int]:
    alive = np.zeros(site.group.size, dtype=bool)
    for matrix in site.matrices:
        reading = np.abs(matrix.weight(interpreter.weight(matrix.reader.weight or "").numpy())).sum(axis=1) > 0
        alive[matrix.units[reading & (matrix.units >= 0)]] = True
    return set(np.flatnonzero(~alive).tolist())


def rankings(method: str, rows: Rows, sites: list[Site], structure: Structure) -> dict[str, Ranking]:
    scored = METHODS[method]
    if isinstance(scored, Dynamic):
        return dynamic(rows, sites, Gates(structure, rows.interpreter), 0.6, scored.accumulator, count=2)
    found = collect(METHODS[method], rows, sites, structure, lambda n: rows.interpreter.weight(n).float().numpy())
    return {s.id: METHODS[method](s, found) for s in sites}


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit", "resnet", "swin"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_planted_dead_units_are_last(zoo: Build, family: str, method: str) -> None:
    planted = zoo(family, "torchscript", "eager", plant=PLANT)
    model, structure, interpreter, sites = subject(planted.path)
    examples = [planted.sample(1, seed=i) for i in range(32)]
    rows = Rows(interpreter, data.read(examples, model.inputs, outputs=model.outputs))
    found, seen = rankings(method, rows, sites, structure), 0
    for site in sites:
        if gone := dead(interpreter, site):
            scores = np.array(found[site.id].scores)
            live = sorted(set(range(site.group.size)) - gone)
            # A tie is with a unit that never fires: dead as well.
            assert scores[sorted(gone)].max() <= scores[live].min(), site.id
            if scores[sorted(gone)].max() < scores[live].min():
                assert set(found[site.id].order[-len(gone) :]) == gone, site.id
            seen += len(gone)
    assert seen > 0


def padded(model: ZooModel, filler: int, count: int = 8) -> Dataset:
    examples = []
    for i in range(count):
        feeds = model.sample(1, 9, seed=i)
        mask = np.ones_like(feeds["attention_mask"])
        mask[:, -PADDED:] = 0
        ids = np.where(mask > 0, feeds["input_ids"], filler)
        examples.append(Example({**feeds, "input_ids": ids, "attention_mask": mask}, real=mask > 0))
    return Dataset(tuple(examples), "tokens")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_padding_holds_changes_nothing(zoo: Build, method: str) -> None:
    exported = zoo("bert", "torchscript", "eager")
    _, structure, interpreter, sites = subject(exported.path)
    found = []
    for filler in (0, 77):
        rows = Rows(interpreter, padded(exported, filler))
        assert rows.batches[0].real is not None and not rows.batches[0].real.all()
        found.append(rankings(method, rows, sites, structure))
    for name, ranking in found[0].items():
        np.testing.assert_allclose(ranking.scores, found[1][name].scores, rtol=2e-3, atol=1e-7)


def test_linearised_trajectory_reads_no_padding(zoo: Build) -> None:
    """Heads are few, so that scores take them exactly: the other way has to be asked for."""
    exported = zoo("bert", "torchscript", "eager")
    _, structure, interpreter, sites = subject(exported.path)
    found = [linearised(Rows(interpreter, padded(exported, f)), sites, structure, probes=3) for f in (0, 77)]
    for name, expected in found[0].items():
        np.testing.assert_allclose(found[1][name].manifold, expected.manifold, rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(found[1][name].output, expected.output, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("method", ["optin", "snip"])
def test_padding_counts_in_no_mean(zoo: Build, method: str) -> None:
    """Rows with padding score as the same rows without it do (a graph of free length takes both)."""
    exported = zoo("bert", "torchscript", "eager")
    _, structure, interpreter, sites = subject(exported.path)
    long = padded(exported, 5)
    short = Dataset(tuple(Example({n: a[:, :-PADDED] for n, a in e.feeds.items()}) for e in long.examples), long.kind)
    with_, without = (rankings(method, Rows(interpreter, d), sites, structure) for d in (long, short))
    for site in sites:
        np.testing.assert_allclose(with_[site.id].scores, without[site.id].scores, rtol=2e-3)
