"""A budget in milliseconds: what a table says is what the search obeys, whatever the milliseconds are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import flow_graphs
import numpy as np
import pytest
from plans import Subject, choose, in_runtime
from zoo import ZooModel

import onnxprune
from onnxprune.errors import BudgetError, DataError, UnsupportedError
from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Budget, Plan, Structure
from onnxprune.graph.providers import CPU
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.measure.tables import device_kit, source
from onnxprune.measure.tables import table as tables
from onnxprune.measure.tables.costs import LatencyCosts
from onnxprune.measure.tables.landing import Timing
from onnxprune.measure.tables.micro_models import IDLE, UNCUT, WHOLE, Cutter, Micro
from onnxprune.measure.tables.table import Entry, LatencyTable
from onnxprune.pipeline import latency_table, verbs
from onnxprune.report import terminal
from onnxprune.search import latency_budget
from onnxprune.search import planner as search_planner
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

Build = Callable[..., ZooModel]

SHAPE = {"batch_size": 2, "sequence_length": 9}
FAMILIES = ("bert", "distilbert", "llama", "gpt2", "vit", "resnet")


load = cache(Subject.load)


def counted(model: ZooModel, shape: dict[str, int] | None = None) -> Costs:
    subject = load(model.path)
    known = shape or {
        dim: size
        for spec in subject.model.inputs
        for dim, size in zip(spec.shape, model.feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return Costs(subject.model, subject.structure, known)


def invented(shape: Mapping[str, int], needed: Sequence[Micro], slow: int = 0) -> LatencyTable:
    """A machine on which a unit takes 0.01 ms, a module 0.03 ms and a call 0.005 ms; `slow` is a width it is bad at."""
    entries = []
    for micro in needed:
        ms = {IDLE: 0.005, WHOLE: 20.0, UNCUT: 19.0}.get(micro.kind, 0.035 + 0.01 * micro.units)
        entries.append(
            Entry(micro.signature, micro.kind, micro.units, micro.of, ms * (1 + (micro.units == slow > 0)), 0)
        )
    return LatencyTable(CPU, 1, shape, "elsewhere", "a runtime", tuple(entries))


# -- micro-models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_models_compute_what_their_module_does(zoo: Build, family: str, tmp_path: Path) -> None:
    """By ONNX Runtime's account: a module loses the products that the model loses when its units go."""
    model = zoo(family, "torchscript", "sdpa")
    costs = counted(model)
    cutter = device_kit.costs_of(costs, ("heads", "neurons", "channels", "query_heads", "blocks"), CPU).cutter
    cutter.keep_unread = True
    for site in cutter.sites:
        group, made = site.group, {}
        few = site.rows * max(group.shape[-1] // 2, 1)
        for units in (few, group.size):
            micro = cutter.module(site, units)
            assert micro.model is not None
            (file,) = models.save(micro.model, tmp_path / "micro.onnx")
            made[units] = sum(profiled_macs(file, micro.feeds()).values())
        keep = choose(group.shape, few // site.rows, np.random.default_rng(0))
        plan = Plan(costs.structure.digest, {group.id: keep} if few < group.size else {})
        assert made[group.size] - made[few] == costs.macs() - costs.macs(plan)
        idle = cutter.module(site, 0)
        assert idle.model is not None
        (file,) = models.save(idle.model, tmp_path / "idle.onnx")
        assert not sum(profiled_macs(file, idle.feeds()).values())
        assert {p.shape for p in idle.ports} == {p.shape for p in cutter.module(site, group.size).ports}


def test_a_whole_module_gives_what_it_gives_in_the_model(zoo: Build, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    costs = counted(model)
    cutter = device_kit.costs_of(costs, ("heads", "neurons"), CPU).cutter
    cutter.keep_unread = True
    for site in cutter.sites:
        micro = cutter.module(site, site.group.size)
        assert micro.model is not None
        names = [p.name for p in micro.ports] + [v.name or "" for v in micro.model.graph.outputs]
        dense = costs.model.clone().ir
        seen = {v.name: v for n in dense.graph for v in n.outputs}
        dense.graph.outputs.extend(seen[n] for n in names if n in seen and not seen[n].is_graph_output())
        known = {**model.feeds, **in_runtime(dense, model.feeds)}
        (file,) = models.save(micro.model, tmp_path / "micro.onnx")
        found = runtime.run(runtime.session(file), {p.name: known[p.name] for p in micro.ports})
        for name, value in found.items():
            assert value == pytest.approx(known[name], abs=1e-5)


def test_equal_modules_are_measured_once(zoo: Build) -> None:
    costs = device_kit.costs_of(counted(zoo("bert", "torchscript", "sdpa")), ("heads", "neurons"), CPU)
    needed = costs.needed()
    assert [m.kind for m in needed[:2]] == [WHOLE, UNCUT]
    assert len({m.signature for m in needed}) == len(needed)
    first, second, last = (costs.cutter.module(s, s.group.size) for s in _of(costs, "neurons")[:3])
    assert first.signature != last.signature  # the pooler is another thing
    costs.cutter.keep_unread = True
    plain = Cutter(costs, list(costs.sites.values()), keep_unread=True)
    layers = [plain.module(s, s.group.size).signature for s in _of(costs, "neurons")]
    assert layers[0] == layers[1]
    # What the classifier does not read of the last block is not computed there: that block is another module.
    assert first.signature != second.signature
    read = Costs(costs.model, costs.structure, {**costs.bindings, "sequence_length": 11})
    longer = Cutter(read, list(costs.sites.values()), keep_unread=True)
    assert longer.module(_of(costs, "neurons")[0], 8).signature != plain.module(_of(costs, "neurons")[0], 8).signature


def _of(costs: LatencyCosts, kind: str) -> list[Any]:
    return [s for s in costs.sites.values() if s.group.kind == kind]


# -- the search --------------------------------------------------------------------------------------------------


def rows(count: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"input_ids": rng.integers(5, 100, 9).tolist(), "attention_mask": [1] * 9, "label": i % 2} for i in range(count)
    ]


def planner(model: ZooModel, budget: str, file: Path, *, learn: bool = True, slow: int = 0, **options: Any) -> Planner:
    """A planner by an invented table."""
    from onnxprune import data

    subject = load(model.path)
    costs = device_kit.costs_of(counted(model, SHAPE), ("heads", "neurons", "blocks"), CPU, every=True)
    tables.save([invented(costs.bindings, costs.needed(), slow)], file)
    options |= {"shape": SHAPE, "latency_table": str(file), "compensate": False, "swaps": 3, "variants": 0.0}
    asked = Options(Budget.parse("latency", budget), **options)
    learnt = data.read(rows(), subject.model.inputs, outputs=subject.model.outputs) if learn else None
    return Planner(subject.model, subject.structure, asked, learnt, SHAPE)


@pytest.mark.parametrize(("budget", "learn", "options"), [
    ("0.91", True, {}), ("0.94", True, {}), ("19ms", True, {"uniform": True}), ("0.93", True, {"search": "rank"}),
    ("0.95", False, {}), ("0.92", True, {"staged": True, "method": "magnitude"}),
])  # fmt: skip
def test_a_plan_costs_no_more_than_its_budget(
    zoo: Build, budget: str, learn: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    made = planner(zoo("bert", "torchscript", "sdpa"), budget, tmp_path / "t.json", learn=learn, **options)
    dense = made.costs.total("latency")
    assert dense == 20.0
    limit = made.options.budget.limit(dense)
    plan = made.plan(limit)
    assert made.costs.total("latency", plan) <= limit + 1e-9
    assert made.costs.total("latency", plan) > limit - 0.5  # and it spends what it may, but for a unit's worth or two
    assert made.costs.total("latency", Plan(plan.digest)) == 19.0
    landing = made.landing
    assert landing is not None and landing.measured is None and "another machine" in landing.said
    assert landing.predicted == pytest.approx(made.costs.total("latency", plan) / dense)


def test_out_of_reach_is_said_with_the_closest(zoo: Build, tmp_path: Path) -> None:
    made = planner(zoo("bert", "torchscript", "sdpa"), "0.2", tmp_path / "t.json")
    with pytest.raises(BudgetError, match="latency") as raised:
        made.plan(4.0)
    closest = raised.value.closest
    assert closest is not None and 0.2 < closest < 1
    assert made.costs.total("latency", made.plan(closest * 20.0 + 1e-6)) / 20.0 == pytest.approx(closest, abs=0.02)


@pytest.mark.parametrize("search", ["table", "rank"])
def test_a_planted_slow_width_is_avoided(zoo: Build, search: str, tmp_path: Path) -> None:
    def widths(slow: int) -> set[int]:
        made = planner(zoo("bert", "torchscript", "sdpa"), "0.95", tmp_path / "t.json", search=search, slow=slow)
        plans = [made.plan(share * 20.0) for share in (0.98, 0.96, 0.95, 0.94, 0.93)]
        return {len(units) for plan in plans for group, units in plan.keep.items() if "neurons" in group}

    taken = widths(0)
    assert len(taken) > 2
    for slow in sorted(taken)[1:3]:
        assert slow not in widths(slow)


def test_a_table_narrows_the_widths_of_other_budgets_too(zoo: Build, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    made = planner(model, "0.95", tmp_path / "t.json", slow=24)
    group = made.structure.group("neurons.0")
    for round_to, kept in ((None, False), (8, True)):
        options = replace(made.options, budget=Budget("flops", 0.6), round_to=round_to)
        costs = latency_budget.costs_for(
            made.model, made.structure, options, SHAPE, made.sites, made.clock, made.progress
        )
        assert costs.offered(group, [16, 24, 25, 32]).tolist() == [True, kept, True, True]
        assert costs.total("flops") == counted(model, SHAPE).macs()


def test_a_file_that_misses_is_corrected(zoo: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes 3% longer than its table says, whatever the plan."""
    made = planner(zoo("bert", "torchscript", "sdpa"), "0.93", tmp_path / "t.json")
    seen: list[float] = []

    def timing(model: Model, structure: Structure, costs: Costs, plan: Plan, *told: Any) -> Timing:
        ratio = 1.03 * costs.total("latency", plan) / 20.0
        seen.append(ratio)
        return Timing(ratio, (ratio - 0.001, ratio + 0.001), 20.0)

    monkeypatch.setattr(search_planner, "timing", timing)
    monkeypatch.setattr(latency_budget, "why_not_here", lambda table: "")
    plan = made.plan(0.93 * 20)
    landing = made.landing
    assert landing is not None and landing.corrected == 1
    assert landing.target == pytest.approx(0.93)
    assert landing.measured == pytest.approx(seen[1]) == pytest.approx(1.03 * landing.predicted)
    assert abs(seen[1] - 0.93) < abs(seen[0] - 0.93)
    assert landing.predicted == pytest.approx(made.costs.total("latency", plan) / 20)


# -- from machine to machine -------------------------------------------------------------------------------------


def test_exported_micro_models_come_back_as_a_table(zoo: Build, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    folder = latency_table.export(model.path, tmp_path / "kit", [SHAPE, {**SHAPE, "sequence_length": 5}])
    (tmp_path / "elsewhere").mkdir()
    folder = folder.rename(tmp_path / "elsewhere" / "kit")
    command = [sys.executable, str(folder / "measure.py"), "--rounds", "2", "--threads", "1"]
    done = subprocess.run(command, env={"PATH": ""}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    both = tables.load(folder / "table.json")
    assert [t.shape for t in both] == [SHAPE, {**SHAPE, "sequence_length": 5}]
    subject = load(model.path)
    options = Options(
        Budget("latency", 0.9), method="magnitude", shape=SHAPE, latency_table=str(folder / "table.json"), round_to=8
    )
    made = Planner(subject.model, subject.structure, options, None, SHAPE)
    assert isinstance(made.costs, LatencyCosts)
    held = made.costs.table
    assert held.provider == CPU
    assert held.entries[0].kind == WHOLE and made.costs.total("latency") == held.entries[0].ms > 0
    needed = device_kit.costs_of(made.costs, ("heads", "neurons", "blocks"), CPU).needed()
    assert {m.signature for m in needed} == set(held.by_signature)
    with pytest.raises(DataError, match="sequence_length=7"):
        Planner(subject.model, subject.structure, options, None, {**SHAPE, "sequence_length": 7})


def test_a_table_of_another_model_is_refused(zoo: Build, tmp_path: Path) -> None:
    planner(zoo("bert", "torchscript", "sdpa"), "0.9", tmp_path / "t.json")
    other = load(zoo("distilbert", "torchscript", "sdpa").path)
    options = Options(Budget("latency", 0.9), shape=SHAPE, latency_table=str(tmp_path / "t.json"), method="magnitude")
    made = Planner(other.model, other.structure, options, None, SHAPE)
    with pytest.raises(DataError, match="another model"):
        made.plan(10.0)


def test_a_table_of_several_providers_needs_a_name(zoo: Build, tmp_path: Path) -> None:
    costs = device_kit.costs_of(counted(zoo("bert", "torchscript", "sdpa"), SHAPE), ("heads", "neurons"), CPU)
    held = invented(costs.bindings, costs.needed())
    phone = replace(held, provider="XnnpackExecutionProvider")
    tables.save([held, phone], tmp_path / "t.json")
    assert source.chosen(tmp_path / "t.json", phone.provider, SHAPE) == phone
    with pytest.raises(DataError, match="several tables"):
        source.chosen(tmp_path / "t.json", "CoreMLExecutionProvider", SHAPE)
    tables.save([phone], tmp_path / "t.json")
    assert source.chosen(tmp_path / "t.json", CPU, SHAPE) == phone


def test_a_measured_table_is_kept_for_the_next_run(zoo: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    costs = device_kit.costs_of(counted(zoo("bert", "torchscript", "sdpa"), SHAPE), ("heads", "neurons"), CPU)
    needed = costs.needed()
    calls: list[int] = []

    def measured(asked: Sequence[Micro], *rest: Any) -> tuple[Entry, ...]:
        calls.append(len(asked))
        return invented(SHAPE, asked).entries

    monkeypatch.setattr(source, "measured", measured)

    def obtained(asked: Sequence[Micro], threads: int = 1, **options: Any) -> LatencyTable:
        return source.obtained(costs.cutter, asked, CPU, threads, **options)

    first = obtained(needed[:-1])
    assert obtained(needed[:-1]) == first and len(calls) == 1
    assert set(obtained(needed).by_signature) == {m.signature for m in needed} and len(calls) == 2
    assert set(obtained(needed[:3]).by_signature) == {m.signature for m in needed} and len(calls) == 2
    obtained(needed, threads=2)
    obtained(needed, fresh=True)
    assert len(calls) == 4
    assert len(list((tmp_path / "cache" / "onnxprune" / "latency").glob("*.json"))) == 2


def test_a_profile_measures_all_that_a_search_needs(
    zoo: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (held,) = latency_table.profile(zoo("bert", "torchscript", "sdpa").path, [SHAPE])
    costs = device_kit.costs_of(
        counted(zoo("bert", "torchscript", "sdpa"), SHAPE), latency_table.UNITS, CPU, every=True
    )
    assert set(held.by_signature) == {m.signature for m in costs.needed()}
    assert all(e.ms > 0 for e in held.entries)


def test_from_the_command_to_the_report(zoo: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real file is timed, and the report says what came of it; its time is not judged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency_budget, "RUNS", 35)
    monkeypatch.setattr(source, "measured", lambda needed, *rest: invented(SHAPE, needed).entries)
    (tmp_path / "model.onnx").write_bytes(zoo("bert", "torchscript", "sdpa").path.read_bytes())
    result = onnxprune.prune(
        tmp_path / "model.onnx", tmp_path / "small.onnx", latency=0.93, method="magnitude", shape=SHAPE
    )
    landing = result.report.landing
    assert landing is not None and landing.measured is not None and landing.interval is not None
    assert landing.target == pytest.approx(0.93)
    assert landing.predicted <= 0.93 or landing.corrected
    assert landing.interval[0] <= landing.measured <= landing.interval[1]
    row = result.report.latency[0]
    assert landing.measured == pytest.approx(1 / row.speedup)
    told = json.loads((tmp_path / "small.report.json").read_text())
    assert told["budget"]["kind"] == "latency" and told["landing"]["provider"] == CPU
    assert type(result.report).from_json(told).landing == landing
    assert "correction" in terminal.to_text(result.report)


@pytest.mark.parametrize(
    ("kind", "where"), [("choice", "on one side of an If"), ("loop", "in a loop"), ("scan", "in a loop")]
)
def test_what_runs_as_data_decide_is_in_no_table(tmp_path: Path, kind: str, where: str) -> None:
    """The time of a body depends on the data: a budget of FLOPs is asked for, before anything is measured."""
    path, _ = flow_graphs.graph(tmp_path, 0, (kind,))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, flow_graphs.WIDTH)).astype(np.float32)} for _ in range(16)]
    with pytest.raises(UnsupportedError, match=f"{where}.*give the budget as --flops"):
        onnxprune.prune(path, tmp_path / "small.onnx", latency=0.7, calibration=feeds, units=("neurons",))


def test_a_latency_is_a_budget_like_others() -> None:
    budget = verbs.budget_of(latency="8ms", flops=None)
    assert budget == Budget("latency", 8.0, relative=False)
