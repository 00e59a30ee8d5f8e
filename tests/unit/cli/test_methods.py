"""Every kind of score from the command line, SEVEN's steps, and SNIP's branches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.cli.test_main import Outcome, folder, refused  # noqa: F401 -- fixtures
from zoo import ZooModel

from onnxprune import data
from onnxprune.graph.model import load
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import find_sites
from onnxprune.pipeline.rows import shape_of
from onnxprune.probe.forward import Rows
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.refit.solvers.schedule import cubic
from onnxprune.score import METHODS, Seven, configured, dynamic
from onnxprune.search import by_table
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner
from onnxprune.search.prices import MAPPED

Build = Callable[..., ZooModel]
Run = Callable[..., Outcome]


@pytest.mark.parametrize("method", ["seven-dyn", "optin+0.5*seven", "platon", "snip", "snip-spectral", "fisher"])
def test_methods_meet_the_budget(run: Run, folder: Path, method: str) -> None:  # noqa: F811
    args = ["--flops", 0.7, "--round-to", 1, "--calib", folder / "rows.jsonl", "--threads", 1, "--no-latency", "--json"]
    code, out, err = run(folder / "model.onnx", "-o", folder / "cut.onnx", "--method", method, *args)
    assert code == 0, err
    report = json.loads(out)
    assert report["flops"]["pruned"] <= 0.7 * report["flops"]["dense"]
    assert report["recipe"]["method"] == method
    assert report["equivalence"]["max_rel"] < 1e-4


def test_decays_are_options(run: Run, folder: Path) -> None:  # noqa: F811
    assert configured((0.5, 0.9))["seven"] == Seven(0.5, 0.9)
    assert configured((0.5, 0.9))["seven-signed"] == Seven(0.5, 0.9, signed=True)
    assert configured((0.8, 0.8)) == METHODS
    args = ["--flops", 0.7, "--calib", folder / "rows.jsonl", "--method", "seven", "-o", folder / "cut.onnx"]
    assert Options(Budget("flops", 0.5), method="snip", snip_spectral=True).method == "snip-spectral"
    refused(run, folder, 2, "0.8,0.8", folder / "model.onnx", *args, "--alpha", "1.0,0.5")
    assert run(folder / "model.onnx", *args, "--alpha", "0.5")[0] == 2


def test_seven_dyn_follows_the_cubic_schedule(zoo: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo("bert", "torchscript", "eager")
    loaded = load(model.path)
    structure = analyze(loaded)
    learn = data.read([model.sample(1, seed=i) for i in range(16)], loaded.inputs, outputs=loaded.outputs)
    rows, sites = Rows(Interpreter(loaded.graph), learn), find_sites(loaded.graph, structure)
    module = sys.modules["onnxprune.score.seven_dyn"]
    scored, seen = module._scores, []

    def watched(rows: Rows, sites: Any, gates: Gates, alive: Mapping[str, np.ndarray], *rest: Any) -> Any:
        seen.append({s.id: alive[s.id].copy() for s in sites})
        return scored(rows, sites, gates, alive, *rest)

    monkeypatch.setattr(module, "_scores", watched)
    found = dynamic(rows, sites, Gates(structure, rows.interpreter), 0.4, count=5)
    assert len(seen) == 5, "scored anew at every step"
    for kind in ("heads", "neurons"):
        members = [s for s in sites if s.group.kind == kind]
        total = sum(s.group.size for s in members)
        left = [sum(int(alive[s.id].sum()) for s in members) for alive in seen]
        assert left == [total, *(max(round(cubic(t, 5, 0.4) * total), len(members)) for t in range(4))]
    for site in sites:  # what went first is last in the order
        gone = [np.flatnonzero(~alive[site.id]) for alive in seen]
        assert all(set(found[site.id].order[-len(g) :]) == set(g.tolist()) for g in gone if len(g))


def test_seven_dyn_begins_with_what_is_left(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    loaded = load(model.path)
    structure = analyze(loaded)
    learn = data.read([model.sample(1, seed=i) for i in range(12)], loaded.inputs, outputs=loaded.outputs)
    rows, sites = Rows(Interpreter(loaded.graph), learn), find_sites(loaded.graph, structure)
    thin = next(s for s in sites if s.group.kind == "neurons")
    other = next(s for s in sites if s.group.kind == "neurons" and s.id != thin.id and s.branch)
    assert other.branch is not None
    kept = tuple(range(0, thin.group.size, 2))
    base = Gates(structure, rows.interpreter).complete(
        Plan(structure.digest, {thin.id: kept}, (other.branch.id,)), learn.examples[0].feeds
    )
    found = dynamic(rows, sites, Gates(structure, rows.interpreter), 0.5, base=base, count=2)
    assert set(found) == {s.id for s in sites}
    assert set(found[thin.id].order[: len(kept)]) == set(kept)
    assert len(found[other.id].order) == other.group.size


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_maps_are_levels_with_their_costs(zoo: Build, family: str) -> None:
    """A branch may be replaced by a linear map: the search sees what it costs and does, and the plan says so."""
    model = zoo(family, "torchscript", "eager")
    loaded = load(model.path)
    learn = data.read([model.sample(1, seed=i) for i in range(48)], loaded.inputs, outputs=loaded.outputs)
    planner = Planner(
        loaded, analyze(loaded), Options(Budget("flops", 0.6), method="snip", round_to=1, swaps=4), learn,
        shape_of(loaded, {}, learn),
    )  # fmt: skip
    modules = {m.id: m for m in by_table._modules(planner, planner.start, planner.scores, {})}
    found = planner.start.stand_ins
    assert found, "no map is better than a constant"
    for site in planner.sites:
        levels = [level for level in modules[site.id].levels if level.kept == MAPPED]
        assert bool(levels) == (site.branch is not None and site.branch.id in found)
        for level in levels:
            assert site.branch is not None
            assert level.cost == planner.costs.map_cost("flops", site.branch.id) > 0
    counts = {s.id: MAPPED if s.branch and s.branch.id in found else s.group.size for s in planner.sites}
    plan = planner.start.thinned(planner.sites, counts)
    assert set(plan.maps) == set(found) == set(plan.drop)
    chosen = [next(x for x in modules[s.id].levels if x.kept == counts[s.id]) for s in planner.sites]
    assert planner.costs.total("flops", plan) == pytest.approx(
        by_table.fixed_cost(planner.prices) + sum(x.cost for x in chosen)
    )
    limit = 0.6 * planner.costs.total("flops")
    assert planner.costs.total("flops", planner.plan(limit)) <= limit


def test_branches_are_whole_modules(zoo: Build) -> None:
    """SNIP thins heads, never an FFN that could leave as a whole."""
    model = zoo("bert", "torchscript", "eager")
    loaded = load(model.path)
    structure = analyze(loaded)
    learn = data.read([model.sample(1, seed=i) for i in range(24)], loaded.inputs, outputs=loaded.outputs)
    asked = Options(Budget("flops", 0.7), method="snip", round_to=1, swaps=4)
    for options, thinned in ((asked, False), (replace(asked, method="wanda"), True)):
        planner = Planner(loaded, structure, options, learn, shape_of(loaded, {}, learn))
        plan = planner.plan(0.7 * planner.costs.total("flops"))
        inside = {s.id for s in planner.sites if s.group.kind == "neurons" and s.branch is not None}
        assert bool(inside & set(plan.keep)) == thinned
        assert planner.costs.total("flops", plan) <= 0.7 * planner.costs.total("flops")


def test_no_maps_where_nothing_is_mended(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    loaded = load(model.path)
    learn = data.read([model.sample(1, seed=i) for i in range(24)], loaded.inputs, outputs=loaded.outputs)
    asked = Options(Budget("flops", 0.6), method="snip", round_to=1, swaps=2)
    for options in (replace(asked, compensate=False), replace(asked, uniform=True), replace(asked, method="optin")):
        planner = Planner(loaded, analyze(loaded), options, learn, shape_of(loaded, {}, learn))
        assert not planner.plan(0.6 * planner.costs.total("flops")).maps


def test_another_method_on_the_same_rows_measures_anew(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    loaded = load(model.path)
    learn = data.read([model.sample(1, seed=i) for i in range(24)], loaded.inputs, outputs=loaded.outputs)
    options = Options(Budget("flops", 0.7), method="magnitude", round_to=1, swaps=4)
    first = Planner(loaded, analyze(loaded), options, learn, shape_of(loaded, {}, learn))
    _ = first.start
    other = first.again(replace(options, method="obs"))
    same = replace(options, method="obs", units=first.options.units)
    alone = Planner(loaded, first.structure, same, learn, first.costs.bindings)
    assert {k: r.order for k, r in other.start.rankings.items()} == {
        k: r.order for k, r in alone.start.rankings.items()
    }
    assert other.start.rankings != first.start.rankings
    assert other.fit is first.fit


def test_the_last_plan_is_the_same_with_what_only_others_need_let_go(
    zoo: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    loaded = load(model.path)
    structure = analyze(loaded)
    learn = data.read([model.sample(1, seed=i) for i in range(16)], loaded.inputs, outputs=loaded.outputs)
    options = Options(Budget("flops", 0.7), swaps=2)
    planner = Planner(loaded, structure, options, learn, shape_of(loaded, {}, learn))
    held: list[bool] = []
    mended = planner.mended

    def seen(plan: Plan) -> Plan:
        held.append("start" in vars(planner))
        return mended(plan)

    monkeypatch.setattr(planner, "mended", seen)
    limit = 0.7 * planner.costs.total("flops")
    further = planner.plan(limit)
    planner.last = True
    last = planner.plan(limit)
    assert held == [True, False]
    assert (last.keep, last.drop) == (further.keep, further.drop)
    for name, array in last.weights.items():
        np.testing.assert_array_equal(array, further.weights[name])
